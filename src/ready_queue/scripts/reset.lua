-- Sets the epoch, whatever is stored, and marks the queue as incomplete. The one script that the fence
-- does not guard: PostgreSQL has decided that the caller leads.
redis.call('SET', KEYS[1], ARGV[1])
redis.call('DEL', GENERATION)
return 0
