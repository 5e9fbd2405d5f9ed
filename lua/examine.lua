-- Read some reservations of one shard: each as it is in its key, in the index and in the quarantine, all in one
-- moment. Only reads.
--
-- KEYS
--   KEYS[1]  index       ZSET  reservation id -> ExpiresAt
--   KEYS[2]  quarantine  HASH  reservation id -> why it cannot be expired
-- Reservation keys are named from a prefix; they must share the hash tag of KEYS[1].
--
-- ARGV
--   ARGV[1]  reservation_prefix  + reservation id = key of the reservation
--   ARGV[2]  product_id          field of the reservation
--   ARGV[3]  quantity            field of the reservation
--   ARGV[4]  status              field of the reservation; empty: not kept
--   ARGV[5]  expires_at          field of the reservation; empty: not kept
--   ARGV[6]  active              status word
--   ARGV[7]  ids                 and all after it: reservation ids, at most 1,000
--
-- Returns  nine strings for each id; empty if there is none
--   the key's type, product_id, quantity, status, expires_at, reserved_at, score, quarantine entry, and the key's
--   time to live in ms, -1 without one; numbers and times are cut to 32 characters, more than any valid one has

local index, quarantine = KEYS[1], KEYS[2]
local reservation_prefix = ARGV[1]
local PRODUCT_ID, QUANTITY, STATUS, EXPIRES_AT, ACTIVE = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]

local call = redis.call
local answer = {}

local function short(value)
  return value and value:sub(1, 32) or ''
end

for i, id in ipairs({unpack(ARGV, 7)}) do
  local key = reservation_prefix .. id
  local kind = call('TYPE', key).ok
  local is_hash = kind == 'hash'
  local row = is_hash and call('HMGET', key, PRODUCT_ID, QUANTITY, STATUS, EXPIRES_AT, 'reserved_at') or {}
  local n = 9 * (i - 1)
  answer[n + 1], answer[n + 2], answer[n + 3] = kind, row[1] or '', short(row[2])
  answer[n + 4] = is_hash and (STATUS ~= '' and row[3] or ACTIVE) or ''
  answer[n + 5], answer[n + 6] = EXPIRES_AT ~= '' and short(row[4]) or '', short(row[5])
  answer[n + 7], answer[n + 8] = call('ZSCORE', index, id) or '', call('HGET', quarantine, id) or ''
  answer[n + 9] = is_hash and string.format('%.0f', call('PTTL', key)) or ''
end
return answer
