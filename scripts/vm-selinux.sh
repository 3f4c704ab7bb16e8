#!/bin/bash
# Makes a copy of the disk of a virtual machine with the module of policies/selinux in its policy, its ports typed and all files labelled, as root, and
# prints its path. Inside the machine, which is emulated, the same takes minutes; here it is some ten seconds.
#
#   scripts/vm-selinux.sh build/vm/debian12-KEY
#
# It is there for as long as the module, the ports and this script are the same.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

((EUID == 0)) || {
    echo "vm-selinux: this needs root: it mounts a disk" >&2
    exit 1
}
image=$(realpath "$1")
scripts/selinux.sh module >&2
key=$(cat "$0" build/selinux/pghardend.pp policies/selinux/ports | sha256sum | cut -c 1-12)
out=$image/selinux-$key.img
exec 9>"$image/selinux.lock"
flock 9
if [[ -e $out ]]; then
    echo "$out"
    exit 0
fi

began=$SECONDS
rm -f "$image"/selinux-*.img "$image"/selinux-*.new
new=$out.new
trap 'rm -f "$new"' EXIT
cp --sparse=always "$image/root.img" "$new"
log=$image/selinux.log
# What is mounted goes with the namespace, and the loop device with the mount.
nice -n 5 unshare --mount --net bash -euc '
    disk=$1 root=$(mktemp -d)
    trap "rmdir $root" EXIT
    mount -o loop "$disk" "$root"
    trap "umount --recursive $root; rmdir $root" EXIT
    mount -t proc proc "$root/proc"
    mount -t tmpfs tmpfs "$root/tmp"
    cp build/selinux/pghardend.pp "$root/tmp/"
    # Ports go straight to the store, from which the one build takes them: semanage would build anew for each.
    active=$root/var/lib/selinux/default/active
    sed -nE "s/^(tcp|udp) ([0-9]+) (pghardend_\w+)$/portcon \1 \2 system_u:object_r:\3:s0/p" policies/selinux/ports >"$active/ports.local"
    echo "portcon tcp 5433 system_u:object_r:postgresql_port_t:s0" >>"$active/ports.local" # of a second server
    chroot "$root" semodule -n -s default -i /tmp/pghardend.pp
    umount "$root/tmp"
    chroot "$root" setfiles -F -e /proc /etc/selinux/default/contexts/files/file_contexts /
' - "$new" >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    echo "vm-selinux: cannot build the policy of $image: see above" >&2
    exit 1
}
mv "$new" "$out"
echo "vm-selinux: the policy of ${image##*/}: done in $((SECONDS - began)) s" >&2
echo "$out"
