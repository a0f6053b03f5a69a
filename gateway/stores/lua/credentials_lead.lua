-- Become, or stay, the leader of rotation.
-- KEYS: leader (its holder; expires), fence (counts leaders); in one hash slot.
-- ARGV: holder, lease in milliseconds.
-- Returns the fence, or 0 where another leads.
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return tonumber(redis.call('GET', KEYS[2]) or 0)
end
if holder then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return redis.call('INCR', KEYS[2])
