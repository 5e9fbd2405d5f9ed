-- Expire one batch of due reservations of one shard.
--
-- Reads and checks everything first, then writes. Redis keeps the writes of a script that fails
-- half way, so nothing may fail once a unit has moved: the types, numbers and rights that the
-- writes depend on are all tried before.
--
-- KEYS
--   KEYS[1]  index       ZSET    reservation id -> ExpiresAt
--   KEYS[2]  events      STREAM  one entry per expired reservation
--   KEYS[3]  quarantine  HASH    reservation id -> why it cannot be expired
--   KEYS[4]  stats       HASH    running totals, quarantined also by reason; one that is damaged or
--                                would pass 2^53 starts anew;
--                                rate_until: Unix ms up to which the rate is used up
--   KEYS[5]  workers     ZSET    worker id -> time of its last tick, Unix ms
--   KEYS[6]  about       HASH    worker id -> what it says of itself
-- Reservation and stock keys are named from a prefix; they must share the hash tag of KEYS[1].
--
-- ARGV
--   ARGV[1]   batch               most reservations to take; 0 takes none and only reports
--   ARGV[2]   grace_ms            time to wait after ExpiresAt, ms
--   ARGV[3]   now_ms              Unix ms, maybe with a fraction; empty: the server's own clock
--   ARGV[4]   latest_ms           a clock beyond it is not believed, and nothing is taken; empty: any is
--   ARGV[5]   brake               nothing is taken where more are overdue; 0: no brake
--   ARGV[6]   resumed_ms          Unix ms; the brake does not count what was due until then
--   ARGV[7]   rate                most reservations per second, over all workers; 0: no limit
--   ARGV[8]   dry_run             1: nothing is written
--   ARGV[9]   retention_ms        how long an Expired reservation stays; 0 deletes it, -1 keeps it
--   ARGV[10]  events_maxlen       approximate length of the stream; 0 writes no events
--   ARGV[11]  worker              id of the calling worker
--   ARGV[12]  unit_ms             ms in one unit of the score and of expires_at: 1 or 1000
--   ARGV[13]  reservation_prefix  + reservation id = key of the reservation
--   ARGV[14]  stock_prefix        + product id = key of the stock
--   ARGV[15]  order_id            field of the reservation; empty: not kept
--   ARGV[16]  product_id          field of the reservation
--   ARGV[17]  quantity            field of the reservation
--   ARGV[18]  status              field of the reservation; empty: not kept, needs retention_ms 0
--   ARGV[19]  expires_at          field of the reservation; empty: not kept
--   ARGV[20]  available           field of the stock; empty: not kept
--   ARGV[21]  reserved            field of the stock; empty: not kept
--   ARGV[22]  active              status word
--   ARGV[23]  expired             status word
--   ARGV[24]  ticks               channel that tells the other workers of this tick
--   ARGV[25]  about               what the worker says of itself
--   ARGV[26]  token               proposed by the worker
--   ARGV[27]  saved_ms            how long the rate may save up
--   ARGV[28]  ended               and all after it: the other status words of the inventory, lower case
--
-- Returns  every number as a decimal string
--   [1]  now, Unix ms with three decimals
--   [2]  next ExpiresAt in the index, Unix ms; empty: none; held by the rate: when it allows more, less the grace
--   [3]  overdue reservations left in the index
--   [4]  expired      id, order_id, product_id, quantity, ExpiresAt in Unix ms, ...
--   [5]  skipped      id, status, ...
--   [6]  rescheduled  id, ExpiresAt in Unix ms, ...
--   [7]  quarantined  id, reason, ...
--   [8]  why less than the batch was taken: clock, brake, rate; else empty
--   [9]  token and number of this call; empty: no other worker

local index, events, quarantine, stats, workers, about = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local batch, grace_ms, now_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local latest_ms, brake, resumed_ms, rate = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local is_dry_run = ARGV[8] == '1'
local retention_ms, events_maxlen = ARGV[9], ARGV[10] -- texts: Redis is slow at writing numbers as arguments
local worker, unit_ms = ARGV[11], tonumber(ARGV[12])
local reservation_prefix, stock_prefix = ARGV[13], ARGV[14]
local ORDER_ID, PRODUCT_ID, QUANTITY, STATUS, EXPIRES_AT = ARGV[15], ARGV[16], ARGV[17], ARGV[18], ARGV[19]
local AVAILABLE, RESERVED = ARGV[20], ARGV[21]
local ACTIVE, EXPIRED, ticks = ARGV[22], ARGV[23], ARGV[24]
local token, saved_ms = ARGV[26], ARGV[27]
local is_ended = {}
for _, word in ipairs({unpack(ARGV, 28)}) do is_ended[word] = true end

local call, pcall = redis.call, redis.pcall
local MAX = 9007199254740992 -- 2^53: above it a Lua number skips integers
local MAX_TEXT = '9007199254740992'
local WORKER_FORGOTTEN_MS = 24 * 60 * 60 * 1000

local function text(number)
  return string.format('%d', number) -- exact to 2^53, and faster than %.0f
end

-- Exact or nil: the form that HINCRBY accepts, no leading zero, no exponent.
local function integer(value)
  if value == '0' then return 0 end
  local digits = value and value:match('^%-?([1-9]%d*)$')
  if not digits or #digits > #MAX_TEXT or (#digits == #MAX_TEXT and digits > MAX_TEXT) then return nil end
  return tonumber(value)
end

local function timestamp(value)
  if #value > 24 or not value:find('^%d+%.?%d*$') then return nil end
  return tonumber(value)
end

local function unix_ms(time)
  return math.max(-MAX, math.min(MAX, math.floor(time * unit_ms)))
end

-- Seconds read as milliseconds would make every reservation of a shop due at once, milliseconds
-- read as seconds would make it due never.
local function has_wrong_unit(time)
  if unit_ms == 1 then return time >= 1e9 and time < 1e10 end
  return time >= 1e11
end

local function type_of(key)
  return call('TYPE', key).ok
end

-- Whether what HMGET answered says that the key holds another type. Any other error is raised.
local function is_no_hash(row, key)
  if not row.err then return false end
  if type_of(key) ~= 'hash' then return true end
  call('HMGET', key, 'field')
end

-- Redis 7 and later have rights to read a key and not write it. Whoever may write a prefix followed
-- by a byte that no pattern names may write every key of that prefix; else each key is tried.
local function may_write(key)
  return not redis.acl_check_cmd or redis.acl_check_cmd('HSET', key, 'field', 'value')
end
local is_free = may_write(reservation_prefix .. '\0') and may_write(stock_prefix .. '\0')
local forbidden

local function check_right(key)
  if not is_free and not may_write(key) then forbidden = key end
end

-- While a Redis Cluster moves a slot, its old node refuses every key that is not there, one of ours that a
-- write has just emptied too: the script would fail half way. So nothing is done until the move is over.
local nobody = pcall('EXISTS', reservation_prefix .. '\0')
if type(nobody) == 'table' and nobody.err:find('non local', 1, true) then
  return redis.error_reply('TRYAGAIN the slot of this shard is being moved to another node; nothing was done')
end

for key, kind in pairs({
  [index] = 'zset', [events] = 'stream', [quarantine] = 'hash', [stats] = 'hash', [workers] = 'zset', [about] = 'hash',
}) do
  local found = type_of(key)
  if found ~= kind and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. key .. ' holds a ' .. found .. ' where a ' .. kind .. ' belongs')
  end
end

if not now_ms then
  local time = call('TIME')
  now_ms = tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000
end
local now = text(math.floor(now_ms))
local exact_now = string.format('%.3f', now_ms)
local cutoff = (now_ms - grace_ms) / unit_ms
local before_cutoff = string.format('(%.6f', cutoff) -- microseconds, in either unit

local held = ''
local paced_from, step_ms -- Unix ms up to which the rate is used up; what may be saved up, and is waited for
if batch > 0 and latest_ms and now_ms > latest_ms then
  batch, held = 0, 'clock'
elseif batch > 0 and brake > 0 then
  local after_resumption = string.format('(%.6f', resumed_ms / unit_ms)
  if call('ZCOUNT', index, after_resumption, before_cutoff) > brake then batch, held = 0, 'brake' end
end
if batch > 0 and rate > 0 then
  step_ms = math.min(math.max(100, 1000 / rate), 1000 * batch / rate)
  paced_from = tonumber(call('HMGET', stats, 'rate_until')[1] or '') or 0
  if paced_from > now_ms + step_ms then paced_from = now_ms end -- the clock has gone back
  paced_from = math.max(paced_from, now_ms - step_ms)
  local allowed = math.floor((now_ms - paced_from) * rate / 1000 + 1e-6)
  if allowed < batch then batch, held = math.max(allowed, 0), 'rate' end
end

local stock = {} -- product id -> its counters, and the units this batch gives back

local function read_stock(product_id)
  local key = stock_prefix .. product_id
  local counters = {key = key, plain = false, units = 0}
  local row = pcall('HMGET', key, AVAILABLE, RESERVED)
  if is_no_hash(row, key) then
    counters.plain = type_of(key) == 'string' and AVAILABLE ~= ''
    if not counters.plain then
      counters.reason = 'stock_wrong_type'
      return counters
    end
    row = {call('GET', key)}
  elseif not row[1] and not row[2] then
    counters.reason = 'stock_missing'
    return counters
  end
  if AVAILABLE ~= '' then
    counters.available = integer(row[1])
    if not counters.available then counters.reason = 'available_invalid' end
  end
  if RESERVED ~= '' and not counters.plain then
    counters.reserved = integer(row[2])
    if not counters.reserved then counters.reason = counters.reason or 'reserved_invalid' end
  end
  return counters
end

local quantities = {} -- text -> number: most are the same few

-- What to do with one due reservation: its outcome, then what the outcome's list holds of it.
local function judge(key, score_text)
  local row = pcall('HMGET', key, PRODUCT_ID, QUANTITY, STATUS, ORDER_ID, EXPIRES_AT)
  if is_no_hash(row, key) then return 'quarantined', 'reservation_wrong_type' end
  local product_id, quantity = row[1], quantities[row[2]] or integer(row[2])
  local status = STATUS ~= '' and row[3] or ACTIVE
  local order_id = ORDER_ID ~= '' and row[4] or ''
  local expires_at = EXPIRES_AT ~= '' and row[5]

  if not product_id and not row[2] and call('EXISTS', key) == 0 then
    return 'quarantined', 'reservation_missing'
  end
  if status ~= ACTIVE then
    if status == EXPIRED or is_ended[status:lower()] then return 'skipped', status end
    return 'quarantined', 'status_unknown'
  end
  local time = tonumber(score_text)
  if has_wrong_unit(time) then return 'quarantined', 'unit_mismatch' end
  if expires_at and expires_at ~= score_text then
    time = timestamp(expires_at)
    if not time then return 'quarantined', 'expires_at_invalid' end
    if has_wrong_unit(time) then return 'quarantined', 'unit_mismatch' end
    if time >= cutoff then return 'rescheduled', time end
  end
  if not product_id then return 'quarantined', 'product_id_missing' end
  if not quantity or quantity < 1 then return 'quarantined', 'quantity_invalid' end

  local counters = stock[product_id]
  if not counters then
    counters = read_stock(product_id)
    stock[product_id] = counters
    check_right(counters.key)
  end
  if counters.reason then return 'quarantined', counters.reason end
  if counters.reserved and counters.reserved - counters.units < quantity then
    return 'quarantined', 'reserved_too_small'
  end
  if quantity > MAX - counters.units - math.max(counters.available or 0, 0) then -- below 0 in shops that take backorders
    return 'quarantined', 'available_overflow'
  end
  check_right(key)
  counters.units = counters.units + quantity
  quantities[row[2]] = quantity
  return 'expired', order_id, product_id, row[2], time
end

local expired, skipped, rescheduled, quarantined = {}, {}, {}, {}
local expired_keys, new_scores, poison, sound = {}, {}, {}, {}
local reasons = {} -- reason -> how many this batch quarantines for it

local due = call('ZRANGEBYSCORE', index, '-inf', before_cutoff, 'WITHSCORES', 'LIMIT', 0, batch)
local overdue = call('ZCOUNT', index, '-inf', before_cutoff) - #due / 2
local next_in_index = call('ZRANGE', index, #due / 2, #due / 2, 'WITHSCORES')
local next_time = next_in_index[2] and tonumber(next_in_index[2]) or math.huge
if paced_from then paced_from = paced_from + #due / 2 * 1000 / rate end
if held == 'rate' and overdue == 0 then held = '' end

for i = 1, #due, 2 do
  local id = due[i]
  local key = reservation_prefix .. id
  local outcome, a, b, c, d = judge(key, due[i + 1])
  if outcome == 'expired' then
    local n = #expired
    expired[n + 1], expired[n + 2], expired[n + 3], expired[n + 4] = id, a, b, c
    expired[n + 5] = text(unix_ms(d))
    expired_keys[#expired_keys + 1] = key
  elseif outcome == 'skipped' then
    local n = #skipped
    skipped[n + 1], skipped[n + 2] = id, a
  elseif outcome == 'rescheduled' then
    local n = #rescheduled
    rescheduled[n + 1], rescheduled[n + 2] = id, text(unix_ms(a))
    next_time = math.min(next_time, a)
    new_scores[n + 1], new_scores[n + 2] = string.format('%.17g', a), id
  else
    local n = #quarantined
    quarantined[n + 1], quarantined[n + 2] = id, a
    reasons[a] = (reasons[a] or 0) + 1
    poison[n + 1], poison[n + 2] = id, 'reason=' .. a .. ' at=' .. now .. ' score=' .. due[i + 1]
  end
  if outcome ~= 'quarantined' then sound[#sound + 1] = id end
end

local mark = ''

local function reply()
  if held == 'rate' then next_time = (paced_from + step_ms - grace_ms) / unit_ms end
  return {
    exact_now,
    next_time < math.huge and text(unix_ms(next_time)) or '',
    text(overdue),
    expired, skipped, rescheduled, quarantined,
    held,
    mark,
  }
end

if is_dry_run then return reply() end
if forbidden then return redis.error_reply('NOPERM this user may not HSET ' .. forbidden) end

local totals = {}
if #due > 0 then
  local units = 0
  for _, counters in pairs(stock) do units = units + counters.units end
  local names = {'expired', 'units', 'skipped', 'rescheduled', 'quarantined', 'batches'}
  local counts = {#expired / 5, units, #skipped / 2, #rescheduled / 2, #quarantined / 2, 1}
  for reason, count in pairs(reasons) do
    names[#names + 1], counts[#counts + 1] = 'quarantined:' .. reason, count
  end
  local before = call('HMGET', stats, unpack(names))
  for i, name in ipairs(names) do
    local total = (integer(before[i]) or 0) + counts[i]
    totals[2 * i - 1], totals[2 * i] = name, text(total < MAX and total or counts[i])
  end
end

-- From here on the script writes. A full server, a replica or a missing right refuses the first
-- use of a command, so each is first used where a refusal leaves every unit in place, some of them
-- only for that: on an empty range, with the values that are there already.
call('ZADD', workers, now, worker)
call('HSET', about, worker, ARGV[25])
call('PEXPIRE', workers, WORKER_FORGOTTEN_MS)
call('PEXPIRE', about, WORKER_FORGOTTEN_MS)
local long_ago = '(' .. text(math.floor(now_ms) - WORKER_FORGOTTEN_MS)
local forgotten = call('ZRANGEBYSCORE', workers, '-inf', long_ago, 'LIMIT', 0, 1000)
if #forgotten > 0 then
  call('ZREMRANGEBYRANK', workers, 0, #forgotten - 1)
  call('HDEL', about, unpack(forgotten))
end
local has_company = call('ZCARD', workers) > 1

if #due > 0 then
  call('ZREMRANGEBYRANK', index, 1, 0)
  if #sound > 0 and call('HLEN', quarantine) > 0 then call('HDEL', quarantine, unpack(sound)) end
  local is_tried = {}
  for _, counters in pairs(stock) do
    if counters.units > 0 and not is_tried[counters.plain] then
      is_tried[counters.plain] = true
      if counters.plain then
        call('INCRBY', counters.key, 0)
      elseif counters.available then
        call('HSET', counters.key, AVAILABLE, text(counters.available))
      else
        call('HSET', counters.key, RESERVED, text(counters.reserved))
      end
    end
  end

  if events_maxlen ~= '0' then
    for i = 1, #expired, 5 do
      call('XADD', events, 'MAXLEN', '~', events_maxlen, '*',
        'reservation_id', expired[i], 'order_id', expired[i + 1], 'product_id', expired[i + 2],
        'quantity', expired[i + 3], 'expires_at', expired[i + 4], 'expired_at', now)
    end
  end
  if retention_ms ~= '-1' then
    for _, key in ipairs(expired_keys) do call('PEXPIRE', key, retention_ms) end -- 0 deletes
  end
  if retention_ms ~= '0' then
    for _, key in ipairs(expired_keys) do call('HSET', key, STATUS, EXPIRED, 'expired_at', now) end
  end
  for _, counters in pairs(stock) do
    if counters.units > 0 then
      if counters.plain then
        call('INCRBY', counters.key, text(counters.units))
      else
        local available = counters.available and text(counters.available + counters.units)
        local reserved = counters.reserved and text(counters.reserved - counters.units)
        if available and reserved then
          call('HSET', counters.key, AVAILABLE, available, RESERVED, reserved)
        else
          call('HSET', counters.key, available and AVAILABLE or RESERVED, available or reserved)
        end
      end
    end
  end
  if #poison > 0 then call('HSET', quarantine, unpack(poison)) end
  call('ZREMRANGEBYRANK', index, 0, #due / 2 - 1)
  if #new_scores > 0 then call('ZADD', index, unpack(new_scores)) end
  if paced_from then
    totals[#totals + 1], totals[#totals + 2] = 'rate_until', string.format('%.3f', paced_from)
  end
  call('HSET', stats, unpack(totals))
end

if has_company then
  local row = call('HMGET', stats, 'token', 'ticks')
  local number = (integer(row[2]) or 0) % MAX + 1
  mark = (row[1] or token) .. ' ' .. text(number)
  call('HSET', stats, 'token', row[1] or token, 'ticks', text(number))
end
local answer = reply()
if has_company and batch > 0 and held == '' then
  pcall('PUBLISH', ticks, mark .. ' ' .. answer[2] .. ' ' .. answer[3] .. ' ' .. worker)
end
return answer
