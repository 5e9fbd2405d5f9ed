-- Read some reservations of one shard: what its key, the index and the quarantine
-- have of it, all in one moment. Only reads.
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
-- Returns  nine strings for each id; empty where there is none
--   the key's type, product_id, quantity, status, expires_at, reserved_at, score, quarantine entry, and where the
--   status is not Active the key's time to live in ms, -1 without one

local index, quarantine = KEYS[1], KEYS[2]
local reservation_prefix = ARGV[1]
local PRODUCT_ID, QUANTITY, STATUS, EXPIRES_AT, ACTIVE = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]

local call = redis.call
local answer = {}
for i, id in ipairs({unpack(ARGV, 7)}) do
  local key = reservation_prefix .. id
  local kind = call('TYPE', key).ok
  local row = {}
  if kind == 'hash' then row = call('HMGET', key, PRODUCT_ID, QUANTITY, STATUS, EXPIRES_AT, 'reserved_at') end
  local status = kind == 'hash' and (STATUS ~= '' and row[3] or ACTIVE) or ''
  local n = 9 * (i - 1)
  answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4] = kind, row[1] or '', row[2] or '', status
  answer[n + 5], answer[n + 6] = EXPIRES_AT ~= '' and row[4] or '', row[5] or ''
  answer[n + 7], answer[n + 8] = call('ZSCORE', index, id) or '', call('HGET', quarantine, id) or ''
  answer[n + 9] = kind == 'hash' and status ~= ACTIVE and string.format('%.0f', call('PTTL', key)) or ''
end
return answer
