-- Adds one exchanged credential, and forgets some that ended long ago: at most a hundred, so that nobody waits for it.
-- KEYS: records (digest -> JSON), ids (id -> digest), used (id -> instant), ends (digests by their ends); one hash slot.
-- ARGV: id, digest in hex, record, its end, the instant up to which ended ones are forgotten, how many there may be.
-- Returns 'ok', 'taken' or 'too_many'.
local id, digest, record = ARGV[1], ARGV[2], ARGV[3]

if redis.call('HEXISTS', KEYS[1], digest) == 1 or redis.call('HEXISTS', KEYS[2], id) == 1 then
  return 'taken'
end
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', ARGV[5], 'LIMIT', 0, 100)) do
  -- Its id is forgotten with it, as far as it can be read.
  local readable, other = pcall(cjson.decode, redis.call('HGET', KEYS[1], dead))
  redis.call('HDEL', KEYS[1], dead)
  if readable and type(other) == 'table' and type(other.id) == 'string' then
    redis.call('HDEL', KEYS[2], other.id)
    redis.call('HDEL', KEYS[3], other.id)
  end
  redis.call('ZREM', KEYS[4], dead)
end
if redis.call('ZCARD', KEYS[4]) >= tonumber(ARGV[6]) then
  return 'too_many'
end
redis.call('HSET', KEYS[1], digest, record)
redis.call('HSET', KEYS[2], id, digest)
redis.call('ZADD', KEYS[4], ARGV[4], digest)
return 'ok'
