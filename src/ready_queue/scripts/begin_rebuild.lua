-- Marks the queue as incomplete, so that a rebuild that is cut short is noticed and done again.
-- Jobs that are in place stay there and keep being handed out; enqueueing is idempotent.
redis.call('DEL', GENERATION)
return 0
