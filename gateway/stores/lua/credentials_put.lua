-- Puts one sealed record in place of the version that is expected there.
-- KEYS: records (id -> "version:octets"), fence (the latest leader's number); in one hash slot.
-- ARGV: id, expected version (0: none), "version:octets", fence or ''.
-- Returns 1, or 0 with nothing changed.
if ARGV[4] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[4] then
  return 0
end
local there = redis.call('HGET', KEYS[1], ARGV[1])
local version = '0'
if there then
  version = string.match(there, '^(%d+):')  -- nil for a value that no gateway wrote: it is never overwritten
end
if version ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
