-- Purges a tag as of now: KEYS[1] remembers when, in microseconds of Redis's clock, for ARGV[1] milliseconds.
-- The next ARGV[2] microseconds are purged in advance.
-- The instant never moves back: a clock that stepped back must not bring anything to life again.
local now = redis.call('TIME')
local at = now[1] * 1000000 + now[2] + ARGV[2]
-- A value that none of our scripts wrote counts as none: it must not keep a purge from being remembered.
local kept = redis.pcall('GET', KEYS[1])
local before = type(kept) == 'string' and #kept <= 20 and tonumber(kept) or 0
if before >= at then at = before + 1 end
redis.call('SET', KEYS[1], string.format('%.0f', at), 'PX', ARGV[1])
-- For the copies in every gateway's memory. By pcall: a user that may not publish here may still purge.
redis.pcall('PUBLISH', 'ggw:cache:gone', KEYS[1])
return at
