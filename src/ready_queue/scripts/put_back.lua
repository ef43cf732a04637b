-- Returns claimed jobs to their sets, with the score that they had. Arguments: ids.
-- Answers how many jobs returned. An id without a claim was settled in the meantime and is left alone.
local returned = 0
for at = FIRST_ARGUMENT, #ARGV do
  local id = ARGV[at]
  local record = redis.call('HGET', CLAIMS, id)
  if record then
    redis.call('HDEL', CLAIMS, id)
    local score, shape = read_claim(record)
    if score then
      redis.call('ZADD', SHAPES, 'LT', score, shape)
      -- A claimed job counts in the depth already; one that is in the set as well counted twice.
      if redis.call('ZADD', SHAPE_PREFIX .. shape, 'NX', score, id) == 1 then
        returned = returned + 1
      else
        change_depth(priority_of(score), -1)
      end
    end
  end
end
write_depth()
return returned
