#!/bin/bash
# host.sh DIR NAME ROOT [PATH:PATH]… : becomes systemd-nspawn, and that the host NAME: ROOT (see root.sh), of which it sees a copy that
# is written in DIR, with systemd as process 1 in PID, mount, UTS and IPC namespaces of its own, and in the network namespace that
# this was called in. Each PATH of ours is seen as the other one. It has control groups of its own, so that the limits of its units are
# the kernel's. To be called in a mount namespace that ends with it.
set -euo pipefail
dir=$1 name=$2 root=$3
shift 3
mkdir -p "$dir"/{upper,work,root}
mount --make-rprivate /
mount -t overlay -o "lowerdir=$root,upperdir=$dir/upper,workdir=$dir/work" overlay "$dir/root"

# Whoever reads units' files meets these; see host.go for what else is in $dir/upper.
group=$(basename "$(dirname "$dir")")-$name writable=
if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
  for controller in cpu memory pids; do echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control; done
  mkdir -p "/sys/fs/cgroup/$group"
  echo $$ >"/sys/fs/cgroup/$group/cgroup.procs"
else
  # The older kind: each controller has a tree. nspawn lets a host write to one of them, and host-init.sh to the others.
  for tree in /sys/fs/cgroup/*/; do
    [[ -e $tree/cgroup.procs ]] || continue
    mkdir -p "$tree$group"
    if [[ $tree == */cpuset/ ]]; then # nothing of it is inherited by itself
      for file in cpuset.cpus cpuset.mems; do cat "$tree$file" >"$tree$group/$file"; done
    fi
    echo $$ >"$tree$group/cgroup.procs"
    writable+=" $tree"
  done
fi
binds=()
for b in "$@"; do binds+=("--bind=$b"); done
exec systemd-nspawn --quiet --register=no --keep-unit --directory="$dir/root" --machine="$name" --capability=all --console=pipe \
  --resolv-conf=off --timezone=off --link-journal=no --bind-ro="$dir/host-init.sh:/host-init.sh" "${binds[@]}" \
  /host-init.sh $writable </dev/null
