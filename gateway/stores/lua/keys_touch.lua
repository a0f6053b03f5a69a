-- Records the last use of a key that exists; it never moves backwards.
-- KEYS: ids (id -> digest), used (id -> instant). ARGV: id, instant.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then
  local before = tonumber(redis.call('HGET', KEYS[2], ARGV[1])) or 0
  if tonumber(ARGV[2]) > before then
    redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
  end
end
return 1
