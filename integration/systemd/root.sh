#!/bin/bash
# root.sh [CACHE] : makes the root directory of a Debian 12 host whose process 1 is systemd, and prints where it is: debootstrap's
# minimal system with what a hypervisor has, libvirt and QEMU, and the libraries that our packages depend on; nothing of ours. From
# this machine's own mirror, its apt left as it is. Kept in CACHE (/var/cache/debvisor) under Debian's version, libvirt's and the digest
# of this script; a second call only looks.
set -euo pipefail
mkdir -p "${1:-/var/cache/debvisor}"
cache=$(realpath "${1:-/var/cache/debvisor}")
exec 9>"$cache/.host.lock"
flock 9
digest=$(sha256sum "$0" | cut -c1-12)
for ready in "$cache"/host-*-"$digest"; do
  if [[ -e $ready/usr/lib/systemd/systemd ]]; then echo "$ready"; exit 0; fi
done
say() { echo "host: $*" >&2; }
command -v debootstrap >/dev/null || { say "debootstrap is missing (.ci/deps installs it)"; exit 1; }

suite=bookworm
mirrors() { sed -n 's/^URIs: *\([^ ]*\).*/\1/p;s/^deb \(\[[^]]*\] \)\?\(http[^ ]*\).*/\2/p' /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null; }
mirror=$(mirrors | grep -v security | head -n 1 || true)
security=$(mirrors | grep security | head -n 1 || true)
mirror=${mirror:-http://deb.debian.org/debian} security=${security:-http://deb.debian.org/debian-security}

# Left over from a build that was killed: only while nobody else holds the lock.
rm -rf --one-file-system "$cache"/.host-??????
work=$(mktemp -d "$cache/.host-XXXXXX")
chmod 755 "$work"
trap 'rm -rf --one-file-system "$work"' EXIT
say "a Debian 12 for tests with systemd is made, which takes minutes and is done once"
said=$work.log
trap 'rm -rf --one-file-system "$work" "$said"' EXIT
quietly() { "$@" >"$said" 2>&1 </dev/null || { tail -n 20 "$said" >&2; say "it failed: $*"; return 1; }; }
quietly debootstrap --variant=minbase --include=ca-certificates,libnss-systemd "$suite" "$work" "$mirror"
cat >"$work/etc/apt/sources.list" <<S
deb $mirror $suite main
deb $mirror $suite-updates main
deb $security $suite-security main
S
printf '#!/bin/sh\nexit 101\n' >"$work/usr/sbin/policy-rc.d" # nothing is started in here yet
chmod 755 "$work/usr/sbin/policy-rc.d"
printf 'path-exclude /usr/share/man/*\npath-include /usr/share/man/man*/debvisor*\npath-include /usr/share/man/man*/hvctl*\npath-exclude /usr/share/locale/*\nforce-unsafe-io\n' >"$work/etc/dpkg/dpkg.cfg.d/small"
in_it() { quietly chroot "$work" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"; }
in_it apt-get update -q
in_it apt-get upgrade -y -q --no-install-recommends
in_it apt-get install -y -q --no-install-recommends \
  systemd systemd-sysv dbus libpam-systemd systemd-container iproute2 procps rsyslog man-db bash-completion \
  libvirt-daemon-system libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 qemu-utils librbd1 librados2
in_it apt-get clean
rm -rf "$work"/var/lib/apt/lists/* "$work"/usr/sbin/policy-rc.d "$work"/etc/machine-id "$work"/var/lib/dbus/machine-id
: >"$work/etc/machine-id"
# What a container has no use for, and would wait for.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer man-db.timer \
  console-getty.service getty.target e2scrub_reap.service libvirt-guests.service; do
  ln -sf /dev/null "$work/etc/systemd/system/$unit"
done
version=$(cat "$work/etc/debian_version")
libvirt=$(chroot "$work" dpkg-query -W -f '${Version}' libvirt-daemon)
out=$cache/host-$version-libvirt-$libvirt-$digest
mv "$work" "$out"
echo "$out"
