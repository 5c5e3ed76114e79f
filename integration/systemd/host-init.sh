#!/bin/bash
# host-init.sh [TREE]… : process 1 of a host, which becomes systemd. Nspawn has mounted all control groups but one read-only.
for tree; do mount -o remount,bind,rw "$tree"; done
exec /usr/lib/systemd/systemd --unit=multi-user.target
