-- Whoever holds the lease KEYS[1] by the token ARGV[1] is done: it is free. Who waits, as KEYS[2] says, is told.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if redis.call('DEL', KEYS[1], KEYS[2]) == 2 then redis.pcall('PUBLISH', 'ggw:cache:gone', KEYS[1]) end
return 1
