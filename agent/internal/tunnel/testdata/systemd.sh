#!/bin/bash
# systemd.sh DIR: becomes a systemd, process 1 of a PID namespace, whose units are those in DIR/units and nothing of the host's.
set -euo pipefail
dir=$1 stage=${2:-outside}
if [[ $stage == outside ]]; then
  mount --make-rprivate /
  mkdir -p "$dir/cgroup"
  mount -t cgroup2 none "$dir/cgroup"
  group=$dir/cgroup/debvisor-test-$$
  mkdir "$group"
  echo $$ >"$group/cgroup.procs"
  trap 'echo $$ >"$dir/cgroup/cgroup.procs"; find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true' EXIT
  echo "$group" >"$dir/group"
  timeout -k 1 120 unshare --pid --fork --mount --cgroup --kill-child --mount-proc "$0" "$dir" inside || true
  exit
fi
mount -t tmpfs tmpfs /run
mount -t cgroup2 none /sys/fs/cgroup
# Nothing of the host's is started, mounted or cleaned.
mkdir -p "$dir/empty"
for d in /etc/systemd/system /run/systemd/system /usr/lib/systemd/system-generators /etc/systemd/system-generators /usr/lib/systemd/system-environment-generators; do
  [[ ! -d $d ]] || mount --bind "$dir/empty" "$d"
done
mount --bind "$dir/units" /usr/lib/systemd/system
mount --bind /dev/null /etc/fstab
exec env -i PATH="$PATH" container=debvisor-test /lib/systemd/systemd --system --unit=test.target --log-target=console --log-level=info --show-status=no
