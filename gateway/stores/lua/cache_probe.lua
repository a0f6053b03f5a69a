-- Changes nothing, and is refused where a purge or a drop would be: KEYS[1] is no tag's name.
-- Returns 1, or 0 where no gateway's own memory can be told of them.
redis.call('SET', KEYS[1], '', 'XX')
redis.call('UNLINK', KEYS[1])
return type(redis.pcall('PUBLISH', 'ggw:cache:probe', '')) == 'number' and 1 or 0
