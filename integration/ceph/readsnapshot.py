# readsnapshot.py CONF POOL/IMAGE SNAPSHOT: what an image's snapshot holds, as client.admin, on standard output. SNAPSHOT is the
# snapshot's own name or that of the group's snapshot that it is part of, which the rbd command cannot read.
import sys

import rados
import rbd

conf, spec, wanted = sys.argv[1:]
pool, name = spec.split("/", 1)
with rados.Rados(conffile=conf, name="client.admin") as cluster, cluster.open_ioctx(pool) as io:
    with rbd.Image(io, name, read_only=True) as image:
        found = [s["id"] for s in image.list_snaps()
                 if s["name"] == wanted or s.get("group", {}).get("snap_name") == wanted]
        if len(found) != 1:
            sys.exit(f"{spec} has {len(found)} snapshots {wanted}: {list(image.list_snaps())}")
        image.set_snap_by_id(found[0])
        sys.stdout.buffer.write(image.read(0, image.size()))
