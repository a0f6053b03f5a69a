-- Records in KEYS[2], for as long as the lease KEYS[1] can last, that somebody waits for its end. Returns 0 if it is over.
local left_ms = redis.call('PTTL', KEYS[1])
if left_ms < 1 then return 0 end
redis.call('SET', KEYS[2], '', 'PX', left_ms)
return 1
