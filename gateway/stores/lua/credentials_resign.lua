-- Ends the holder's lead, so that another can lead at once.
-- KEYS: leader. ARGV: holder.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return 1
