-- Reads everything about rotated upstream tokens, and notes who has read it.
-- KEYS: records (id -> "version:octets"), readers (gateway -> milliseconds); in one hash slot.
-- ARGV: reader, milliseconds of silence after which a reader is forgotten.
-- Returns { now in milliseconds, records, readers }.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('HSET', KEYS[2], ARGV[1], string.format('%d', now))
local readers = redis.call('HGETALL', KEYS[2])
for at = 1, #readers, 2 do
  if (tonumber(readers[at + 1]) or 0) < now - tonumber(ARGV[2]) then
    redis.call('HDEL', KEYS[2], readers[at])
  end
end
return { now, redis.call('HGETALL', KEYS[1]), readers }
