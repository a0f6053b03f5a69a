-- Adds one gateway key, and ends the one it replaces: judged and written in one step.
-- KEYS: records (digest -> JSON), ids (id -> digest), used (id -> instant), digests of the identity's keys,
-- revision; one hash slot.
-- ARGV: id, digest in hex, record, created_at, live keys allowed, the instant up to which dead keys are forgotten; then the
-- digest of the key to be replaced, its record as read and its record as it is to be, or three empty strings; a new revision.
-- Returns 'ok', 'taken', 'too_many', or 'changed' where the key to be replaced is not as it was read.
local id, digest, record = ARGV[1], ARGV[2], ARGV[3]
local now, allowed, forget_before = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local older, before, after = ARGV[7], ARGV[8], ARGV[9]

if redis.call('HEXISTS', KEYS[1], digest) == 1 or redis.call('HEXISTS', KEYS[2], id) == 1 then
  return 'taken'
end
if older ~= '' and redis.call('HGET', KEYS[1], older) ~= before then
  return 'changed'
end

local function instant(at)
  return type(at) == 'number' and at or nil
end

local live, forgettable = 0, {}
for _, theirs in ipairs(redis.call('SMEMBERS', KEYS[4])) do
  local text = theirs == older and after or redis.call('HGET', KEYS[1], theirs)
  local readable, other = pcall(cjson.decode, text)
  -- A value that is no record admits nobody and is left as it is: it does not count, so one more key may be made.
  if readable and type(other) == 'table' then
    local revoked_at, expires_at = instant(other.revoked_at), instant(other.expires_at)
    if not revoked_at and (not expires_at or expires_at > now) then
      live = live + 1
    end
    local ended = math.min(revoked_at or math.huge, expires_at or math.huge)
    if ended <= forget_before and type(other.id) == 'string' then
      forgettable[#forgettable + 1] = { theirs, other.id }
    end
  end
end
if live >= allowed then
  return 'too_many'
end
redis.call('SET', KEYS[5], ARGV[10]) -- first: where that is refused, nothing is written that other gateways would not notice
for _, dead in ipairs(forgettable) do
  redis.call('HDEL', KEYS[1], dead[1])
  redis.call('HDEL', KEYS[2], dead[2])
  redis.call('HDEL', KEYS[3], dead[2])
  redis.call('SREM', KEYS[4], dead[1])
end
if older ~= '' then
  redis.call('HSET', KEYS[1], older, after)
end
redis.call('HSET', KEYS[1], digest, record)
redis.call('HSET', KEYS[2], id, digest)
redis.call('SADD', KEYS[4], digest)
return 'ok'
