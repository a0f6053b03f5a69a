-- Takes tokens for many requests in one step: for each request, from all its buckets or from none.
--
-- KEYS[i]  one bucket; the buckets of a request stand together
-- ARGV[i]  its packed wish: tokens per microsecond, burst, cost (doubles), then a byte of flags
-- Returns  the clock in microseconds (double), then for each bucket its tokens (double) and whether it had enough (byte)
--
-- A bucket is 16 bytes: tokens, and the microsecond they were counted at. No bucket means a full one, and so does a value
-- that is not a bucket: it is overwritten. The arithmetic mirrors gateway/core/limits.py operation by operation.
local SHADOW, LAST = 1, 2
local GRAIN = 1e-6

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local stored = {}   -- what Redis holds, as this call leaves it
local tokens, at, enough, wishes = {}, {}, {}, {}
local reply = { struct.pack('<d', now) }

local function load(key)
  local level = stored[key]
  if level == nil then
    local value = redis.pcall('GET', key)
    level = false
    if type(value) == 'string' and #value == 16 then
      local t, a = struct.unpack('<dd', value)
      if t >= 0 and a == a then level = { t, a } end
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
  if not (t <= burst) then t = burst end
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

local function store(key, t, a, per_us, burst)
  stored[key] = { t, a }
  -- Past the time to be full again an absent bucket says the same. The rest covers a clock that runs a little apart.
  local ttl = math.min(math.ceil((burst - t) / per_us / 1000) + 5000, 1e12)
  redis.call('SET', key, struct.pack('<dd', t, a), 'PX', string.format('%.0f', ttl))
end

local first = 1
local allowed = true
for i = 1, #KEYS do
  local per_us, burst, cost, flags = struct.unpack('<dddB', ARGV[i])
  wishes[i] = { per_us, burst, cost }
  refill(i, load(KEYS[i]), per_us, burst)
  enough[i] = tokens[i] >= cost
  local shadow = flags % 2 == SHADOW
  if not enough[i] and not shadow then allowed = false end
  if flags >= LAST then
    for j = first, i do
      local wish = wishes[j]
      local before = stored[KEYS[j]]
      if allowed and enough[j] then
        tokens[j] = tokens[j] - wish[3]
        store(KEYS[j], tokens[j], at[j], wish[1], wish[2])
      elseif before and now < before[2] then
        store(KEYS[j], tokens[j], now, wish[1], wish[2])
      end
      reply[#reply + 1] = struct.pack('<dB', tokens[j], enough[j] and 1 or 0)
    end
    first = i + 1
    allowed = true
  end
end
return table.concat(reply)
