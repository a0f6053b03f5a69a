-- Writes the revoked form of a record, unless the record changed since it was read.
-- KEYS: records. ARGV: digest in hex, record as read, record as revoked.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
