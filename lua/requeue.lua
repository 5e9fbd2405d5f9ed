-- Put a quarantined reservation back into the index, once its cause is fixed. It is due at its own expires_at; if
-- that cannot be read, at the score that its quarantine entry remembers.
--
-- KEYS
--   KEYS[1]  index        ZSET    reservation id -> ExpiresAt
--   KEYS[2]  reservation  HASH
--   KEYS[3]  quarantine   HASH    reservation id -> why it cannot be expired
--   KEYS[4]  operations   STREAM  what people have done by hand
--
-- ARGV
--   ARGV[1]  reservation id
--   ARGV[2]  expires_at  field of the reservation; empty: not kept
--   ARGV[3]  by          who does it
--
-- Returns  strings: code, and the score if there is one
--   requeued       done
--   unchanged      it is in the index, and not in quarantine
--   not_found      it is in neither
--   score_unknown  neither the reservation nor the entry says when it is due

local index, reservation, quarantine, operations = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, EXPIRES_AT, by = ARGV[1], ARGV[2], ARGV[3]

local function timestamp(value)
  if not value or #value > 24 or not value:find('^%d+%.?%d*$') then return nil end
  return value
end

local entry = redis.call('HGET', quarantine, id)
if not entry then
  local score = redis.call('ZSCORE', index, id)
  return {score and 'unchanged' or 'not_found', score or ''}
end
local score
if EXPIRES_AT ~= '' and redis.call('TYPE', reservation).ok == 'hash' then
  score = timestamp(redis.call('HGET', reservation, EXPIRES_AT))
end
score = score or timestamp(entry:match('score=(%S+)'))
if not score then return {'score_unknown', ''} end
redis.call('ZSCORE', index, id) -- raises here, before any write, if the key has another type

redis.call('XADD', operations, 'MAXLEN', '~', 10000, '*',
  'operation', 'requeue', 'by', by, 'reservation_id', id, 'entry', entry)
redis.call('ZADD', index, score, id)
redis.call('HDEL', quarantine, id)
return {'requeued', score}
