#!/bin/bash
# Makes the files of another Debian, and prints the directory they are in: build/rootfs/SUITE-NUMBER.
#
#   scripts/rootfs.sh SUITE PACKAGE …
#
# The packages are those of this host's own Debian mirror, checked by the keys of debian-archive-keyring. They are installed
# by their own scripts, but no service is started and no PostgreSQL cluster is created. Does nothing if the directory is
# there; the number is that of the packages' names. Everything is mounted in a mount namespace that ends with it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "rootfs: $*" >&2
    exit 1
}

(($# >= 1)) || fail "usage: scripts/rootfs.sh SUITE PACKAGE …"
((EUID == 0)) || fail "this needs root: the files belong to root"
suite=$1
shift
number=$(printf '%s\n' "$@" | LC_ALL=C sort | cksum | cut -d ' ' -f 1)
out=build/rootfs/$suite-$number
mkdir -p build/rootfs
exec {lock}>"build/rootfs/$suite.lock"
flock "$lock" # another one of this name is made by one process only
if [[ -d $out ]]; then
    echo "$out"
    exit 0
fi

mirror=$(scripts/mirror.sh)
log=$PWD/build/rootfs/$suite.log
work=$(mktemp -d "$PWD/build/rootfs/work.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

quietly() { # what, command …
    local what=$1
    shift
    # Not the lock: what a package starts by mistake would keep it.
    "$@" >>"$log" 2>&1 </dev/null {lock}>&- || {
        tail -n 20 "$log" >&2
        fail "cannot $what: see above, all of it is in $log"
    }
}

echo "rootfs: making Debian $suite with $* (output: $log)" >&2
chmod 0755 "$work"
: >"$log"
quietly "fetch the packages of Debian $suite" debootstrap --foreign --variant=minbase \
    --keyring=/usr/share/keyrings/debian-archive-keyring.gpg --include="$(IFS=, && echo "$*")" "$suite" "$work" "$mirror" \
    /usr/share/debootstrap/scripts/sid # which is that of all since 2018; an older debootstrap does not know newer names
mkdir -p "$work"/etc/postgresql-common/createcluster.d "$work"/etc/dpkg/dpkg.cfg.d "$work"/usr/sbin
echo 'create_main_cluster = false' >"$work/etc/postgresql-common/createcluster.d/none.conf"
echo 'force-unsafe-io' >"$work/etc/dpkg/dpkg.cfg.d/unsafe-io"
printf '#!/bin/sh\nexit 101\n' >"$work/usr/sbin/policy-rc.d"
chmod 0755 "$work/usr/sbin/policy-rc.d"
quietly "install the packages of Debian $suite" unshare --mount --propagation private chroot "$work" /debootstrap/debootstrap --second-stage
rm -rf "$work"/var/cache/apt/archives/*.deb
mkdir -p "$work/opt/pghardend" "$work/var/lib/pghardend-testbed" # in-rootfs.sh mounts there
mv "$work" "$out"
echo "$out"
