-- Resolve a quarantine entry by hand: release a stated quantity of units, or drop it and release none. Either way
-- it leaves the quarantine and the index, and a reservation that is still Active is marked Expired. Everything is
-- checked before the first write. The entry guards against a second call, which finds none; the reservation guards
-- against an entry that is out of date: units are released only while it is Active.
--
-- KEYS
--   KEYS[1]  index        ZSET    reservation id -> ExpiresAt
--   KEYS[2]  reservation  HASH    not changed if it is no hash, or has ended
--   KEYS[3]  stock        HASH or plain counter; not read if no units are released
--   KEYS[4]  quarantine   HASH    reservation id -> why it cannot be expired
--   KEYS[5]  events       STREAM  one entry per expired reservation
--   KEYS[6]  operations   STREAM  what people have done by hand
--
-- ARGV
--   ARGV[1]   reservation id
--   ARGV[2]   product id      of KEYS[3]
--   ARGV[3]   quantity        units to release, 1 to 2^53; 0 drops the entry
--   ARGV[4]   by              who does it
--   ARGV[5]   now_ms          Unix ms; empty: the server's own clock
--   ARGV[6]   retention_ms    how long an Expired reservation stays; 0 deletes it, -1 keeps it
--   ARGV[7]   events_maxlen   approximate length of the stream; 0 writes no events
--   ARGV[8]   order_id        field of the reservation; empty: not kept
--   ARGV[9]   product_id      field of the reservation
--   ARGV[10]  status          field of the reservation; empty: not kept, needs retention_ms 0
--   ARGV[11]  available       field of the stock; empty: not kept
--   ARGV[12]  reserved        field of the stock; empty: not kept
--   ARGV[13]  active          status word
--   ARGV[14]  expired         status word
--   ARGV[15]  unit_ms         ms in one unit of the score: 1 or 1000
--   ARGV[16]  force           1: release although there is no reservation, if the entry says that there was none
--
-- Returns  strings: code, status, available and reserved after it; empty if it is not known
--   released            the units are back
--   dropped             the entry is gone, no counter was touched
--   not_found           it is not in quarantine
--   ended               it is not Active, see status: it holds no units
--   record_gone         there is no reservation (any more): it may have ended since, and then holds no units. Only if
--                       the entry's reason is reservation_missing does force release them
--   different           the reservation is of another product
--   quantity_invalid    not an integer from 0 to 2^53
--   stock_missing       no such product, or neither counter
--   stock_wrong_type    neither a hash nor a counter
--   available_invalid   not an integer up to 2^53, or missing
--   reserved_invalid    the same
--   reserved_too_small  fewer units are reserved than the quantity
--   available_overflow  available would pass 2^53

local index, reservation, stock, quarantine, events, operations = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local id, product_id, quantity_text, by = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local now_ms, retention_ms, events_maxlen = tonumber(ARGV[5]), ARGV[6], ARGV[7]
local ORDER_ID, PRODUCT_ID, STATUS, AVAILABLE, RESERVED = ARGV[8], ARGV[9], ARGV[10], ARGV[11], ARGV[12]
local ACTIVE, EXPIRED, unit_ms = ARGV[13], ARGV[14], tonumber(ARGV[15])
local is_forced = ARGV[16] == '1'

local call = redis.call
local MAX = 9007199254740992 -- 2^53: above it a Lua number skips integers
local MAX_TEXT = '9007199254740992'

local function text(number)
  return string.format('%.0f', number)
end

local function integer(value)
  if value == '0' then return 0 end
  local digits = value and value:match('^%-?([1-9]%d*)$')
  if not digits or #digits > #MAX_TEXT or (#digits == #MAX_TEXT and digits > MAX_TEXT) then return nil end
  return tonumber(value)
end

local available, reserved

local function reply(code, status)
  return {code, status or '', available and text(available) or '', reserved and text(reserved) or ''}
end

local quantity = integer(quantity_text)
if not quantity or quantity < 0 then return reply('quantity_invalid') end
local entry = call('HGET', quarantine, id)
if not entry then return reply('not_found') end

local is_active, order_id = false, ''
local kind = call('TYPE', reservation).ok
if quantity > 0 and kind == 'none' and not (is_forced and entry:find('^reason=reservation_missing ')) then
  return reply('record_gone')
end
if kind == 'hash' then
  local status = STATUS ~= '' and call('HGET', reservation, STATUS) or ACTIVE
  is_active = status == ACTIVE
  if quantity > 0 and not is_active then return reply('ended', status) end
  local own = call('HGET', reservation, PRODUCT_ID)
  if quantity > 0 and own and own ~= product_id then return reply('different') end
  order_id = ORDER_ID ~= '' and call('HGET', reservation, ORDER_ID) or ''
end

local is_plain = false
if quantity > 0 then
  kind = call('TYPE', stock).ok
  is_plain = kind == 'string' and AVAILABLE ~= ''
  if kind == 'none' then return reply('stock_missing') end
  if kind ~= 'hash' and not is_plain then return reply('stock_wrong_type') end
  local row = is_plain and {call('GET', stock)} or call('HMGET', stock, AVAILABLE, RESERVED)
  if not row[1] and not row[2] then return reply('stock_missing') end
  if AVAILABLE ~= '' then
    available = integer(row[1])
    if not available then return reply('available_invalid') end
    if quantity > MAX - math.max(available, 0) then return reply('available_overflow') end
  end
  if RESERVED ~= '' and not is_plain then
    reserved = integer(row[2])
    if not reserved then return reply('reserved_invalid') end
    if reserved < quantity then return reply('reserved_too_small') end
  end
end

if not now_ms then
  local time = call('TIME')
  now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local now = text(math.floor(now_ms))
local score = tonumber(entry:match('score=(%d+%.?%d*)') or '')
local expires_at = score and text(math.floor(math.min(score * unit_ms, MAX))) or ''
-- These raise here, before any write, if a key has another type.
call('ZSCORE', index, id)
call('XLEN', events)

-- From here on the script writes. A full server, a replica or a missing right refuses the first use of a
-- command, so each is first used where a refusal moves no unit.
call('XADD', operations, 'MAXLEN', '~', 10000, '*',
  'operation', quantity > 0 and 'release' or 'drop', 'by', by, 'reservation_id', id,
  'product_id', product_id, 'quantity', quantity_text, 'entry', entry)
call('ZREM', index, id)
local nobody = '' -- a name that the quarantine does not have
while call('HGET', quarantine, nobody) do nobody = nobody .. '\0' end
call('HDEL', quarantine, nobody)
if is_plain then
  call('INCRBY', stock, 0)
elseif available then
  call('HSET', stock, AVAILABLE, text(available))
elseif reserved then
  call('HSET', stock, RESERVED, text(reserved))
end
if quantity > 0 and events_maxlen ~= '0' then
  call('XADD', events, 'MAXLEN', '~', events_maxlen, '*', 'reservation_id', id, 'order_id', order_id,
    'product_id', product_id, 'quantity', quantity_text, 'expires_at', expires_at, 'expired_at', now)
end
if is_active then
  if retention_ms ~= '-1' then call('PEXPIRE', reservation, retention_ms) end -- 0 deletes
  if retention_ms ~= '0' then call('HSET', reservation, STATUS, EXPIRED, 'expired_at', now) end
end

if available then available = available + quantity end
if reserved then reserved = reserved - quantity end
if is_plain then
  call('INCRBY', stock, quantity_text)
elseif available and reserved then
  call('HSET', stock, AVAILABLE, text(available), RESERVED, text(reserved))
elseif available or reserved then
  call('HSET', stock, available and AVAILABLE or RESERVED, text(available or reserved))
end
call('HDEL', quarantine, id)
return reply(quantity > 0 and 'released' or 'dropped')
