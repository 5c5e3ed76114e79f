#!/bin/bash
# build.sh [CACHE] : makes what machines boot from and prints the directory that holds it: "linux", a User-mode Linux kernel with
# OpenZFS in it, "bin/zfs", "bin/zpool" and "bin/zdb" of the same version with the libraries that they want (the host's C library
# may be too old for them), and "keeper" (see tools/tools.c). All from Debian's packages, none of which is installed; the machine's apt
# sources stay as they are.
#
#   fast     kernel 7.2 and ZFS 2.4 of trixie-backports: commands take 20 ms
#   durable  kernel 6.1 and ZFS 2.3 of bookworm-backports, taken when backports have moved on: commands take 150 ms
#
# Kept in CACHE (/var/cache/debvisor) under the versions and the digests of the sources beside this script; a second call only
# looks. The kernel, which takes minutes, has a directory and a digest of its own. DEBVISOR_MACHINE_KIND=durable skips fast.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
mkdir -p "${1:-/var/cache/debvisor}"
cache=$(realpath "${1:-/var/cache/debvisor}")
exec 9>"$cache/.machine.lock"
flock 9
digest() { (cd "$here" && cat "$@" | sha256sum | cut -c1-12); }
of_kernel=$(digest kernel.sh kernel.config)
of_all=$(digest kernel.sh kernel.config build.sh tools/tools.c)
kinds=${DEBVISOR_MACHINE_KIND:-fast durable}
for kind in $kinds; do
  for ready in "$cache/machine-$kind"-*-"$of_all"; do
    if [[ -e $ready/linux ]]; then echo "$ready"; exit 0; fi
  done
done
say() { echo "machine: $*" >&2; }

# suites, kernel package, wanted ZFS and the libraries, of a kind
describe() {
  local kerberos=(libgssapi-krb5-2 libkrb5-3 libk5crypto3 libkrb5support0 libcom-err2 libkeyutils1)
  case $1 in
  fast)
    suites=(trixie trixie-backports) kernel=linux-source-7.2 minor=2.4. archive=trixie-backports
    zfs=(zfsutils-linux libzfs7linux libzpool7linux libnvpair3linux libuutil3linux)
    libs=(libc6 libgcc-s1 libblkid1 libuuid1 libssl3t64 libudev1 libcap2 zlib1g libzstd1 libtirpc3t64 "${kerberos[@]}")
    ;;
  durable)
    suites=(bookworm bookworm-updates bookworm-backports) kernel=linux-source-6.1 minor=2.3. archive=bookworm-backports
    zfs=(zfsutils-linux libzfs6linux libzpool6linux libnvpair3linux libuutil3linux)
    libs=(libc6 libgcc-s1 libblkid1 libuuid1 libssl3 libudev1 libcap2 zlib1g libtirpc3 "${kerberos[@]}")
    ;;
  *) say "$1 is neither fast nor durable"; exit 2 ;;
  esac
}

# An apt of our own, in the directory work.
apt_config() {
  local mirror
  mirror=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p;s/^deb \(\[[^]]*\] \)\?\(http[^ ]*\).*/\2/p' \
    /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -n 1)
  mkdir -p "$work"/apt/{lists,cache}/partial "$work"/apt/cache/archives/partial
  for s in "${suites[@]}"; do
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:-http://deb.debian.org/debian} $s main contrib"
  done >"$work/apt/sources.list"
  cat >"$work/apt/apt.conf" <<C
Dir::Etc::SourceList "$work/apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$work/apt/lists";
Dir::Cache "$work/apt/cache";
APT::Sandbox::User "root";
C
  export APT_CONFIG=$work/apt/apt.conf
  apt-get update -q >"$work/apt/log" 2>&1 || { tail -n 5 "$work/apt/log" >&2; return 1; }
}

newest() { apt-cache madison "$1" | awk -v v="${2:-}" -F' *\\| *' 'index($2, v) == 1 && !n { n = $2 } END { print n }'; }
fetch() { (cd "$work/deb" && apt-get download -q "$@" >>"$work/apt/log" 2>&1) || { say "apt cannot download: $*"; return 1; }; }

build_kernel() {
  local out=$cache/kernel-$kernel_version-zfs-$zfs_version-$of_kernel
  if [[ ! -e $out/linux ]]; then
    say "building a kernel with ZFS $zfs_version, which takes minutes and is done once ($out)"
    fetch "$kernel=$kernel_version" "zfs-dkms=$zfs_version" || return 1
    mkdir "$work/kernel"
    "$here/kernel.sh" "$work"/deb/"$kernel"_*.deb "$work"/deb/zfs-dkms_*.deb "$work/kernel" >&2 || return 1
    mkdir "$work/kernel-out"
    mv "$work/kernel/linux" "$work/kernel-out/"
    chmod 755 "$work/kernel-out"
    mv "$work/kernel-out" "$out"
    rm -rf "$work/kernel" "$work"/deb/"$kernel"_*.deb
  fi
  cp --reflink=auto "$out/linux" "$work/out/linux"
}

# The tools and their libraries, each library from its own package; "bin" holds starters (see tools/tools.c).
build_userland() {
  fetch "${zfs[@]/%/=$zfs_version}" "${libs[@]}" || return 1
  local name
  mkdir -p "$work/root" "$work/out"/{bin,lib,libexec}
  for name in "${zfs[@]}" "${libs[@]}"; do dpkg-deb -x "$work"/deb/"$name"_*.deb "$work/root" || return 1; done
  find "$work/root" -name '*.so*' \( -type f -o -type l \) -path '*x86_64-linux-gnu*' ! -path '*/gconv/*' ! -path '*/engines-3/*' \
    ! -path '*/ossl-modules/*' -exec cp -a -t "$work/out/lib" {} +
  for name in zfs zpool zdb zvol_id; do
    cp "$(find "$work/root" -type f -perm -1 -name "$name" | head -n 1)" "$work/out/libexec/$name" || return 1
    ln "$work/starter" "$work/out/bin/$name"
  done
  for name in zfs zpool zdb zvol_id; do
    if ! "$work/out/lib/ld-linux-x86-64.so.2" --library-path "$work/out/lib" --list "$work/out/libexec/$name" >"$work/list" 2>&1 ||
      grep -v "$work/out/lib\|vdso" "$work/list" >&2; then
      say "libraries of $name of ZFS $zfs_version are not those that are listed in build.sh"
      return 1
    fi
  done
}

build() {
  describe "$1"
  apt_config || return 1
  zfs_version=$(newest zfsutils-linux "$minor") kernel_version=$(newest "$kernel")
  if [[ -z $zfs_version || -z $kernel_version ]]; then
    say "$archive has no ZFS $minor* or no $kernel any more"
    return 1
  fi
  mkdir -p "$work/deb" "$work/out"
  gcc -static -Os -Wall -Werror -o "$work/out/keeper" -DKEEPER "$here/tools/tools.c" || return 1
  gcc -static -Os -Wall -Werror -o "$work/starter" "$here/tools/tools.c" || return 1
  strip "$work/out/keeper" "$work/starter"
  build_userland && build_kernel || return 1
  printf 'kind %s\nkernel %s\nzfs %s\n' "$1" "$kernel_version" "$zfs_version" >"$work/out/versions"
  chmod 755 "$work/out"
  ready=$cache/machine-$1-$zfs_version-$of_all
  mv "$work/out" "$ready"
}

for t in gcc apt-get apt-cache dpkg-deb; do
  command -v "$t" >/dev/null || { say "$t is missing (.ci/deps installs it)"; exit 1; }
done
for kind in $kinds; do
  work=$(mktemp -d "$cache/.machine-XXXXXX")
  trap 'rm -rf "$work"' EXIT
  if build "$kind"; then echo "$ready"; exit 0; fi
  rm -rf "$work"
  say "no $kind machines"
done
exit 1
