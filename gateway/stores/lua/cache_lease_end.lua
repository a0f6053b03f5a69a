-- Frees the lease KEYS[1] if it is held by the token ARGV[1]. If KEYS[2] says that somebody waits, that is published.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if redis.call('DEL', KEYS[1], KEYS[2]) == 2 then redis.pcall('PUBLISH', 'ggw:cache:gone', KEYS[1]) end
return 1
