-- What all scripts share. KEYS and the first two arguments are the same in each of them, so that the
-- cluster slot is known and a script can reach the set of any shape, also one that only a claim names.
-- The sets' names are put together here instead of being passed as KEYS; they carry the same hash tag.
local GENERATION, SHAPES, DEPTH, CLAIMS = KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local SHAPE_PREFIX = ARGV[2]
local FIRST_ARGUMENT = 3

-- A score is (10 - priority) * 2^49 + milliseconds: a whole number below 2^53, exact in a double.
-- It is passed on as the text it came in: Lua prints only 14 digits of a number.
local BAND = 2 ^ 49

-- Lua's unpack puts its values on a stack of 8000; a command that may have more is sent in slices. Even,
-- because most arguments come in pairs.
local SLICE = 2000

local function in_slices(command, key, arguments)
  for from = 1, #arguments, SLICE do
    redis.call(command, key, unpack(arguments, from, math.min(from + SLICE - 1, #arguments)))
  end
end

-- The priority of a score, 1 to 10. A score that CORTEX did not write is forced into the range.
local function priority_of(score)
  local rank = math.floor(tonumber(score) / BAND)
  return 10 - math.max(0, math.min(9, rank))
end

-- A claim is kept as '<claimed at, ms> <score> <shape>': all that is needed to put the job back.
-- Answers score and shape, or nil for a record that CORTEX did not write.
local function read_claim(record)
  local score, shape = string.match(record, '^%d+ (%S+) (.+)$')
  local number = tonumber(score)
  -- ZADD refuses a NaN, and an error half-way would leave half of the work done.
  if number and number == number then
    return score, shape
  end
  return nil
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] .. string.format('%03d', math.floor(tonumber(time[2]) / 1000))
end

-- Changes of the depth are collected and written once per priority.
local depth_changes = {}

local function change_depth(priority, by)
  depth_changes[priority] = (depth_changes[priority] or 0) + by
end

local function write_depth()
  for priority, by in pairs(depth_changes) do
    if by ~= 0 then
      redis.call('HINCRBY', DEPTH, priority, by)
    end
  end
end

-- Forgets the claims of these ids, at most 1000, and takes them out of the depth.
-- Answers how many there were.
local function drop_claims(ids)
  if #ids == 0 or redis.call('EXISTS', CLAIMS) == 0 then
    return 0
  end
  local records = redis.call('HMGET', CLAIMS, unpack(ids))
  local dropped = 0
  for i, id in ipairs(ids) do
    -- The answer of HDEL counts, not the record: an id may be named twice in one call.
    if records[i] and redis.call('HDEL', CLAIMS, id) == 1 then
      dropped = dropped + 1
      local score = read_claim(records[i])
      if score then
        change_depth(priority_of(score), -1)
      end
    end
  end
  return dropped
end

-- The number of jobs whose priority is above `priority`, which is also the rank of the first job that
-- has this priority or a lower one.
local function count_above(key, priority)
  if priority >= 10 then
    return 0
  end
  return redis.call('ZCOUNT', key, '-inf', string.format('(%.0f', (10 - priority) * BAND))
end

-- SHAPES is a sorted set itself: each shape with jobs, and as its score the score of its best job, or
-- a lower one. That lets a claim begin with the shapes that matter and leave the others alone. A
-- shape without jobs is not in it, or every model name ever used would stay there.
local function refresh_shape(shape)
  local head = redis.call('ZRANGE', SHAPE_PREFIX .. shape, 0, 0, 'WITHSCORES')
  if head[2] then
    redis.call('ZADD', SHAPES, head[2], shape)
  else
    redis.call('ZREM', SHAPES, shape)
  end
end
