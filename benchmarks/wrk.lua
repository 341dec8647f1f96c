-- The load of one thread of wrk: random orders, each call with a transaction of its own, and with
-- a key of its own if asked for. Arguments: protocol, orders, calls, connections, keyed, mark.
--
-- wrk ends by the clock, in the midst of calls. This ends when so many were answered: nobody sends
-- any more once so many were begun, and when the last is answered, a line tells the time it took.

local ffi = require("ffi")
local bit = require("bit")
ffi.cdef [[
typedef struct { long seconds; long nanoseconds; } moment;
int clock_gettime(int clock, moment *now);
]]

local HOUR = 3600 * 1000
local RECENT = 256

local framed, orders, calls, connections, keyed, mark, head
local begun, answered, number, began = 0, 0, 0, 0
local recent, is_recent = {}, {}

local function now()
  local moment = ffi.new("moment")
  ffi.C.clock_gettime(1, moment)
  return tonumber(moment.seconds) + tonumber(moment.nanoseconds) / 1e9
end

function init(arguments)
  local content_type = arguments[1]
  framed = content_type ~= "application/json"
  orders, calls, connections = tonumber(arguments[2]), tonumber(arguments[3]), tonumber(arguments[4])
  keyed, mark = arguments[5] == "keyed", arguments[6]
  math.randomseed(tonumber(mark:sub(1, 7), 16))
  answered = -connections -- a connection comes by once before its first call
  head = "POST " .. wrk.path .. " HTTP/1.1\r\nHost: " .. wrk.headers["Host"] ..
    "\r\nContent-Type: " .. content_type .. "\r\nContent-Length: "
end

-- An order that none of the calls under way is about: they would wait for each other.
local function order()
  local id
  repeat id = math.random(orders) until not is_recent[id]
  local place = number % RECENT
  if recent[place] then is_recent[recent[place]] = nil end
  recent[place], is_recent[id] = id, true
  return id
end

local function field(tag, text)
  return string.char(tag, #text) .. text
end

local function varint(value)
  local digits = ""
  while value > 127 do
    digits = digits .. string.char(bit.bor(bit.band(value, 127), 128))
    value = bit.rshift(value, 7)
  end
  return digits .. string.char(value)
end

local function message(id, transaction, key)
  local body = "\8" .. varint(id)
  if key then body = body .. field(42, key) end
  body = body .. field(50, "paid") .. field(58, transaction)
  return "\0\0\0\0" .. string.char(#body) .. body
end

local function json(id, transaction, key)
  return '{"orderId":' .. id .. ',"paymentStatus":"paid","paymentTransactionId":"' .. transaction ..
    (key and '","paymentIdempotencyKey":"' .. key or "") .. '"}'
end

function request()
  number = number + 1
  local transaction = string.format("txn_%s%08x", mark, number)
  local key = keyed and string.format("evt_%s%08x", mark, number) or nil
  local body = (framed and message or json)(order(), transaction, key)
  return head .. #body .. "\r\n\r\n" .. body
end

-- Asked by a connection before its first call, and after each answer.
function delay()
  answered = answered + 1
  if began == 0 then began = now() end
  if answered == calls then
    io.stdout:write(string.format("answered %d in %.6f\n", calls, now() - began))
    io.stdout:flush()
  end
  if begun == calls then return HOUR end
  begun = begun + 1
  return 0
end

function done(summary)
  local errors = summary.errors
  print(string.format("ended %d %d", summary.requests,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
