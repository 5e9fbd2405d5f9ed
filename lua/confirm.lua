-- Confirm a reservation: its units leave reserved, they are sold. Works while the reservation is
-- Active, even after ExpiresAt: the units are still held, and the shopper has paid.
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
--   ARGV[4]  retention_ms  how long a Confirmed reservation stays; 0 deletes it, -1 or none keeps it
--
-- Returns  strings: code, status, quantity, reserved_at and expires_at in Unix ms
--   confirmed            done
--   unchanged            it is Confirmed already
--   not_found            no such reservation: never made, or its retention is over
--   ended                it was Released or has Expired; see status
--   different            it is of another order or product
--   reservation_invalid  its key holds another type, or its quantity is not an integer
--   stock_missing        no such product
--   stock_invalid        reserved is not an integer, or smaller than the quantity

local index, reservation, stock, quarantine = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, order_id, product_id, retention_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]) or -1

local MAX_TEXT = '9007199254740992' -- 2^53: above it a Lua number skips integers

local function integer(value)
  if value == '0' then return 0 end
  local digits = value and value:match('^%-?([1-9]%d*)$')
  if not digits or #digits > #MAX_TEXT or (#digits == #MAX_TEXT and digits > MAX_TEXT) then return nil end
  return tonumber(value)
end

local kind = redis.call('TYPE', reservation).ok
if kind == 'none' then return {'not_found', '', '', '', ''} end
if kind ~= 'hash' then return {'reservation_invalid', '', '', '', ''} end
local row = redis.call('HMGET', reservation, 'status', 'quantity', 'reserved_at', 'expires_at',
  'order_id', 'product_id')
local status = row[1] or 'Active'

local function reply(code)
  return {code, status, row[2] or '', row[3] or '', row[4] or ''}
end

if status ~= 'Active' and status ~= 'Confirmed' then return reply('ended') end
if (row[5] or order_id) ~= order_id or row[6] ~= product_id then return reply('different') end
local quantity = integer(row[2])
if not quantity or quantity < 1 then return reply('reservation_invalid') end
if status == 'Confirmed' then return reply('unchanged') end

kind = redis.call('TYPE', stock).ok
if kind == 'none' then return reply('stock_missing') end
if kind ~= 'hash' then return reply('stock_invalid') end
local reserved = integer(redis.call('HGET', stock, 'reserved'))
if not reserved or reserved < quantity then return reply('stock_invalid') end
-- These raise here, before any write, if a key has another type.
redis.call('ZSCORE', index, id)
redis.call('HEXISTS', quarantine, id)

status = 'Confirmed'
redis.call('HSET', stock, 'reserved', string.format('%.0f', reserved - quantity))
redis.call('HSET', reservation, 'status', status)
redis.call('ZREM', index, id)
redis.call('HDEL', quarantine, id)
if retention_ms >= 0 then redis.call('PEXPIRE', reservation, retention_ms) end -- 0 deletes
return reply('confirmed')
