-- A caller's key, swapped for the upstream's token; a token bucket in Redis, by its clock, one round trip.
local redis_sha
local script = [[
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local b = redis.call('HMGET', KEYS[1], 'l', 'a')
local rate, burst = tonumber(ARGV[1]) / 1000000, tonumber(ARGV[2])
local level = tonumber(b[1]) or burst
level = math.min(burst, level + (now - (tonumber(b[2]) or now)) * rate)
local ok = 0
if level >= 1 then level = level - 1; ok = 1 end
redis.call('HSET', KEYS[1], 'l', tostring(level), 'a', now)
redis.call('PEXPIRE', KEYS[1], 60000)
return {ok, math.floor(level)}
]]

local function send(sock, ...)
    local words = {...}
    local out = {"*" .. #words .. "\r\n"}
    for i = 1, #words do
        local w = tostring(words[i])
        out[#out + 1] = "$" .. #w .. "\r\n" .. w .. "\r\n"
    end
    return sock:send(table.concat(out))
end

local function reply(sock)
    local line, err = sock:receive()
    if not line then return nil, err end
    local kind, rest = line:sub(1, 1), line:sub(2)
    if kind == ":" then return tonumber(rest) end
    if kind == "$" then
        local s = sock:receive(tonumber(rest))
        sock:receive(2)
        return s
    end
    if kind == "*" then
        local all = {}
        for i = 1, tonumber(rest) do all[i] = reply(sock) end
        return all
    end
    return nil, rest
end

local callers = {}
local M = {}

function M.admit(port, key)
    callers[key] = "bench"
    local caller = callers[ngx.var.http_private_token]
    if not caller then return ngx.exit(401) end
    ngx.var.caller = caller
    local sock = ngx.socket.tcp()
    sock:settimeout(1000)
    if not sock:connect("127.0.0.1", port) then return ngx.exit(503) end
    if not redis_sha then
        send(sock, "SCRIPT", "LOAD", script)
        redis_sha = reply(sock)
    end
    send(sock, "EVALSHA", redis_sha, 1, "lua:" .. caller, 10000000, 10000000)
    local got = reply(sock)
    sock:setkeepalive(60000, 128)
    if not got then return ngx.exit(503) end
    ngx.header["RateLimit-Remaining"] = got[2]
    if got[1] == 0 then return ngx.exit(429) end
    ngx.req.set_header("PRIVATE-TOKEN", "glpat-upstream")
end

return M
