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

local call, pcall = redis.call, redis.pcall
local STEP = 1000 -- ids that are looked at, or moved, by one command: a call for each would hold the server for longer

local function each(act)
  local start = 0
  while true do
    local ids = call('LRANGE', list, start, start + STEP - 1)
    if #ids == 0 then return nil end
    local answer = act(ids)
    if answer then return answer end
    start = start + STEP
  end
end

local missing = {} -- ids that only the index or the quarantine knows

local function is_of_another(id)
  local found = pcall('HGET', prefix .. id, PRODUCT_ID)
  if type(found) == 'table' then found = '' end -- no hash
  if not found and call('EXISTS', prefix .. id) == 0 then
    missing[id] = true
    return false
  end
  return (found or '') ~= product_id
end

local has_stock = product_id ~= '' and call('EXISTS', stock) == 1
if has_stock and call('EXISTS', new_stock) == 1 then return {'occupied', new_stock} end
local trouble = each(function(ids)
  for _, id in ipairs(ids) do
    if is_of_another(id) then return {'different', id} end
    if call('EXISTS', new_prefix .. id) == 1 then return {'occupied', new_prefix .. id} end
  end
  call('ZMSCORE', index, unpack(ids))
  call('HMGET', quarantine, unpack(ids))
end)
if trouble then return trouble end
call('ZCARD', new_index)
call('HLEN', new_quarantine)

-- From here on the script writes. A full server refuses the first command that may need memory, which
-- this is, and leaves everything in place.
call('ZADD', new_index, 'XX', 0, '')
local moved = 0
each(function(ids)
  local scores, entries = call('ZMSCORE', index, unpack(ids)), call('HMGET', quarantine, unpack(ids))
  local indexed, quarantined = {}, {}
  for n, id in ipairs(ids) do
    if not missing[id] then call('RENAME', prefix .. id, new_prefix .. id) end
    if scores[n] then
      indexed[#indexed + 1] = scores[n]
      indexed[#indexed + 1] = id
    end
    if entries[n] then
      quarantined[#quarantined + 1] = id
      quarantined[#quarantined + 1] = entries[n]
    end
  end
  if #indexed > 0 then call('ZADD', new_index, unpack(indexed)) end
  if #quarantined > 0 then call('HSET', new_quarantine, unpack(quarantined)) end
  call('ZREM', index, unpack(ids))
  call('HDEL', quarantine, unpack(ids))
  moved = moved + #ids
end)
if has_stock then call('RENAME', stock, new_stock) end
call('DEL', list)
return {'moved', tostring(moved)}
