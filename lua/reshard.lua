-- Move one product to another shard: its stock, and the reservations named, with their places in the index and in
-- the quarantine. Wholly, or not at all: everything is checked, and each command tried, before the first key moves.
-- It joins two hash tags, so it runs on one server, and never in a Redis Cluster.
--
-- KEYS
--   KEYS[1]  index          ZSET  of the shard that it leaves: reservation id -> ExpiresAt
--   KEYS[2]  quarantine     HASH  of that shard
--   KEYS[3]  stock          HASH or string counter, in that shard; it may be missing, or have moved before
--   KEYS[4]  new index      ZSET  of the shard that it goes to
--   KEYS[5]  new quarantine HASH
--   KEYS[6]  new stock      must not exist where the other does
--
-- ARGV
--   ARGV[1]  product id              of the reservations; empty: they have none
--   ARGV[2]  reservation_prefix      + reservation id = key of the reservation, in the shard that it leaves
--   ARGV[3]  new reservation_prefix  the same in the shard that it goes to
--   ARGV[4]  product_id              field of the reservation
--   ARGV[5]  ids                     and all after it: reservation ids
--
-- Returns  strings: code, and a number or a name
--   moved      done; how many reservations
--   occupied   a key of this name is in the new shard already; its name
--   different  a reservation is of another product; its id

local index, quarantine, stock = KEYS[1], KEYS[2], KEYS[3]
local new_index, new_quarantine, new_stock = KEYS[4], KEYS[5], KEYS[6]
local product_id, prefix, new_prefix, PRODUCT_ID = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local call, pcall = redis.call, redis.pcall
local STEP = 1000 -- ids that one command is given: unpack takes some thousands, and no more

local function each(act)
  for first = 5, #ARGV, STEP do
    local answer = act({unpack(ARGV, first, math.min(first + STEP - 1, #ARGV))})
    if answer then return answer end
  end
end

local gone = {} -- ids whose key is not there: only their places move

local trouble = each(function(ids)
  local names = {}
  for i, id in ipairs(ids) do
    local key = prefix .. id
    local found = pcall('HGET', key, PRODUCT_ID)
    if type(found) == 'table' then
      if call('TYPE', key).ok == 'hash' then call('HGET', key, PRODUCT_ID) end -- not its type: this raises what it was
      found = ''
    elseif not found then
      gone[id] = call('EXISTS', key) == 0
      found = gone[id] and product_id or ''
    end
    if found ~= product_id then return {'different', id} end
    names[i] = new_prefix .. id
  end
  if call('EXISTS', unpack(names)) == 0 then return nil end
  for _, name in ipairs(names) do
    if call('EXISTS', name) == 1 then return {'occupied', name} end
  end
end)
if trouble then return trouble end
if call('EXISTS', stock) == 1 and call('EXISTS', new_stock) == 1 then return {'occupied', new_stock} end

-- A key that is not there is not renamed, and no error; any other is raised.
local function rename(key, new_key)
  local refusal = pcall('RENAME', key, new_key).err
  if refusal and not tostring(refusal):find('no such key', 1, true) then call('RENAME', key, new_key) end
end

-- A name that neither shard has: ids may be any bytes.
local nobody = ''
while call('ZMSCORE', index, nobody)[1] or call('ZMSCORE', new_index, nobody)[1]
  or call('HMGET', quarantine, nobody)[1] or call('HMGET', new_quarantine, nobody)[1]
  or call('EXISTS', prefix .. nobody, new_prefix .. nobody) > 0 do
  nobody = nobody .. '\0'
end

-- From here on the script writes. A full server, a replica or a missing right refuses the first use of a command,
-- so each is first used on that name, where a refusal leaves everything in place.
call('ZADD', new_index, 'XX', 0, nobody)
call('ZREM', index, nobody)
call('HDEL', quarantine, nobody)
call('HDEL', new_quarantine, nobody)
rename(prefix .. nobody, new_prefix .. nobody)
each(function(ids)
  local entries = {}
  for i, entry in ipairs(call('HMGET', quarantine, unpack(ids))) do
    if entry then entries[#entries + 1], entries[#entries + 2] = ids[i], entry end
  end
  if #entries > 0 then call('HSET', new_quarantine, unpack(entries)) end
end)
rename(stock, new_stock)

local moved = 0
each(function(ids)
  for _, id in ipairs(ids) do
    if not gone[id] then
      call('RENAME', prefix .. id, new_prefix .. id)
      moved = moved + 1
    end
  end
  local places = {}
  for i, score in ipairs(call('ZMSCORE', index, unpack(ids))) do
    if score then places[#places + 1], places[#places + 2] = score, ids[i] end
  end
  if #places > 0 then
    call('ZADD', new_index, unpack(places))
    call('ZREM', index, unpack(ids))
  end
  call('HDEL', quarantine, unpack(ids))
end)
return {'moved', string.format('%.0f', moved)}
