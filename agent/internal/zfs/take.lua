-- Takes sets of snapshots, all of them in one transaction. argv is, for each set:
-- how many datasets, how many properties, the snapshots' name, the datasets, then
-- name and value of each property. Returns for each set its guids, separated by
-- commas, or nothing where none of it was taken.
local args = ...
local argv, said = args["argv"], {}

local function take(full, properties)
  for i = 1, #full do
    if zfs.exists(full[i]) or zfs.check.snapshot(full[i]) ~= 0 then
      return ""
    end
  end
  local guids = {}
  for i = 1, #full do
    local failed = zfs.sync.snapshot(full[i])
    local made = failed == 0 and i or i - 1
    for p = 1, #properties, 2 do
      if failed == 0 then
        failed = zfs.sync.set_prop(full[i], properties[p], properties[p + 1])
      end
    end
    if failed ~= 0 then
      for j = 1, made do
        zfs.sync.destroy(full[j])
      end
      return ""
    end
    guids[i] = string.format("%d", zfs.get_prop(full[i], "guid"))
  end
  return table.concat(guids, ",")
end

local at = 1
while zfs.sync.set_prop and at <= #argv do
  local datasets, properties, name = tonumber(argv[at]), tonumber(argv[at + 1]), argv[at + 2]
  local full, pairs_ = {}, {}
  at = at + 3
  for i = 1, datasets do
    full[i] = argv[at] .. "@" .. name
    at = at + 1
  end
  for i = 1, 2 * properties do
    pairs_[i] = argv[at]
    at = at + 1
  end
  said[#said + 1] = take(full, pairs_)
end
return said
