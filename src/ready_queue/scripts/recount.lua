-- Counts the depth anew from the sets and the claims, and sets the registry of shapes right.
-- Arguments: the generation to set, with which the rebuild must have begun, or an empty text to leave it
-- as it is. Answers the number of jobs, or nil if what the rebuild put in may be gone.
--
-- Eviction takes away whole keys: after it the counters no longer agree with the sets.
local generation = ARGV[FIRST_ARGUMENT]
local total = 0
local token = KEYS[1] .. ':rebuild'
if generation ~= '' and redis.call('GET', token) ~= generation then
  return false
end

for _, shape in ipairs(redis.call('ZRANGE', SHAPES, 0, -1)) do
  local key = SHAPE_PREFIX .. shape
  local size = redis.call('ZCARD', key)
  refresh_shape(shape)
  total = total + size
  local counted, priority = 0, 10
  while counted < size do
    -- What is left after priority 2 belongs to 1, as in priority_of, whatever its score.
    local reached = priority > 1 and count_above(key, priority - 1) or size
    change_depth(priority, reached - counted)
    counted, priority = reached, priority - 1
  end
end

for _, record in ipairs(redis.call('HVALS', CLAIMS)) do
  local score = read_claim(record)
  if score then
    change_depth(priority_of(score), 1)
    total = total + 1
  end
end

redis.call('DEL', DEPTH)
write_depth()
if generation ~= '' then
  redis.call('SET', GENERATION, generation)
  redis.call('DEL', token)
end
return total
