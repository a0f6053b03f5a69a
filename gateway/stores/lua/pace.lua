-- Records what a gateway heard of GitLab's limit on a credential, for the other gateways.
--
-- KEYS[1]  the note, four doubles: when GitLab may be asked again, the rate, until when that holds, when it was heard;
--          instants in microseconds of Redis's clock
-- ARGV     times in seconds: how much longer GitLab does not want to be asked; the rate; how much longer the rate holds;
--          how long ago it was heard, less than 0 where no rate is known
-- A wait is never shortened: an older answer may arrive later. Of two rates the one heard last counts.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local blocked = now + ARGV[1] * 1000000
local rate, until_, heard = tonumber(ARGV[2]), now + ARGV[3] * 1000000, now - ARGV[4] * 1000000
if tonumber(ARGV[4]) < 0 then rate, until_, heard = 0, 0, 0 end

local value = redis.pcall('GET', KEYS[1])
if type(value) == 'string' and #value == 32 then
  local b, r, u, h = struct.unpack('<dddd', value)
  -- Nothing holds for longer than an hour from now, whatever Redis's clock did meanwhile.
  if b > blocked and b <= now + 3600000000 then blocked = b end
  if h > heard and h <= now and r >= 0 and u <= now + 3600000000 then rate, until_, heard = r, u, h end
end
local left_ms = math.ceil((math.max(blocked, until_) - now) / 1000)
if left_ms <= 0 then left_ms = 1 end
-- A note that there is plenty is kept for as long as another gateway may believe the contrary.
redis.call('SET', KEYS[1], struct.pack('<dddd', blocked, rate, until_, heard), 'PX', math.max(left_ms, 60000))
return left_ms
