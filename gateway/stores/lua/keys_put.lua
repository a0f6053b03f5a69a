-- Adds one gateway key: judged and written in one step.
-- KEYS: records (digest -> JSON), ids (id -> digest), used (id -> instant); all in one hash slot.
-- ARGV: id, identity, digest in hex, record, created_at, live keys allowed, forget keys dead since before.
-- Returns 'ok', 'taken' or 'too_many'.
local id, identity, digest, record = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local now, allowed, forget_before = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])

if redis.call('HEXISTS', KEYS[1], digest) == 1 or redis.call('HEXISTS', KEYS[2], id) == 1 then
  return 'taken'
end

local live, forgettable = 0, {}
local all = redis.call('HGETALL', KEYS[1])
for at = 1, #all, 2 do
  local other = cjson.decode(all[at + 1])
  if other.identity == identity then
    if not other.revoked_at and (not other.expires_at or other.expires_at > now) then
      live = live + 1
    end
    local ended = math.min(other.revoked_at or math.huge, other.expires_at or math.huge)
    if ended <= forget_before then
      forgettable[#forgettable + 1] = { all[at], other.id }
    end
  end
end
if live >= allowed then
  return 'too_many'
end
for _, dead in ipairs(forgettable) do
  redis.call('HDEL', KEYS[1], dead[1])
  redis.call('HDEL', KEYS[2], dead[2])
  redis.call('HDEL', KEYS[3], dead[2])
end
redis.call('HSET', KEYS[1], digest, record)
redis.call('HSET', KEYS[2], id, digest)
return 'ok'
