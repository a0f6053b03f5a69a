-- Returns the register's revision, and makes one where there is none or something else lies in its place.
-- KEYS: revision. ARGV: a new one, which nobody had before.
local revision = redis.pcall('GET', KEYS[1])
if type(revision) == 'string' then
  return revision
end
redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
