-- Returns the register's revision, and makes one where there is none or something else lies in its place. A Redis that takes
-- no writes keeps none: each answer is a new one then, which says that anything may have changed.
-- KEYS: revision. ARGV: a new one, which nobody had before.
local revision = redis.pcall('GET', KEYS[1])
if type(revision) == 'string' then
  return revision
end
redis.pcall('SET', KEYS[1], ARGV[1])
return ARGV[1]
