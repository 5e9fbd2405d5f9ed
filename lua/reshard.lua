-- Move one product to another shard: its stock, and the reservations that a list names, with their places in the
-- index and in the quarantine. Wholly, or not at all: everything is checked before the first key is renamed.
-- It joins two hash tags, so it runs on one server, and never in a Redis Cluster.
--
-- KEYS
--   KEYS[1]  index          ZSET  of the shard that it leaves: reservation id -> ExpiresAt
--   KEYS[2]  quarantine     HASH  of that shard
--   KEYS[3]  stock          HASH or string counter, in that shard; it may be missing
--   KEYS[4]  new index      ZSET  of the shard that it goes to
--   KEYS[5]  new quarantine HASH
--   KEYS[6]  new stock      must not exist
--   KEYS[7]  list           LIST  the ids of all its reservations; deleted at the end
--
-- ARGV
--   ARGV[1]  product id              empty: what is moved has no product, and no stock
--   ARGV[2]  reservation_prefix      + reservation id = key of the reservation, in the shard that it leaves
--   ARGV[3]  new reservation_prefix  the same in the shard that it goes to
--   ARGV[4]  product_id              field of the reservation
--
-- Returns  strings: code, and a number or a name
--   moved      done; how many reservations
--   occupied   a key of this name is in the new shard already; its name
--   different  a reservation of the list is of another product; its id

local index, quarantine, stock = KEYS[1], KEYS[2], KEYS[3]
local new_index, new_quarantine, new_stock, list = KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local product_id, prefix, new_prefix, PRODUCT_ID = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local call = redis.call
local STEP = 1000 -- ids that are read at once

local function each(act)
  local start = 0
  while true do
    local ids = call('LRANGE', list, start, start + STEP - 1)
    if #ids == 0 then return nil end
    for _, id in ipairs(ids) do
      local answer = act(id)
      if answer then return answer end
    end
    start = start + STEP
  end
end

local has_stock = product_id ~= '' and call('EXISTS', stock) == 1
if has_stock and call('EXISTS', new_stock) == 1 then return {'occupied', new_stock} end
local trouble = each(function(id)
  local key = prefix .. id
  local kind = call('TYPE', key).ok
  local found = kind == 'hash' and call('HGET', key, PRODUCT_ID) or ''
  if kind ~= 'none' and found ~= product_id then return {'different', id} end
  if call('EXISTS', new_prefix .. id) == 1 then return {'occupied', new_prefix .. id} end
  call('ZSCORE', index, id)
  call('HGET', quarantine, id)
end)
if trouble then return trouble end
call('ZCARD', new_index)
call('HLEN', new_quarantine)

-- From here on the script writes. A full server refuses the first command that may need memory, which
-- this is, and leaves everything in place.
call('ZADD', new_index, 'XX', 0, '')
local moved = 0
each(function(id)
  local key = prefix .. id
  if call('EXISTS', key) == 1 then call('RENAME', key, new_prefix .. id) end
  local score = call('ZSCORE', index, id)
  if score then
    call('ZADD', new_index, score, id)
    call('ZREM', index, id)
  end
  local entry = call('HGET', quarantine, id)
  if entry then
    call('HSET', new_quarantine, id, entry)
    call('HDEL', quarantine, id)
  end
  moved = moved + 1
end)
if has_stock then call('RENAME', stock, new_stock) end
call('DEL', list)
return {'moved', tostring(moved)}
