-- A tag is purged now: KEYS[1] remembers when, in microseconds of Redis's clock, for ARGV[1] milliseconds.
-- ARGV[2] microseconds more are purged in advance.
-- Never earlier than it already was: a clock that stepped back must not bring anything to life again.
local now = redis.call('TIME')
local at = now[1] * 1000000 + now[2] + ARGV[2]
-- What no script of ours wrote there counts as nothing: it must not keep a purge from being remembered.
local kept = redis.pcall('GET', KEYS[1])
local before = type(kept) == 'string' and #kept <= 20 and tonumber(kept) or 0
if before >= at then at = before + 1 end
redis.call('SET', KEYS[1], string.format('%.0f', at), 'PX', ARGV[1])
-- Told to every gateway's own memory. Who may not publish here may still purge: pcall.
redis.pcall('PUBLISH', 'ggw:cache:gone', KEYS[1])
return at
