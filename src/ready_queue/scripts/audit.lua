-- What the queue says of itself and what its parts say, all from one moment; changes nothing.
-- Argument: the largest number of claims that are looked through; with more of them the jobs are not counted.
-- Answers epoch, generation, the depth (priority, counter), the real number of jobs by priority from 1 to 10 or an
-- empty list, and name, registered score, score of the best job, or an empty text without one, for each shape.
local shapes, counted = {}, {}
for priority = 1, 10 do
  counted[priority] = 0
end
local registered = redis.call('ZRANGE', SHAPES, 0, -1, 'WITHSCORES')
for i = 1, #registered, 2 do
  local key = SHAPE_PREFIX .. registered[i]
  local head = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  local n = 3 * (i - 1) / 2
  shapes[n + 1], shapes[n + 2], shapes[n + 3] = registered[i], registered[i + 1], head[2] or ''
  local size, before = redis.call('ZCARD', key), 0
  for priority = 10, 1, -1 do
    -- What is left after priority 2 belongs to 1, as in priority_of, whatever its score.
    local reached = priority > 1 and count_above(key, priority - 1) or size
    counted[priority] = counted[priority] + reached - before
    before = reached
  end
end
if redis.call('HLEN', CLAIMS) > tonumber(ARGV[FIRST_ARGUMENT]) then
  counted = {}
else
  for _, record in ipairs(redis.call('HVALS', CLAIMS)) do
    local score = read_claim(record)
    if score then
      local priority = priority_of(score)
      counted[priority] = counted[priority] + 1
    end
  end
end
return { redis.call('GET', KEYS[1]), redis.call('GET', GENERATION), redis.call('HGETALL', DEPTH), counted, shapes }
