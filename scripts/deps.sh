#!/bin/bash
# Names, and as root installs, the Debian packages that this project needs.
#
#   scripts/deps.sh build   to compile and lint
#   scripts/deps.sh unit    … and to run the unit tests
#   scripts/deps.sh selinux to compile the SELinux module and ask it what it allows
#   scripts/deps.sh all     … and to run the end-to-end tests, PostgreSQL's own tests and the demo
#   scripts/deps.sh versions … and to run other versions of PostgreSQL
#   scripts/deps.sh vm      … and to build and boot virtual machines
#
# Does nothing when nothing is missing. While it installs, no service is started and no PostgreSQL cluster is created;
# both switches are taken away again afterwards. A pgpool that it installs is not started at boot either.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=(gcc libc6-dev pkg-config libseccomp-dev git ca-certificates)
unit=(postgresql-15 postgresql-client-15 procps)
e2e=(iptables ipset nftables conntrack iproute2 iputils-ping util-linux strace sudo pgpool2)
selinux=(checkpolicy semodule-utils policycoreutils setools)
package=(lintian rpm systemd systemd-sysv dbus postgresql-common bash-completion zsh fish)
suites=(postgresql-plperl-15 postgresql-15-pgaudit dpkg-dev patch xz-utils bzip2)
vm=(qemu-system-x86 qemu-utils mmdebstrap debian-archive-keyring e2fsprogs iproute2)
versions=(debootstrap debian-archive-keyring)
if ! command -v npm >/dev/null; then # node may be from elsewhere, with npm in it
    versions+=(npm)
fi

case ${1:-all} in
    build) wanted=("${build[@]}") ;;
    unit) wanted=("${build[@]}" "${unit[@]}") ;;
    selinux) wanted=("${build[@]}" "${selinux[@]}") ;;
    all) wanted=("${build[@]}" "${unit[@]}" "${selinux[@]}" "${e2e[@]}" "${package[@]}" "${suites[@]}") ;;
    versions) wanted=("${build[@]}" "${unit[@]}" "${e2e[@]}" "${suites[@]}" "${versions[@]}") ;;
    vm) wanted=("${build[@]}" "${unit[@]}" "${selinux[@]}" "${e2e[@]}" "${package[@]}" "${suites[@]}" "${vm[@]}") ;;
    *)
        echo "usage: scripts/deps.sh [build|unit|selinux|all|versions|vm]" >&2
        exit 2
        ;;
esac

if ! command -v dpkg-query >/dev/null; then
    echo "deps: this is not a Debian system; install the equivalents of: ${wanted[*]}" >&2
    exit 1
fi

missing=()
for package in "${wanted[@]}"; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    if [[ $status != installed ]]; then
        missing+=("$package")
    fi
done
if ((${#missing[@]} == 0)); then
    exit 0
fi
if ((EUID != 0)); then
    echo "deps: not installed: ${missing[*]}" >&2
    echo "deps: run 'make deps' as root, or: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
fi

# plperl fits one version of the server only: the one that is here, if there is one, and not what it would be updated to.
server=$(dpkg-query --show --showformat='${db:Status-Status} ${Version}' postgresql-15 2>/dev/null || true)
if [[ $server == 'installed '* ]]; then
    missing=("${missing[@]/%postgresql-plperl-15/postgresql-plperl-15=${server#* }}")
fi

# Debian's PostgreSQL package creates and starts a cluster, and starts every other one on the host, unless told not to.
cluster_dir=/etc/postgresql-common/createcluster.d
cluster_conf=$cluster_dir/pghardend-deps.conf
policy=/usr/sbin/policy-rc.d
mark='temporary: pghardend scripts/deps.sh'
made_dir=

# Debian's pgpool2 runs from the next boot on unless told not to. One that was here before is somebody's, and stays as it is.
keep_pgpool_off() {
    if [[ " ${missing[*]} " == *' pgpool2 '* ]]; then
        update-rc.d pgpool2 disable
    fi
}

put_back() {
    rm -f "$cluster_conf"
    if [[ -n $made_dir ]]; then
        rmdir --parents --ignore-fail-on-non-empty "$cluster_dir" 2>/dev/null || true
    fi
    if grep -qsF "$mark" "$policy"; then
        rm -f "$policy"
    fi
}
trap put_back EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [[ ! -d $cluster_dir ]]; then
    made_dir=yes
    mkdir -p "$cluster_dir"
fi
printf '# %s\ncreate_main_cluster = false\n' "$mark" >"$cluster_conf"
if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\n# %s\nexit 101\n' "$mark" >"$policy"
    chmod 0755 "$policy"
fi

# needrestart, where installed, would restart the host's own services.
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
log=build/deps.log
mkdir -p build
echo "deps: installing ${missing[*]} (output: $log)"
{
    apt-get update -q </dev/null || echo "deps: apt-get update failed; trying with the package lists there are"
    apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 "${missing[@]}" </dev/null &&
        keep_pgpool_off
} >"$log" 2>&1 || {
    cat "$log" >&2
    echo "deps: cannot install ${missing[*]}: see apt-get's messages above" >&2
    exit 1
}
