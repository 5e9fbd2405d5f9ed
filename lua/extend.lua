-- Extend a reservation: it is held for a duration from now. The index and the reservation move
-- together, and never backwards. Works while the reservation is Active, even after ExpiresAt.
--
-- KEYS
--   KEYS[1]  index        ZSET  reservation id -> ExpiresAt, Unix ms
--   KEYS[2]  reservation  HASH
--   KEYS[3]  quarantine   HASH  reservation id -> why it cannot be expired
--
-- ARGV
--   ARGV[1]  reservation id
--   ARGV[2]  order id
--   ARGV[3]  product id
--   ARGV[4]  duration_ms  how long the units are held from now, ms
--   ARGV[5]  max_hold_ms  most time from reserved_at to ExpiresAt, ms; empty: no limit
--   ARGV[6]  now_ms       Unix ms; empty: the server's own clock
--   ARGV[7]  wake         channel on which workers listen: gets `<now> <ExpiresAt>` if that is the soonest
--
-- Returns  strings: code, status, quantity, reserved_at and expires_at in Unix ms
--   extended             done; up to that limit if max_hold_ms cuts the duration short
--   unchanged            it is held longer than that already
--   limit_reached        it is held for max_hold_ms already
--   duration_invalid     not an integer from 1 to 2^53
--   not_found            no such reservation: never made, or its retention is over
--   ended                it was Confirmed or Released, or has Expired; see status
--   different            it is of another order or product
--   reservation_invalid  its key holds another type, or a number that is not an integer

local index, reservation, quarantine = KEYS[1], KEYS[2], KEYS[3]
local id, order_id, product_id = ARGV[1], ARGV[2], ARGV[3]
local max_hold_ms = tonumber(ARGV[5])
local now_ms, wake = tonumber(ARGV[6]), ARGV[7]

local MAX_TEXT = '9007199254740992' -- 2^53: above it a Lua number skips integers

local function integer(value)
  if value == '0' then return 0 end
  local digits = value and value:match('^%-?([1-9]%d*)$')
  if not digits or #digits > #MAX_TEXT or (#digits == #MAX_TEXT and digits > MAX_TEXT) then return nil end
  return tonumber(value)
end

local duration_ms = integer(ARGV[4])
if not duration_ms or duration_ms < 1 then return {'duration_invalid', '', '', '', ''} end
local kind = redis.call('TYPE', reservation).ok
if kind == 'none' then return {'not_found', '', '', '', ''} end
if kind ~= 'hash' then return {'reservation_invalid', '', '', '', ''} end
local row = redis.call('HMGET', reservation, 'status', 'quantity', 'reserved_at', 'expires_at',
  'order_id', 'product_id')
local status = row[1] or 'Active'

local function reply(code)
  return {code, status, row[2] or '', row[3] or '', row[4] or ''}
end

if status ~= 'Active' then return reply('ended') end
if (row[5] or order_id) ~= order_id or row[6] ~= product_id then return reply('different') end
local quantity, reserved_at, held_until = integer(row[2]), integer(row[3]), integer(row[4])
if not quantity or not held_until or (max_hold_ms and not reserved_at) then return reply('reservation_invalid') end

if not now_ms then
  local time = redis.call('TIME')
  now_ms = tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000
end
local exact_now = string.format('%.3f', now_ms)
now_ms = math.floor(now_ms)
local expires_at = now_ms + duration_ms
if max_hold_ms and expires_at > reserved_at + max_hold_ms then
  expires_at = reserved_at + max_hold_ms
  if expires_at <= held_until then return reply('limit_reached') end
end
if expires_at <= held_until then return reply('unchanged') end

-- These raise here, before any write, if a key has another type.
local was_indexed = redis.call('ZSCORE', index, id)
redis.call('HEXISTS', quarantine, id)

row[4] = string.format('%.0f', expires_at)
redis.call('HSET', reservation, 'expires_at', row[4])
redis.call('ZADD', index, row[4], id)
redis.call('HDEL', quarantine, id)
if not was_indexed and redis.call('ZRANGE', index, 0, 0)[1] == id then
  redis.pcall('PUBLISH', wake, exact_now .. ' ' .. row[4]) -- a lost message costs lateness, never a unit
end
return reply('extended')
