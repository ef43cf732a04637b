-- Answers the ids of the jobs that would be handed out next, in order; claimed jobs are not among them.
-- Arguments: the largest number of ids, and a priority or 0 for all.
local limit, priority = tonumber(ARGV[FIRST_ARGUMENT]), tonumber(ARGV[FIRST_ARGUMENT + 1])

local streams = {}
for _, shape in ipairs(redis.call('SMEMBERS', SHAPES)) do
  local key = SHAPE_PREFIX .. shape
  local from, to = 0, math.huge
  if priority > 0 then
    from = count_above(key, priority)
    if priority > 1 then
      to = count_above(key, priority - 1)
    end
  end
  streams[#streams + 1] = stream(key, from, to, 1)
end

local ids = {}
merge(streams, function(s)
  ids[#ids + 1] = s.id
  return true
end, function()
  return #ids >= limit
end)
return ids
