-- Takes jobs out of the queue, waiting or claimed.
-- Arguments: groups of jobs of the same shape: shape, number of jobs, then their ids.
-- Answers how many jobs were taken out.
local removed = 0
local at = FIRST_ARGUMENT
while at <= #ARGV do
  local shape, count = ARGV[at], tonumber(ARGV[at + 1])
  local ids = {}
  for i = 1, count do
    ids[i] = ARGV[at + 1 + i]
  end
  at = at + 2 + count
  removed = removed + drop_claims(ids)
  local key = SHAPE_PREFIX .. shape
  local scores = redis.call('ZMSCORE', key, unpack(ids))
  for i, id in ipairs(ids) do
    if scores[i] and redis.call('ZREM', key, id) == 1 then
      removed = removed + 1
      change_depth(priority_of(scores[i]), -1)
    end
  end
  refresh_shape(shape)
end
write_depth()
return removed
