-- Notes that one gateway is alive and returns how many are.
--
-- KEYS[1]  the set of gateways, by when they were last seen
-- ARGV[1]  this gateway's name
-- ARGV[2]  seconds after which a silent gateway no longer counts
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return redis.call('ZCARD', KEYS[1])
