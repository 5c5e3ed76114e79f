-- Destroys snapshots, each only where it has the guid: argv is name, guid, name,
-- guid and so on. Returns for each 0, -1 (there is none), -2 (another guid), -3
-- (held) or the number of the error.
local args = ...
local argv, said = args["argv"], {}
for i = 1, #argv, 2 do
  local name, guid, code = argv[i], argv[i + 1], 0
  if not zfs.exists(name) then
    code = -1
  elseif string.format("%d", zfs.get_prop(name, "guid")) ~= guid then
    code = -2
  elseif zfs.get_prop(name, "userrefs") > 0 then
    code = -3
  else
    code = zfs.sync.destroy(name)
  end
  said[(i + 1) / 2] = code
end
return said
