-- The value of KEYS[1] is dropped, and every gateway's own memory is told.
redis.call('UNLINK', KEYS[1])
redis.pcall('PUBLISH', 'ggw:cache:gone', KEYS[1])
return 1
