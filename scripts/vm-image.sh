#!/bin/bash
# Builds the disk of a virtual machine for test/vm, as root, and prints the directory it is in:
#
#   scripts/vm-image.sh debian12     kernel 6.1, PostgreSQL 15, SELinux's packages, files labelled
#   scripts/vm-image.sh debian13     kernel 6.12, PostgreSQL 17
#
#   build/vm/debian12-KEY/root.img   an ext4 file system without a partition table
#                         vmlinuz, initrd, packages (name and version of each)
#
# KEY stands for this script and scripts/vm-guest.sh, which say all of what is in it, and the runner. Nothing of the agent is: tests install
# it in each machine, so its changes cost no new image. Does nothing if the directory is there. Images of other keys stay for a while.
# PGHARDEND_VM_CACHE is another directory than build/vm.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "vm-image: $*" >&2
    exit 1
}

common=(systemd-sysv systemd udev dbus kmod initramfs-tools zstd linux-image-cloud-amd64 e2fsprogs iproute2 iputils-ping procps psmisc
    iptables ipset nftables conntrack libseccomp2 strace ca-certificates pgpool2 auditd)
case ${1:-} in
    debian12)
        suite=bookworm security=bookworm-security
        packages=("${common[@]}" postgresql-15 selinux-policy-default selinux-utils policycoreutils policycoreutils-python-utils
            semodule-utils checkpolicy setools)
        ;;
    debian13)
        suite=trixie security=trixie-security
        packages=("${common[@]}" postgresql-17)
        ;;
    *) fail "usage: scripts/vm-image.sh debian12|debian13" ;;
esac
((EUID == 0)) || fail "this needs root: it installs packages below a directory of its own"

cache=${PGHARDEND_VM_CACHE:-build/vm}
mkdir -p "$cache"
key=$(cat scripts/vm-image.sh scripts/vm-guest.sh test/vm/guest/*.go test/vm/wire/*.go | sha256sum | cut -c 1-12)
out=$cache/$1-$key
exec 9>"$cache/$1.lock"
if ! flock -n 9; then
    echo "vm-image: another process builds $1; waiting for it" >&2
    flock 9
fi
if [[ -d $out ]]; then
    touch "$out"
    echo "$out"
    exit 0
fi

began=$SECONDS
work=$(mktemp -d "$(realpath "$cache")/work.XXXXXX")
cleanup() {
    # An interrupted chroot leaves mounts; nothing below one is removed.
    if ! grep -qF " $work/" /proc/self/mountinfo || umount --recursive --lazy "$work"/root/* 2>/dev/null; then
        rm -rf --one-file-system "$work"
    fi
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
log=$cache/$1.log
: >"$log"

name=$1
quietly() { # what, command …
    local what=$1
    shift
    echo "vm-image: $name: $what" >&2
    "$@" >>"$log" 2>&1 || {
        tail -n 30 "$log" >&2
        fail "cannot $what: see above, all of it is in $log"
    }
}

# The mirrors that this host uses, by the way this host reaches them (a proxy, say).
main=$(scripts/mirror.sh)
# shellcheck disable=SC2016 # expanded by apt-get
updates=$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' | awk '$1 == "Debian-Security" { print $2; exit }')
sources=("deb $main $suite main")
if [[ -n $updates ]]; then
    sources+=("deb $updates $security main")
fi
aptopts=()
while IFS= read -r line; do
    aptopts+=("--aptopt=$line")
done < <(apt-config dump | grep -E '^Acquire::(http|https|Check|Retries)')

CGO_ENABLED=0 quietly "compile the runner" go build -trimpath -o "$work/vm-runner" ./test/vm/guest
mkdir "$work/root" "$work/new"
# Written before packages are configured, so that the initial RAM disk is made once and no service asks for anything.
quietly "install ${#packages[@]} packages and what they need" nice -n 5 mmdebstrap --mode=root --variant=minbase --format=directory \
    "${aptopts[@]}" --aptopt='APT::Install-Recommends "false"' --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --include="$(IFS=,; echo "${packages[*]}")" \
    --essential-hook='mkdir -p "$1"/etc/initramfs-tools/conf.d "$1"/usr/share/initramfs-tools/modules.d' \
    --essential-hook='printf "MODULES=list\nRESUME=none\n" >"$1"/etc/initramfs-tools/conf.d/vm' \
    --essential-hook='printf "virtio_pci\nvirtio_blk\next4\ncrc32c_generic\n" >"$1"/usr/share/initramfs-tools/modules.d/vm' \
    --essential-hook='echo LANG=C.UTF-8 >"$1"/etc/default/locale' \
    --customize-hook="install -m 0755 '$work/vm-runner' \"\$1\"/usr/local/sbin/vm-runner" \
    --customize-hook='install -m 0755 scripts/vm-guest.sh "$1"/root/vm-guest.sh' \
    --customize-hook='chroot "$1" /root/vm-guest.sh' \
    --customize-hook='rm "$1"/root/vm-guest.sh' \
    "$suite" "$work/root" "${sources[@]}"
for part in vmlinuz initrd.img; do
    cp -L "$work/root/$part" "$work/new/${part%.img}"
done
chroot "$work/root" dpkg-query --show >"$work/new/packages"
if [[ -e $work/root/etc/selinux/default/policy ]]; then
    # The kernel of this host need not know SELinux for that.
    quietly "label the files" unshare --mount bash -euc 'mount -t proc proc "$1/proc"
        chroot "$1" setfiles -F -e /proc /etc/selinux/default/contexts/files/file_contexts /' - "$work/root"
fi
truncate -s 6G "$work/new/root.img"
quietly "write the disk" mke2fs -q -t ext4 -E lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0 -d "$work/root" "$work/new/root.img"
mv "$work/new" "$out"
# An image has 700 MB; one that is used is touched above.
find "$cache" -maxdepth 1 -type d -name "$name-*" -mtime +7 -exec rm -rf --one-file-system {} +
echo "vm-image: $name: done in $((SECONDS - began)) s" >&2
echo "$out"
