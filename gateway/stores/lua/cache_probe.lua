-- Changes nothing, as KEYS[1] is no tag's name, but is refused where a purge or a drop would be.
-- Returns 1, or 0 where those could not be published to the gateways, which may hold copies in memory.
redis.call('SET', KEYS[1], '', 'XX')
redis.call('UNLINK', KEYS[1])
return type(redis.pcall('PUBLISH', 'ggw:cache:probe', '')) == 'number' and 1 or 0
