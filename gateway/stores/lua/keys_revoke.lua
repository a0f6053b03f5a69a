-- Writes the revoked form of a record, unless the record changed since it was read.
-- KEYS: records, revision. ARGV: digest in hex, record as read, record as revoked, a new revision.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
redis.call('SET', KEYS[2], ARGV[4]) -- first: where that is refused, nothing is written that other gateways would not notice
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
