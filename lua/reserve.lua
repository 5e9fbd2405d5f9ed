-- Reserve units of one product: they leave available, and a reservation holds them until ExpiresAt.
-- Idempotent by reservation id. Everything is checked before the first write.
--
-- KEYS
--   KEYS[1]  index        ZSET  reservation id -> ExpiresAt, Unix ms
--   KEYS[2]  reservation  HASH
--   KEYS[3]  stock        HASH  available, reserved
--   KEYS[4]  quarantine   HASH  reservation id -> why it cannot be expired
--
-- ARGV
--   ARGV[1]  reservation id
--   ARGV[2]  order id
--   ARGV[3]  product id
--   ARGV[4]  quantity      integer, 1 to 2^53
--   ARGV[5]  duration_ms   how long the units are held, ms
--   ARGV[6]  now_ms        Unix ms; empty: the server's own clock
--   ARGV[7]  wake          channel on which workers listen: gets `<now> <ExpiresAt>` if that is the soonest
--
-- Returns  strings: code, status, quantity, reserved_at and expires_at in Unix ms, available;
-- empty if it is not known; available only if it mattered
--   reserved             done
--   unchanged            this very reservation is Active already
--   insufficient_stock   fewer are available than the quantity
--   different            the id is taken by another order, product or quantity
--   ended                the id was used before; see status
--   quantity_invalid     not an integer from 1 to 2^53
--   duration_invalid     not an integer from 1 to 2^53
--   reservation_invalid  the reservation's key holds another type
--   stock_missing        no such product
--   stock_invalid        a counter is not an integer, or reserved would pass 2^53

local index, reservation, stock, quarantine = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, order_id, product_id, quantity_text = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local now_ms, wake = tonumber(ARGV[6]), ARGV[7]

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

local function reply(code, row, available)
  row = row or {}
  return {code, row[1] or '', row[2] or '', row[3] or '', row[4] or '', available and text(available) or ''}
end

local quantity, duration_ms = integer(quantity_text), integer(ARGV[5])
if not quantity or quantity < 1 then return reply('quantity_invalid') end
if not duration_ms or duration_ms < 1 then return reply('duration_invalid') end

local kind = redis.call('TYPE', reservation).ok
if kind == 'hash' then
  local row = redis.call('HMGET', reservation,
    'status', 'quantity', 'reserved_at', 'expires_at', 'order_id', 'product_id')
  row[1] = row[1] or 'Active'
  if row[1] ~= 'Active' then return reply('ended', row) end
  local is_same = row[2] == quantity_text and row[5] == order_id and row[6] == product_id
  return reply(is_same and 'unchanged' or 'different', row)
end
if kind ~= 'none' then return reply('reservation_invalid') end

kind = redis.call('TYPE', stock).ok
if kind == 'none' then return reply('stock_missing') end
if kind ~= 'hash' then return reply('stock_invalid') end
local counters = redis.call('HMGET', stock, 'available', 'reserved')
local available, reserved = integer(counters[1]), integer(counters[2])
if not available or not reserved or reserved < 0 then return reply('stock_invalid') end
if available < quantity then return reply('insufficient_stock', nil, available) end
if quantity > MAX - reserved then return reply('stock_invalid', nil, available) end

if not now_ms then
  local time = redis.call('TIME')
  now_ms = tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000
end
local exact_now = string.format('%.3f', now_ms)
now_ms = math.floor(now_ms)
local now, expires_at = text(now_ms), text(now_ms + duration_ms)
redis.call('HEXISTS', quarantine, id) -- raises here, before any write, if the key has another type

redis.call('ZADD', index, expires_at, id)
redis.call('HSET', stock, 'available', text(available - quantity), 'reserved', text(reserved + quantity))
redis.call('HSET', reservation, 'order_id', order_id, 'product_id', product_id, 'quantity', quantity_text,
  'status', 'Active', 'reserved_at', now, 'expires_at', expires_at)
redis.call('HDEL', quarantine, id)
if redis.call('ZRANGE', index, 0, 0)[1] == id then
  redis.pcall('PUBLISH', wake, exact_now .. ' ' .. expires_at) -- a lost message costs lateness, never a unit
end
return reply('reserved', {'Active', quantity_text, now, expires_at}, available - quantity)
