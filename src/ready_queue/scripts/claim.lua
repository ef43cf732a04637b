-- Takes the best jobs that free workers can run.
--
-- Arguments: the largest number of jobs, the number of groups, the free slots of each group, then the
-- offers: shape, and the groups that can run it as two bytes each (high byte first), preferred first.
-- Answers id, score, index of the offer and index of the group, both from 0, for each job, in order.
--
-- A shape whose groups are all taken drops out of the merge: it never holds up the shapes behind it.
local max, group_count = tonumber(ARGV[FIRST_ARGUMENT]), tonumber(ARGV[FIRST_ARGUMENT + 1])
local first_group = FIRST_ARGUMENT + 2
local first_offer = first_group + group_count

local free, free_in_all = {}, 0
for group = 0, group_count - 1 do
  free[group] = tonumber(ARGV[first_group + group])
  free_in_all = free_in_all + free[group]
end

local offered_at = {}
for at = first_offer, #ARGV, 2 do
  offered_at[ARGV[at]] = at
end

-- The first group in the order of preference with a free slot, or nil. Slots are only ever taken here,
-- so a group that was passed over need not be looked at again.
local function free_group(s)
  while s.next_group < #s.groups do
    local high, low = string.byte(s.groups, s.next_group, s.next_group + 1)
    local group = high * 256 + low
    if (free[group] or 0) > 0 then
      return group
    end
    s.next_group = s.next_group + 2
  end
  return nil
end

-- An id that is not a UUID in its usual form was not written by CORTEX. It is dropped: nobody could
-- ever confirm it.
local H4 = '%x%x%x%x'
local UUID = '^' .. H4 .. H4 .. '%-' .. H4 .. '%-' .. H4 .. '%-' .. H4 .. '%-' .. H4 .. H4 .. H4 .. '$'

local answer, claims, claimed = {}, {}, 0
local claimed_at = now_ms()

local opened = merge(registered(function(shape)
  local at = offered_at[shape]
  if not at then
    return nil
  end
  local s = stream(shape, 0, math.huge)
  s.index, s.groups, s.next_group = (at - first_offer) / 2, ARGV[at + 1], 1
  return free_group(s) and s
end), function(s)
  local group = free_group(s)
  if not group then
    return false
  end
  if string.find(s.id, UUID) and not string.find(s.id, '%u') then
    free[group] = free[group] - 1
    free_in_all = free_in_all - 1
    local n = 4 * claimed
    claimed = claimed + 1
    answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4] = s.id, s.score_text, s.index, group
    claims[2 * claimed - 1] = s.id
    claims[2 * claimed] = claimed_at .. ' ' .. s.score_text .. ' ' .. s.shape
  end
  return true
end, function()
  return claimed >= max or free_in_all == 0
end)

local heads, empty = {}, {}
for _, s in ipairs(opened) do
  if s.taken > 0 then
    -- A shape gives its jobs from the front without leaving any out: they can be removed by rank.
    redis.call('ZREMRANGEBYRANK', s.key, 0, s.taken - 1)
  end
  if s.ended then
    empty[#empty + 1] = s.shape
  elseif s.taken > 0 then
    heads[#heads + 1] = s.score_text
    heads[#heads + 1] = s.shape
  end
end
in_slices('ZREM', SHAPES, empty)
in_slices('ZADD', SHAPES, heads)
in_slices('HSET', CLAIMS, claims)
return answer
