-- Lists the snapshots of datasets: argv are the datasets. Returns texts, each with
-- the dataset in its first line and then, for some of its snapshots, a line of name,
-- guid, createtxg, creation, userrefs and the clones, separated by tabs. The text
-- "gone" and the dataset: it is not there.
local args = ...
local said = {}
for _, dataset in ipairs(args["argv"]) do
  if not zfs.exists(dataset) then
    said[#said + 1] = "gone\n" .. dataset
  else
    local lines = { dataset }
    for snapshot in zfs.list.snapshots(dataset) do
      local line = {
        string.match(snapshot, "@(.*)$"),
        string.format("%d", zfs.get_prop(snapshot, "guid")),
        string.format("%d", zfs.get_prop(snapshot, "createtxg")),
        string.format("%d", zfs.get_prop(snapshot, "creation")),
        string.format("%d", zfs.get_prop(snapshot, "userrefs")),
      }
      for clone in zfs.list.clones(snapshot) do
        line[#line + 1] = clone
      end
      lines[#lines + 1] = table.concat(line, "\t")
      if #lines > 500 then
        said[#said + 1] = table.concat(lines, "\n")
        lines = { dataset }
      end
    end
    said[#said + 1] = table.concat(lines, "\n")
  end
end
return said
