-- Whoever holds the lease KEYS[1] by the token ARGV[1] is done: it is free, and who waits is told.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.pcall('PUBLISH', 'ggw:cache:gone', KEYS[1])
return 1
