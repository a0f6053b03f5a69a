-- Makes the holder the leader of rotation, or keeps it so.
-- KEYS: leader (its holder; expires), fence (counts leaders); in one hash slot.
-- ARGV: holder, lease in milliseconds.
-- Returns the fence, or 0 where another leads.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
local fence = holder and tonumber(redis.call('GET', KEYS[2]))
if not fence or fence < 1 then
  -- Raises, each time, where the value is no number. Had the lease been taken before, it would look as if another led.
  fence = redis.call('INCR', KEYS[2])
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return fence
