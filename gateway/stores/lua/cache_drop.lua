-- Drops the value of KEYS[1], and tells every gateway, which may hold a copy in memory.
redis.call('UNLINK', KEYS[1])
redis.pcall('PUBLISH', 'ggw:cache:gone', KEYS[1])
return 1
