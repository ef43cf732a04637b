-- Answers the ids of the jobs that would be handed out next, in order; claimed jobs are not among them.
-- Arguments: the largest number of ids, and a priority or 0 for all.
local limit, priority = tonumber(ARGV[FIRST_ARGUMENT]), tonumber(ARGV[FIRST_ARGUMENT + 1])

local ids = {}
merge(registered(function(shape)
  local from, to = 0, math.huge
  if priority > 0 then
    from = count_above(SHAPE_PREFIX .. shape, priority)
  end
  if priority > 1 then
    to = count_above(SHAPE_PREFIX .. shape, priority - 1)
  end
  return stream(shape, from, to)
end), function(s)
  ids[#ids + 1] = s.id
  return true
end, function()
  return #ids >= limit
end)
return ids
