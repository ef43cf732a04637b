-- Forgets claims that the database has settled. Arguments: ids. Answers how many claims there were.
local ids = {}
for at = FIRST_ARGUMENT, #ARGV do
  ids[#ids + 1] = ARGV[at]
end
local dropped = drop_claims(ids)
write_depth()
return dropped
