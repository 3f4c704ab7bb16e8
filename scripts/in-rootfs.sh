#!/bin/bash
# Runs a command in the files of another Debian, as root, in a mount namespace of its own:
#
#   scripts/in-rootfs.sh ROOTFS [NAME=SOURCE …] -- COMMAND …
#
# ROOTFS, as scripts/rootfs.sh makes it, becomes the root directory, read-only. Each SOURCE, a directory, is at /opt/pghardend/NAME,
# read-only too. /proc, /sys and /dev are the machine's, /run and /tmp are empty; what tests write to disk
# (/var/lib/pghardend-testbed) is in a directory that is removed. One command at a time has a ROOTFS. At the end whatever still
# runs in it is killed, and with the last process the kernel takes the mounts away.
set -euo pipefail

fail() {
    echo "in-rootfs: $*" >&2
    exit 1
}

(($# >= 3)) || fail "usage: scripts/in-rootfs.sh ROOTFS [NAME=SOURCE …] -- COMMAND …"
((EUID == 0)) || fail "this needs root: it mounts"
root=$(realpath -e "$1")
shift
binds=()
while [[ $1 != -- ]]; do
    binds+=("${1%%=*}" "$(realpath -e "${1#*=}")")
    shift
    (($# > 0)) || fail "the command is missing: put -- before it"
done
shift

exec {lock}>"$root.lock"
flock --nonblock "$lock" || fail "another command runs in $root: wait for its end"
identity=$(stat --format %d:%i "$root")

# What runs with this root directory is what the command has left.
sweep() {
    local dir found=yes
    for _ in {1..100}; do
        found=
        for dir in /proc/[0-9]*; do
            if [[ $(stat --dereference --format %d:%i "$dir/root" 2>/dev/null || true) == "$identity" ]]; then
                found=yes
                kill -KILL "${dir#/proc/}" 2>/dev/null || true
            fi
        done
        [[ -n $found ]] || return 0
        sleep 0.1 # they die in their own time
    done
    echo "in-rootfs: processes in $root do not die" >&2
}

sweep # an earlier one that was killed itself
rm -rf --one-file-system "$root".work.*
work=$(mktemp -d "$root.work.XXXXXX")
chmod 0755 "$work"
trap 'sweep; rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# shellcheck disable=SC2016 # expanded by the shell inside
unshare --mount --propagation private bash -euo pipefail -c '
    root=$1 work=$2 binds=$3
    shift 3
    mount --bind "$root" "$root"
    mount -o remount,bind,ro "$root"
    for dir in proc sys dev; do
        mount --rbind "/$dir" "$root/$dir"
    done
    mount -t tmpfs -o mode=0755 tmpfs "$root/run"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    mount -t tmpfs -o mode=0755 tmpfs "$root/opt/pghardend"
    mount --bind "$work" "$root/var/lib/pghardend-testbed"
    for ((; binds > 0; binds -= 2)); do
        mkdir "$root/opt/pghardend/$1"
        mount --bind "$2" "$root/opt/pghardend/$1"
        mount -o remount,bind,ro "$root/opt/pghardend/$1"
        shift 2
    done
    cd "$root"
    mkdir run/old
    pivot_root . run/old
    cd /
    umount --lazy /run/old
    rmdir /run/old
    exec "$@"
' in-rootfs "$root" "$work" "${#binds[@]}" "${binds[@]}" "$@" {lock}>&-
