-- Answers the number of claims, and a list of name and number of waiting jobs of each shape that has any: real
-- sizes, not counters, and all from one moment.
local shapes = {}
for _, shape in ipairs(redis.call('ZRANGE', SHAPES, 0, -1)) do
  local size = redis.call('ZCARD', SHAPE_PREFIX .. shape)
  if size > 0 then
    shapes[#shapes + 1] = shape
    shapes[#shapes + 1] = size
  end
end
return { redis.call('HLEN', CLAIMS), shapes }
