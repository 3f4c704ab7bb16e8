#!/bin/bash
# Builds what policies/selinux says.
#
#   scripts/selinux.sh module   build/selinux/pghardend.pp, the same bytes each time
#   scripts/selinux.sh store    … and a copy of Debian's policy with the module in it, for tests: build/selinux/store.
#                               The policy comes from Debian's package, which is unpacked and not installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source=policies/selinux
out=build/selinux
store=$PWD/$out/store
type=default

# Tests of machines build it side by side: what is there is always whole.
module() {
    mkdir -p "$out"
    work=$(mktemp -d "$out/work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # The version of the format is fixed: EL 9 and Debian 12 both read it, and a newer compiler would write a newer one.
    checkmodule -M -m -c 21 -o "$work/pghardend.mod" "$source/pghardend.te"
    # Comments and empty lines are for people.
    sed -E '/^(#|$)/d' "$source/pghardend.fc" >"$work/pghardend.fc"
    semodule_package -o "$work/pghardend.pp" -m "$work/pghardend.mod" -f "$work/pghardend.fc"
    chmod 0644 "$work/pghardend.pp"
    mv "$work/pghardend.pp" "$out/"
}

# Debian's policy, installed into a directory of ours: no kernel, no root and no change to the host's own policy is needed.
base() {
    local package
    package=$(apt-cache show --no-all-versions selinux-policy-default | sed -n 's/^Version: //p')
    if [[ -n $package && -e $store/.complete && $(<"$store/.complete") == "$package" ]]; then
        return
    fi
    rm -rf "$store"
    mkdir -p "$store/etc/selinux" "$store/var/lib/selinux" "$out/package"
    (cd "$out/package" && rm -rf ./* && apt-get download -q selinux-policy-default >&2 && dpkg-deb -x ./*.deb .)
    cp -a "$out/package/etc/selinux/$type" "$store/etc/selinux/"
    printf 'SELINUX=enforcing\nSELINUXTYPE=%s\n' "$type" >"$store/etc/selinux/config"
    printf 'module-store = direct\nexpand-check = 1\n' >"$store/etc/selinux/semanage.conf"
    local modules=() m
    for m in $(<"$out/package/usr/share/selinux/$type/.modules"); do
        modules+=(-i "$out/package/usr/share/selinux/$type/$m.pp.bz2")
    done
    semodule -p "$store" -s "$type" -n -X 100 "${modules[@]}"
    printf '%s' "$package" >"$store/.complete"
}

case ${1:-module} in
    module) module ;;
    store)
        module
        base
        semodule -p "$store" -s "$type" -n -X 400 -i "$out/pghardend.pp"
        ;;
    *)
        echo "usage: scripts/selinux.sh [module|store]" >&2
        exit 2
        ;;
esac
