# rbd-read.py CONF POOL/[NAMESPACE/]IMAGE SNAPSHOT_ID : writes the contents of a snapshot, which may be a group's, to standard output.
# rbd export knows snapshots by their names only, and those of groups have none that it takes.
import sys
import rados
import rbd

conf, spec, snapshot = sys.argv[1:]
pool, *namespace, image = spec.split("/")
with rados.Rados(conffile=conf, name="client.admin") as cluster, cluster.open_ioctx(pool) as ioctx:
    ioctx.set_namespace("".join(namespace))
    with rbd.Image(ioctx, image, read_only=True) as opened:
        opened.set_snap_by_id(int(snapshot))
        at, size = 0, opened.size()
        while at < size:
            part = opened.read(at, min(4 << 20, size - at))
            sys.stdout.buffer.write(part)
            at += len(part)
