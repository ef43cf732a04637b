-- Marks the queue as incomplete, so that a rebuild that is cut short is noticed and done again. The
-- token tells, at the end, whether Redis lost what was put in meanwhile. Jobs that are in place stay
-- there and keep being handed out; enqueueing is idempotent.
redis.call('DEL', GENERATION)
redis.call('SET', KEYS[1] .. ':rebuild', ARGV[FIRST_ARGUMENT])
return 0
