-- A merge of sorted sets: answers the jobs of many shapes in one order, by score, then by id.
--
-- The heap holds one job per shape. A shape is opened only when the order reaches the score under
-- which it is registered, so that the cost lies in the jobs taken and the shapes passed on the way,
-- whatever the length of the queue. Nothing may be removed from any of the sets before the merge is
-- done, because they are read by rank.
local SMALLEST_FETCH, LARGEST_FETCH = 2, 128
local REGISTRY_PAGE = 32

-- A stream is the part of a shape's set from rank `from` up to, without, rank `to`.
local function stream(shape, from, to)
  return {
    shape = shape, key = SHAPE_PREFIX .. shape, rank = from, to = to, fetch = SMALLEST_FETCH,
    chunk = {}, at = 1, taken = 0, ended = false, bound = 0, id = '', score = 0, score_text = '',
  }
end

-- Moves a stream to its next job, whose `id`, `score` and `score_text` it then holds. Answers false at
-- the end. A shape that keeps giving jobs is read in ever larger chunks.
local function advance(s)
  if s.at > #s.chunk then
    local last = math.min(s.rank + s.fetch, s.to) - 1
    s.chunk = last >= s.rank and redis.call('ZRANGE', s.key, s.rank, last, 'WITHSCORES') or {}
    if #s.chunk == 0 then
      s.ended = true
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

-- Answers a function that gives the streams that `open(shape)` makes of the registered shapes, one a
-- call, best first. `open` answers nil for a shape to be left out.
local function registered(open)
  local rank, page, at = 0, {}, 1
  return function()
    while true do
      if at > #page then
        page = redis.call('ZRANGE', SHAPES, rank, rank + REGISTRY_PAGE - 1, 'WITHSCORES')
        if #page == 0 then
          return nil
        end
        rank, at = rank + #page / 2, 1
      end
      local s = open(page[at])
      at = at + 2
      if s then
        s.bound = tonumber(page[at - 1])
        return s
      end
    end
  end
end

local function before(a, b)
  if a.score ~= b.score then
    return a.score < b.score
  end
  return a.id < b.id
end

local function sift_up(heap, at)
  local item = heap[at]
  while at > 1 do
    local parent = math.floor(at / 2)
    if not before(item, heap[parent]) then
      break
    end
    heap[at] = heap[parent]
    at = parent
  end
  heap[at] = item
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

-- Offers the jobs in order to `take(stream)`, until `full()` or none is left. Where `take` answers
-- false the job stays and its stream is dropped. Answers the streams that were opened: `taken` says how
-- many jobs each gave, and unless it has `ended`, `score_text` is the score of the first that stays.
local function merge(next_stream, take, full)
  local heap, opened = {}, {}
  local pending = next_stream()
  while not full() do
    while pending and (#heap == 0 or pending.bound <= heap[1].score) do
      opened[#opened + 1] = pending
      if advance(pending) then
        heap[#heap + 1] = pending
        sift_up(heap, #heap)
      end
      pending = next_stream()
    end
    local head = heap[1]
    if not head then
      break
    end
    local took = take(head)
    if took then
      head.taken = head.taken + 1
    end
    if not (took and advance(head)) then
      heap[1] = heap[#heap]
      heap[#heap] = nil
    end
    if #heap > 1 then
      sift_down(heap, 1)
    end
  end
  return opened
end
