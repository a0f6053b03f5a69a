-- Somebody waits for the end of the lease KEYS[1]: KEYS[2] says so for as long as it can last. 0: it is over.
local left_ms = redis.call('PTTL', KEYS[1])
if left_ms < 1 then return 0 end
redis.call('SET', KEYS[2], '', 'PX', left_ms)
return 1
