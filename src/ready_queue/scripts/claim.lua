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

-- The first group in the offer's order with a free slot, or nil. Slots are only ever taken here, so a
-- group that was passed over need not be looked at again.
local function free_group(offer)
  while offer.next_group < #offer.groups do
    local high, low = string.byte(offer.groups, offer.next_group, offer.next_group + 1)
    local group = high * 256 + low
    if (free[group] or 0) > 0 then
      return group
    end
    offer.next_group = offer.next_group + 2
  end
  return nil
end

local offers = {}
local fetch = math.max(1, math.min(LARGEST_FETCH, math.ceil(2 * max / (#ARGV - first_offer + 1))))
for at = first_offer, #ARGV, 2 do
  local offer = stream(SHAPE_PREFIX .. ARGV[at], 0, math.huge, fetch)
  offer.shape, offer.index = ARGV[at], (at - first_offer) / 2
  offer.groups, offer.next_group, offer.taken = ARGV[at + 1], 1, 0
  if free_group(offer) then
    offers[#offers + 1] = offer
  end
end

-- An id that is not a UUID in its usual form was not written by CORTEX. It is dropped: nobody could
-- ever confirm it.
local H4 = string.rep('[%da-f]', 4)
local UUID = '^' .. H4 .. H4 .. '%-' .. H4 .. '%-' .. H4 .. '%-' .. H4 .. '%-' .. H4 .. H4 .. H4 .. '$'

local answer, claims, claimed = {}, {}, 0
local claimed_at = now_ms()

merge(offers, function(offer)
  local group = free_group(offer)
  if not group then
    return false
  end
  -- A shape gives its jobs from the front without leaving any out: they can be removed by rank.
  offer.taken = offer.taken + 1
  if string.find(offer.id, UUID) then
    free[group] = free[group] - 1
    free_in_all = free_in_all - 1
    local n = 4 * claimed
    claimed = claimed + 1
    answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4] = offer.id, offer.score_text, offer.index, group
    claims[2 * claimed - 1] = offer.id
    claims[2 * claimed] = claimed_at .. ' ' .. offer.score_text .. ' ' .. offer.shape
  end
  return true
end, function()
  return claimed >= max or free_in_all == 0
end)

for _, offer in ipairs(offers) do
  if offer.taken > 0 then
    redis.call('ZREMRANGEBYRANK', offer.key, 0, offer.taken - 1)
    forget_if_empty(offer.shape)
  elseif #offer.chunk == 0 then
    -- Empty from the start: the set was lost, or somebody else took the last job.
    redis.call('SREM', SHAPES, offer.shape)
  end
end
for from = 1, #claims, SLICE do
  redis.call('HSET', CLAIMS, unpack(claims, from, math.min(from + SLICE - 1, #claims)))
end
return answer
