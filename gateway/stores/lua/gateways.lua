-- Records that one gateway is alive, and returns how many are.
--
-- KEYS[1]  the sorted set of gateways, by when they were last seen
-- ARGV[1]  this gateway's name
-- ARGV[2]  seconds after which a silent gateway no longer counts
local now = tonumber(redis.call('TIME')[1])
local seen = redis.pcall('ZADD', KEYS[1], now, ARGV[1])
if type(seen) == 'table' then
  -- With a value of another type there nobody is counted, and in an outage each gateway would take the whole of each limit.
  if string.find(seen.err, '^WRONGTYPE') then redis.call('DEL', KEYS[1]) end
  redis.call('ZADD', KEYS[1], now, ARGV[1])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return redis.call('ZCARD', KEYS[1])
