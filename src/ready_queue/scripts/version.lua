-- The version of the server that has the keys. Redis tells it to scripts since 7.0; an older one is asked as from
-- outside, which its user may not be allowed to.
if redis.REDIS_VERSION then
  return redis.REDIS_VERSION
end
local told = redis.pcall('INFO', 'server')
return type(told) == 'string' and string.match(told, 'redis_version:([^\r\n]+)')
