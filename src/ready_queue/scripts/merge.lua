-- A merge of sorted sets: answers the jobs of many shapes in one order, by score, then by id.
--
-- The heap holds one job per shape, so that the cost lies in the shapes and the jobs taken, whatever
-- the length of the queue. Nothing may be removed from the sets before the merge is done, because
-- they are read by rank.
local LARGEST_FETCH = 128

-- A stream is the part of one set from rank `from` up to, without, rank `to`.
local function stream(key, from, to, fetch)
  return { key = key, rank = from, to = to, fetch = fetch, chunk = {}, at = 1 }
end

-- Moves a stream to its next job, whose `score`, `score_text` and `id` it then holds. Answers false at
-- the end. A shape that keeps giving jobs is read in ever larger chunks.
local function advance(s)
  if s.at > #s.chunk then
    local last = math.min(s.rank + s.fetch, s.to) - 1
    if last < s.rank then
      return false
    end
    s.chunk = redis.call('ZRANGE', s.key, s.rank, last, 'WITHSCORES')
    if #s.chunk == 0 then
      return false
    end
    s.rank = s.rank + #s.chunk / 2
    s.fetch = math.min(s.fetch * 2, LARGEST_FETCH)
    s.at = 1
  end
  s.id = s.chunk[s.at]
  s.score_text = s.chunk[s.at + 1]
  s.score = tonumber(s.score_text)
  s.at = s.at + 2
  return true
end

local function before(a, b)
  if a.score ~= b.score then
    return a.score < b.score
  end
  return a.id < b.id
end

local function sift_down(heap, at)
  local item, size = heap[at], #heap
  while true do
    local child = 2 * at
    if child > size then
      break
    end
    if child < size and before(heap[child + 1], heap[child]) then
      child = child + 1
    end
    if not before(heap[child], item) then
      break
    end
    heap[at] = heap[child]
    at = child
  end
  heap[at] = item
end

-- Offers the jobs of the streams in order to `take(stream)`, which answers whether the stream goes on,
-- until `full()` or no stream is left.
local function merge(streams, take, full)
  local heap = {}
  for _, s in ipairs(streams) do
    if advance(s) then
      heap[#heap + 1] = s
    end
  end
  for at = math.floor(#heap / 2), 1, -1 do
    sift_down(heap, at)
  end
  while #heap > 0 do
    local head = heap[1]
    local goes_on = take(head)
    if full() then
      break
    end
    if not (goes_on and advance(head)) then
      heap[1] = heap[#heap]
      heap[#heap] = nil
    end
    if #heap > 1 then
      sift_down(heap, 1)
    end
  end
end
