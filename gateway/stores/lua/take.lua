-- Takes tokens and places for many requests in one step: for each request, from all its buckets or from none.
--
-- KEYS[i]  one bucket; the buckets of a request are adjacent
-- ARGV[i]  its packed wish: tokens per microsecond, burst, cost (doubles), a byte of flags, then the lease's name
-- Returns  the clock in microseconds (double), then for each bucket its tokens (double) and whether it had enough (byte)
--
-- A bucket of tokens is 16 bytes: tokens, and the microsecond they were counted at. A missing bucket counts as a full one,
-- and so does a value that is not a bucket: it is overwritten. A bucket of places is a sorted set of leases, by the
-- microsecond at which they end. The arithmetic mirrors gateway/core/limits.py operation by operation.
local SHADOW, LAST, PLACES = 1, 2, 4           -- flags of a take, added up
local SETTLE, RELEASE, RENEW = 8, 16, 32       -- each stands alone
local GRAIN = 1e-6
local MOST = 1e8          -- no bucket is larger, nor owes more
local LEASE_MS = 60000
local KEYS, ARGV, pack = KEYS, ARGV, struct.pack

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local stored = {}   -- levels by key, as this call has left them so far
local changed = {}  -- the keys that must be written
local read = {}     -- wishes by their packed form: those of one limit are alike
local tokens, at, enough, wishes = {}, {}, {}, {}
local reply = { pack('<d', now) }

-- The command's answer, or false where the key holds a value of another type. Any other error ends the script: otherwise an
-- ACL without that command would make every bucket a full one.
local function told(...)
  local answer = redis.pcall(...)
  if type(answer) ~= 'table' or not answer.err then return answer end
  return not string.find(answer.err, '^WRONGTYPE') and redis.call(...)
end

local function load(key)
  local level = stored[key]
  if level == nil then
    local value = told('GET', key)
    level = false
    if type(value) == 'string' and #value == 16 then
      local t, a = struct.unpack('<dd', value)
      if t >= -MOST and a == a then level = { t, a } end
    end
    stored[key] = level
  end
  return level
end

local function refill(i, level, per_us, burst)
  if not level then
    tokens[i], at[i] = burst, now
    return
  end
  local t, a = level[1], level[2]
  if not (t <= burst) then
    t = burst
  elseif t < -burst then
    t = -burst
  end
  if now <= a then
    tokens[i], at[i] = t, now
    return
  end
  local gain = (now - a) * per_us
  if t + gain >= burst then
    tokens[i], at[i] = burst, now
  elseif gain >= GRAIN then
    tokens[i], at[i] = t + gain, now
  else
    tokens[i], at[i] = t, a
  end
end

-- Only remembers the level. It is written once, after the last request: many of one call often take from one bucket.
local function store(key, t, a, per_us, burst)
  local level = stored[key]
  if not level then
    level = {}
    stored[key] = level
  end
  if not level[3] then changed[#changed + 1] = key end
  level[1], level[2], level[3], level[4] = t, a, per_us, burst
end

local function settle(i, key, per_us, burst, change)
  local level = load(key)
  refill(i, level, per_us, burst)
  if not level and change <= 0 then return end
  tokens[i] = math.min(burst, math.max(-burst, tokens[i] - change))
  store(key, tokens[i], at[i], per_us, burst)
end

local function free(key, burst)
  if not told('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now)) then
    redis.call('DEL', key)
    return burst
  end
  return math.max(-burst, burst - redis.call('ZCARD', key))
end

local function hold(key, lease)
  redis.call('ZADD', key, string.format('%.0f', now + LEASE_MS * 1000), lease)
  redis.call('PEXPIRE', key, LEASE_MS + 5000)
end

local first = 1
local allowed = true
for i = 1, #KEYS do
  local key, wish = KEYS[i], read[ARGV[i]]
  if not wish then
    wish = { struct.unpack('<dddB', ARGV[i]) }
    read[ARGV[i]] = wish
  end
  local per_us, burst, cost, flags, tail = wish[1], wish[2], wish[3], wish[4], wish[5]
  if flags == SETTLE then
    settle(i, key, per_us, burst, cost)
    reply[#reply + 1] = pack('<dB', tokens[i], 1)
    first = i + 1
  elseif flags == RELEASE or flags == RENEW then
    local left = free(key, burst)
    if flags == RENEW then
      hold(key, string.sub(ARGV[i], tail))
    else
      redis.call('ZREM', key, string.sub(ARGV[i], tail))
    end
    reply[#reply + 1] = pack('<dB', left, 1)
    first = i + 1
  else
    wishes[i] = wish
    if flags >= PLACES then
      tokens[i], at[i] = free(key, burst), now
    else
      refill(i, load(key), per_us, burst)
    end
    enough[i] = tokens[i] >= cost
    if not enough[i] and flags % 2 ~= SHADOW then allowed = false end
    if flags % PLACES >= LAST then
      for j = first, i do
        key, wish = KEYS[j], wishes[j]
        local before = stored[key]
        if allowed and enough[j] then
          tokens[j] = tokens[j] - wish[3]
          if wish[4] >= PLACES then
            hold(key, string.sub(ARGV[j], wish[5]))
          else
            store(key, tokens[j], at[j], wish[1], wish[2])
          end
        elseif before and now < before[2] then
          store(key, tokens[j], now, wish[1], wish[2])
        end
        reply[#reply + 1] = pack('<dB', tokens[j], enough[j] and 1 or 0)
      end
      first = i + 1
      allowed = true
    end
  end
end
for _, key in ipairs(changed) do
  local t, a, per_us, burst = unpack(stored[key])
  -- From when the bucket would be full again, an absent one means the same. The rest covers clocks that differ a little.
  local ttl = math.min(math.ceil((burst - t) / per_us / 1000) + 5000, 1e12)
  redis.call('SET', key, pack('<dd', t, a), 'PX', string.format('%.0f', ttl))
end
return table.concat(reply)
