-- The fence: the first lines of every script that writes.
--
-- A leader that was replaced must change nothing, so an epoch below the stored one is refused before
-- the first write. A higher one is stored at once: from then on the older leader is shut out, even
-- before the new one has written anything else. After a flush there is no stored epoch and the first
-- writer sets it; the truth is fenced in PostgreSQL, so an old leader that comes first can only spoil
-- an index that will be rebuilt.
local epoch = tonumber(ARGV[1])
local stored_epoch = tonumber(redis.call('GET', KEYS[1]))
if stored_epoch and stored_epoch > epoch then
  return redis.error_reply('FENCED ' .. string.format('%.0f', stored_epoch))
end
if stored_epoch ~= epoch then
  -- A Redis whose memory is full refuses SET, but not what follows a deletion: a new leader must be able to take
  -- jobs out.
  redis.call('DEL', KEYS[1])
  redis.call('SET', KEYS[1], ARGV[1])
end
