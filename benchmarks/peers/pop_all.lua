-- Expire everything that is due in one go, as a script without a batch does.
--
-- KEYS
--   KEYS[1]  index   ZSET    reservation id -> ExpiresAt, Unix ms
--   KEYS[2]  events  STREAM
--
-- ARGV
--   ARGV[1]  now, Unix ms
--   ARGV[2]  tag of every other key
--
-- Returns how many.

local index, events, now, tag = KEYS[1], KEYS[2], ARGV[1], ARGV[2]

local due = redis.call('ZRANGEBYSCORE', index, '-inf', '(' .. now)
for _, id in ipairs(due) do
  local key = tag .. ':reservation:' .. id
  local row = redis.call('HMGET', key, 'product_id', 'quantity', 'status', 'order_id', 'expires_at')
  local stock = tag .. ':stock:' .. row[1]
  redis.call('ZREM', index, id)
  redis.call('HSET', key, 'status', 'Expired', 'expired_at', now)
  redis.call('PEXPIRE', key, 86400000)
  redis.call('HINCRBY', stock, 'available', row[2])
  redis.call('HINCRBY', stock, 'reserved', -row[2])
  redis.call('XADD', events, 'MAXLEN', '~', 100000, '*', 'reservation_id', id, 'order_id', row[4],
    'product_id', row[1], 'quantity', row[2], 'expires_at', row[5], 'expired_at', now)
end
return #due
