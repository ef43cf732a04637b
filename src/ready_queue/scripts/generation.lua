-- Answers the generation, or nil where Redis is new or was emptied. It is fenced although it only
-- reads: it is the first call of a new leader, and raises the fence before anything is rebuilt.
return redis.call('GET', GENERATION)
