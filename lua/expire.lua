-- Expire one batch of due reservations of one shard.
--
-- Reads and checks everything first, then writes. Redis keeps the writes of a script that fails
-- half way, so nothing may fail once a unit has moved: the types, numbers and rights that the
-- writes depend on are all tried before.
--
-- KEYS
--   KEYS[1]  index       ZSET    reservation id -> ExpiresAt
--   KEYS[2]  events      STREAM  one entry per expired reservation
--   KEYS[3]  quarantine  HASH    reservation id -> why it cannot be expired, since when, and its score; with
--                                `retry=` a note: it is still in the index, at that score, to be tried again
--   KEYS[4]  stats       HASH    running totals, quarantined also by reason; one that is damaged or
--                                would pass 2^53 starts anew;
--                                rate_until: Unix ms up to which the rate is used up;
--                                token: text that tells this inventory from others;
--                                ticks: number of the last call in company
--   KEYS[5]  workers     ZSET    worker id -> time of its last tick, Unix ms
--   KEYS[6]  about       HASH    worker id -> what it says of itself
-- Reservation and stock keys are named from a prefix; they must share the hash tag of KEYS[1].
--
-- ARGV
--   ARGV[1]   batch               most reservations to take; 0 takes none and only reports
--   ARGV[2]   grace_ms            time to wait after ExpiresAt, ms
--   ARGV[3]   now_ms              Unix ms, maybe with a fraction; empty: the server's own clock
--   ARGV[4]   latest_ms           a later clock is not believed, and nothing is taken or written, unless
--                                 another worker has ticked after that time; empty: any clock is believed
--   ARGV[5]   brake               nothing is taken if more are overdue; 0: no brake
--   ARGV[6]   counted_from_ms     Unix ms; the brake does not count what was overdue at that time; 0, or
--                                 more than a minute ahead: it counts everything
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
--   ARGV[24]  ticks               channel that tells the other workers of this tick: `<token> <number> <first
--                                 ExpiresAt in the index, Unix ms, or nothing> <overdue> <worker>`
--   ARGV[25]  about               what the worker says of itself
--   ARGV[26]  token               random letters and digits; stored if the inventory has no token yet
--   ARGV[27]  saved_ms            the rate may save up what it allows in this time, ms
--   ARGV[28]  ended               and all after it: the other status words of the inventory, lower case
--
-- Returns  every number as a decimal string
--   [1]  now, Unix ms with three decimals
--   [2]  next ExpiresAt in the index, Unix ms; empty: none; held by the rate: when it allows more, less the grace
--   [3]  overdue reservations left in the index
--   [4]  expired      id, order_id, product_id, quantity, ExpiresAt in Unix ms, ...
--   [5]  skipped      id, status, ...
--   [6]  rescheduled  id, its new score in Unix ms, ...: its own ExpiresAt, or when it is tried again, less the grace
--   [7]  quarantined  id, reason, ...; in a dry run also what would be tried again
--   [8]  why less than the batch was taken: clock, brake, rate; else empty
--   [9]  `<token> <number>` of this call; empty: there is no other worker

local index, events, quarantine, stats, workers, about = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local batch, grace_ms, now_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local latest_ms, brake, counted_from_ms = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local rate, saved_ms = tonumber(ARGV[7]), tonumber(ARGV[27])
local is_dry_run = ARGV[8] == '1'
local retention_ms, events_maxlen = ARGV[9], ARGV[10] -- texts: Redis is slow at writing numbers as arguments
local worker, unit_ms = ARGV[11], tonumber(ARGV[12])
local reservation_prefix, stock_prefix = ARGV[13], ARGV[14]
local ORDER_ID, PRODUCT_ID, QUANTITY, STATUS, EXPIRES_AT = ARGV[15], ARGV[16], ARGV[17], ARGV[18], ARGV[19]
local AVAILABLE, RESERVED = ARGV[20], ARGV[21]
local ACTIVE, EXPIRED, ticks, token = ARGV[22], ARGV[23], ARGV[24], ARGV[26]
local is_ended = {}
for _, word in ipairs({unpack(ARGV, 28)}) do is_ended[word] = true end

local call, pcall = redis.call, redis.pcall
local MAX = 9007199254740992 -- 2^53: above it a Lua number skips integers
local MAX_TEXT = '9007199254740992'
local MAX_BATCH_BYTES = 1024 * 1024 -- of ids: the caller has the whole answer in memory
local FIRST_SLICE = 16 -- ids that are read before it is known how long they are
local MAY_PASS = {reservation_missing = true, stock_missing = true} -- a writer is not done yet, an import is under way
local FIRST_RETRY_MS, RETRIED_MS = 1000, 60 * 1000
local WORKER_FORGOTTEN_MS = 60 * 60 * 1000 -- longer than the longest interval
local AHEAD_MS = 60 * 1000 -- a time that lies further ahead was written by a wrong clock
local SWEPT = 100

local function text(number)
  return string.format('%.0f', number) -- exact to 2^53; an integer format is a C long, on some servers of 32 bits
end

-- Exact or nil: the form that HINCRBY accepts, no leading zero, no exponent.
local function integer(value)
  if value == '0' then return 0 end
  local digits = value and value:match('^%-?([1-9]%d*)$')
  if not digits or #digits > #MAX_TEXT or (#digits == #MAX_TEXT and digits > MAX_TEXT) then return nil end
  return tonumber(value)
end

local function timestamp(value)
  if not value or #value > 24 or not value:find('^%d+%.?%d*$') then return nil end
  return tonumber(value)
end

local function unix_ms(time)
  return math.max(-MAX, math.min(MAX, math.floor(time * unit_ms))) + 0 -- no -0
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

-- Why HMGET answered with an error: `wrong_type`, or `forbidden` if an empty prefix lets an id name a key that this
-- user may not read. Behind a prefix that concerns every key, and is raised like any other error.
local function refusal(row, key, prefix)
  if not row.err then return nil end
  if prefix == '' and pcall('TYPE', key).err then return 'forbidden' end
  if type_of(key) ~= 'hash' then return 'wrong_type' end
  call('HMGET', key, 'field')
end

-- Redis 7 and later have rights to read a key and not write it. A user who may write a prefix followed by
-- random text may write every key of that prefix; else each key is tried.
local nobody = '\0' .. token
local function may_write(key)
  return not redis.acl_check_cmd or redis.acl_check_cmd('HSET', key, 'field', 'value')
end
local may_write_reservations, may_write_stock = may_write(reservation_prefix .. nobody), may_write(stock_prefix .. nobody)
local not_writable

-- As in `refusal`: the entry is judged if the prefix is empty, else nothing is written at all.
local function is_forbidden(key, prefix)
  if may_write(key) then return false end
  if prefix ~= '' then not_writable = key end
  return prefix == ''
end

-- While a Redis Cluster moves a slot, its old node refuses every key that is not there, one of ours that a
-- write has just emptied too: the script would fail half way. So nothing is done until the move is over.
local absent = pcall('EXISTS', reservation_prefix .. nobody)
if type(absent) == 'table' and absent.err:find('non local', 1, true) then
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

-- To a worker that was suspended the server's clock seems to jump. If another worker ticked meanwhile, time has passed.
local function is_believed()
  if not latest_ms or now_ms <= latest_ms then return true end
  for _, id in ipairs(call('ZRANGEBYSCORE', workers, string.format('(%.3f', latest_ms), exact_now, 'LIMIT', 0, 2)) do
    if id ~= worker then return true end
  end
  return false
end

local held = ''
if batch > 0 and not is_believed() then
  batch, held = 0, 'clock'
elseif batch > 0 and brake > 0 then
  local counted_from = '-inf'
  if counted_from_ms > 0 and counted_from_ms <= now_ms + AHEAD_MS then
    counted_from = string.format('(%.6f', (math.min(counted_from_ms, now_ms) - grace_ms) / unit_ms)
  end
  if call('ZCOUNT', index, counted_from, before_cutoff) > brake then batch, held = 0, 'brake' end
end
local allowed = batch -- by the rate
local paced_from -- Unix ms up to which the rate is used up
if batch > 0 and rate > 0 then
  saved_ms = math.ceil(saved_ms * rate / 1000 - 1e-6) * 1000 / rate -- whole reservations
  paced_from = timestamp(call('HMGET', stats, 'rate_until')[1]) or 0
  if paced_from > now_ms + saved_ms then paced_from = 0 end -- the clock has gone back
  paced_from = math.max(paced_from, now_ms - saved_ms)
  allowed = math.max(0, math.min(batch, math.floor((now_ms - paced_from + 0.001) * rate / 1000)))
end

local stock = {} -- product id -> its counters, and the units this batch gives back

local function read_stock(product_id)
  local key = stock_prefix .. product_id
  local counters = {key = key, plain = false, units = 0}
  local row = pcall('HMGET', key, AVAILABLE, RESERVED)
  local refused = refusal(row, key, stock_prefix)
  if refused == 'forbidden' then
    counters.reason = 'key_forbidden'
    return counters
  elseif refused then
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
  if not may_write_stock and is_forbidden(key, stock_prefix) then counters.reason = 'key_forbidden' end
  return counters
end

local quantities = {} -- text -> number: most are the same few

-- What to do with one due reservation: its outcome, then what the outcome's list holds of it.
local function judge(key, row, score_text)
  local refused = refusal(row, key, reservation_prefix)
  if refused == 'forbidden' then return 'quarantined', 'key_forbidden' end
  if refused then return 'quarantined', 'reservation_wrong_type' end
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
  if has_wrong_unit(tonumber(score_text)) then return 'quarantined', 'unit_mismatch' end
  if expires_at and expires_at ~= score_text then
    local time = timestamp(expires_at)
    if not time then return 'quarantined', 'expires_at_invalid' end
    if has_wrong_unit(time) then return 'quarantined', 'unit_mismatch' end
    if time >= cutoff then return 'rescheduled', expires_at end
  end
  if not product_id then return 'quarantined', 'product_id_missing' end
  if not quantity or quantity < 1 then return 'quarantined', 'quantity_invalid' end

  local counters = stock[product_id]
  if not counters then
    counters = read_stock(product_id)
    stock[product_id] = counters
  end
  if counters.reason then return 'quarantined', counters.reason end
  if counters.reserved and counters.reserved - counters.units < quantity then
    return 'quarantined', 'reserved_too_small'
  end
  if quantity > MAX - counters.units - math.max(counters.available or 0, 0) then -- below 0 in shops that take backorders
    return 'quarantined', 'available_overflow'
  end
  if not may_write_reservations and is_forbidden(key, reservation_prefix) then return 'quarantined', 'key_forbidden' end
  counters.units = counters.units + quantity
  quantities[row[2]] = quantity
  return 'expired', order_id, product_id, row[2], expires_at or score_text
end

-- The note on an entry that is tried again: first seen at (Unix ms), first score. A note that did not give the entry
-- the score that it has is about its past.
local function read_note(entry, score_text)
  local at, score, retry = entry:match('^reason=%S+ at=(%d+) score=(%S+) retry=(%S+)$')
  if not retry or tonumber(retry) ~= tonumber(score_text) or not tonumber(score) then return nil end
  return {at = math.min(tonumber(at), math.floor(now_ms)), score = score}
end

-- The score at which an entry is tried again, at twice its age; nil once it is too old for that.
local function retry_score(first_seen)
  local age = now_ms - first_seen
  if age >= RETRIED_MS then return nil end
  local look_ms = math.min(now_ms + math.max(age, FIRST_RETRY_MS), first_seen + RETRIED_MS)
  return text(math.ceil((look_ms - grace_ms) / unit_ms))
end

local expired, skipped, rescheduled, quarantined = {}, {}, {}, {}
local expired_keys, new_scores, new_entries, old_entries = {}, {}, {}, {}
local reasons = {} -- reason -> how many this batch quarantines for it
local soonest = math.huge -- of the new scores

-- A time as Unix ms. Most are written like that already, and writing one anew takes a tenth of the whole script.
local function expiry_text(time)
  if unit_ms == 1 and #time < 16 and time:find('^[1-9]%d*$') then return time end
  return text(unix_ms(tonumber(time)))
end

local taken, bytes, longest = 0, 0, 1

-- Judge one due entry and note what is to be written; false if the batch has no room for it. `entry` is what the
-- quarantine has of it.
local function take(id, score_text, entry)
  local key = reservation_prefix .. id
  local row = pcall('HMGET', key, PRODUCT_ID, QUANTITY, STATUS, ORDER_ID, EXPIRES_AT)
  local size = #id + #(row[1] or '') + #(row[4] or '')
  if taken > 0 and bytes + size > MAX_BATCH_BYTES then return false end
  taken, bytes, longest = taken + 1, bytes + size, math.max(longest, size)

  local note = entry and read_note(entry, score_text)
  if note then score_text = note.score end
  local outcome, a, b, c, d = judge(key, row, score_text)
  if outcome == 'expired' then
    local n = #expired
    expired[n + 1], expired[n + 2], expired[n + 3], expired[n + 4] = id, a, b, c
    expired[n + 5] = expiry_text(d)
    expired_keys[#expired_keys + 1] = key
  elseif outcome == 'skipped' then
    local n = #skipped
    skipped[n + 1], skipped[n + 2] = id, a
  elseif outcome == 'quarantined' then
    local first_seen = note and note.at or math.floor(now_ms)
    local retry = MAY_PASS[a] and not is_dry_run and retry_score(first_seen)
    local n = #new_entries
    if retry then
      outcome = 'rescheduled'
      new_entries[n + 1] = id
      new_entries[n + 2] = 'reason=' .. a .. ' at=' .. text(first_seen) .. ' score=' .. score_text .. ' retry=' .. retry
      a = retry
    else
      new_entries[n + 1], new_entries[n + 2] = id, 'reason=' .. a .. ' at=' .. now .. ' score=' .. score_text
      quarantined[#quarantined + 1], quarantined[#quarantined + 2] = id, a
      reasons[a] = (reasons[a] or 0) + 1
    end
    entry = nil -- is replaced
  end
  if outcome == 'rescheduled' then
    local n = #rescheduled
    rescheduled[n + 1], rescheduled[n + 2] = id, expiry_text(a)
    new_scores[n + 1], new_scores[n + 2] = a, id
    soonest = math.min(soonest, tonumber(a))
  end
  if entry then old_entries[#old_entries + 1] = id end
  return true
end

local quarantine_size = batch > 0 and call('HLEN', quarantine) or 0
local is_full, is_empty = false, false -- the batch; the index, of what is due
while taken < allowed and not is_full and not is_empty do
  local room = taken == 0 and FIRST_SLICE or math.max(1, math.floor((MAX_BATCH_BYTES - bytes) / longest))
  local wanted = math.min(room, allowed - taken)
  local due = call('ZRANGEBYSCORE', index, '-inf', before_cutoff, 'WITHSCORES', 'LIMIT', taken, wanted)
  is_empty = #due < 2 * wanted
  local entries = {}
  if quarantine_size > 0 and #due > 0 then
    local ids = {}
    for i = 1, #due, 2 do ids[#ids + 1] = due[i] end
    entries = call('HMGET', quarantine, unpack(ids))
  end
  for i = 1, #due, 2 do
    is_full = not take(due[i], due[i + 1], entries[(i + 1) / 2])
    if is_full then break end
  end
end
local overdue = is_empty and not is_full and 0 or call('ZCOUNT', index, '-inf', before_cutoff) - taken
local next_in_index = call('ZRANGE', index, taken, taken, 'WITHSCORES')
local next_time = math.min(soonest, next_in_index[2] and tonumber(next_in_index[2]) or math.huge)
local head = next_time < math.huge and text(unix_ms(next_time)) or ''
if paced_from then
  paced_from = paced_from + taken * 1000 / rate
  if taken == allowed and allowed < batch and overdue > 0 then held = 'rate' end
end

local mark = ''
local function reply()
  local next_look = held == 'rate' and text(math.ceil(paced_from + saved_ms - grace_ms - 0.001)) or head
  return {exact_now, next_look, text(overdue), expired, skipped, rescheduled, quarantined, held, mark}
end

if is_dry_run or held == 'clock' then return reply() end
if not_writable then return redis.error_reply('NOPERM this user may not HSET ' .. not_writable) end

local totals = {}
if taken > 0 then
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

local others = call('ZCARD', workers) - 1

local function forget(first, last)
  local ids = call('ZRANGE', workers, first, last)
  call('ZREMRANGEBYRANK', workers, first, last)
  call('HDEL', about, unpack(ids))
  others = others - #ids
end

if others > 0 then
  local old = call('ZCOUNT', workers, '-inf', '(' .. text(math.floor(now_ms) - WORKER_FORGOTTEN_MS))
  if old > 0 then forget(0, math.min(old, 1000) - 1) end
  local ahead = call('ZCOUNT', workers, '(' .. text(math.floor(now_ms) + AHEAD_MS), '+inf')
  if ahead > 0 then forget(-math.min(ahead, 1000), -1) end
end
if others > 0 then
  local known = call('HMGET', stats, 'token', 'ticks')
  if known[1] and #known[1] <= 64 and known[1]:find('^%w+$') then token = known[1] end
  local number = integer(known[2]) or 0
  number = text(number >= 0 and number < MAX and number + 1 or 1)
  call('HSET', stats, 'token', token, 'ticks', number)
  mark = token .. ' ' .. number
end

if taken > 0 then
  call('ZREMRANGEBYRANK', index, 1, 0)
  if #old_entries > 0 then call('HDEL', quarantine, unpack(old_entries)) end
  if #new_entries > 0 then call('HSET', quarantine, unpack(new_entries)) end
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
  call('ZREMRANGEBYRANK', index, 0, taken - 1)
  if #new_scores > 0 then call('ZADD', index, unpack(new_scores)) end
  if paced_from then
    totals[#totals + 1], totals[#totals + 2] = 'rate_until', string.format('%.3f', paced_from)
  end
  call('HSET', stats, unpack(totals))
elseif overdue == 0 and quarantine_size > 0 then
  -- Nothing is due, so no entry has the score that a note gave it in the past: it left the index meanwhile.
  local start = math.floor(now_ms) % math.max(1, quarantine_size - SWEPT + 1) -- any number is a cursor
  local found = pcall('HSCAN', quarantine, start, 'COUNT', SWEPT)
  for i = 1, found.err and 0 or #found[2], 2 do
    local retry = found[2][i + 1]:match('^reason=%S+ at=%d+ score=%S+ retry=(%S+)$')
    if retry and (tonumber(retry) or cutoff) < cutoff then call('HDEL', quarantine, found[2][i]) end
  end
end

if mark ~= '' and batch > 0 and held == '' then
  pcall('PUBLISH', ticks, mark .. ' ' .. head .. ' ' .. text(overdue) .. ' ' .. worker)
end
return reply()
