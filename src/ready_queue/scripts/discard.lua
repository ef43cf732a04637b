-- Throws away keys under the queue's names that are of a kind which CORTEX never writes: nobody can use them, and
-- every script would fail on them for ever. Then marks the queue as incomplete. The fence does not guard it: it takes
-- nothing from anybody. Answers the number of keys.
local KINDS = { 'string', 'string', 'zset', 'hash', 'hash' }

local function discard(key, kind)
  local found = redis.call('TYPE', key).ok
  if found == kind or found == 'none' then
    return 0
  end
  return redis.call('DEL', key)
end

local discarded = discard(KEYS[1] .. ':rebuild', 'string')
for i, kind in ipairs(KINDS) do
  discarded = discarded + discard(KEYS[i], kind)
end
for _, shape in ipairs(redis.call('ZRANGE', SHAPES, 0, -1)) do
  discarded = discarded + discard(SHAPE_PREFIX .. shape, 'zset')
end
if discarded > 0 then
  redis.call('DEL', GENERATION)
end
return discarded
