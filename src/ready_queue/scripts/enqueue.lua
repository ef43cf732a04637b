-- Adds jobs that are not in the queue yet.
--
-- Arguments: groups of jobs with the same shape and priority: shape, priority, number of jobs, then
-- score and id of each, best score first. Grouping makes the number of commands depend on the groups, not on the jobs,
-- and lets the answer of ZADD keep the depth right.
-- Answers the number of jobs that were added.
local added = 0
local heads = {}
local at = FIRST_ARGUMENT
while at <= #ARGV do
  local shape, priority, count = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  at = at + 3
  local members, ids = {}, {}
  for _ = 1, count do
    members[#members + 1] = ARGV[at]
    members[#members + 1] = ARGV[at + 1]
    ids[#ids + 1] = ARGV[at + 1]
    at = at + 2
  end
  -- A claimed job that is queued again was put back by the database; two entries would count twice.
  drop_claims(ids)
  -- A key of another kind is nobody's. No registry may name it, so it is found here only.
  local key = SHAPE_PREFIX .. shape
  if redis.call('TYPE', key).ok ~= 'zset' then
    redis.call('DEL', key)
  end
  -- NX: a job that is already in place keeps it, so that repeating a call changes nothing.
  local new = redis.call('ZADD', key, 'NX', unpack(members))
  heads[#heads + 1] = ARGV[at - 2 * count]
  heads[#heads + 1] = shape
  change_depth(priority, new)
  added = added + new
end
-- LT: only a better job moves a shape forward. There is at least one group, and with 1000 jobs at most
-- 1000, few enough for one command.
redis.call('ZADD', SHAPES, 'LT', unpack(heads))
write_depth()
return added
