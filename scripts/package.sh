#!/bin/bash
# Builds build/packages/*.deb and *.rpm. The same commit gives the same bytes, wherever it is checked out.
#
#   PACKAGE_VERSION      default: the tag without its v, else 0.0~git and the commit's time and name
#   SOURCE_DATE_EPOCH    default: the commit's time
#   PACKAGERS            default: "deb rpm"
#   PGHARDEND_RELEASE=1  refuses what a release must not lack, the SELinux module; so does a tag by itself
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

NFPM=${NFPM:-build/bin/nfpm}
GO=${GO:-go}
git_() { git -c safe.directory='*' "$@"; }

export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git_ log -1 --format=%ct)}
tag=$(git_ describe --exact-match --tags --match 'v[0-9]*' 2>/dev/null || true)
if [[ -z ${PACKAGE_VERSION:-} ]]; then
    if [[ -n $tag ]]; then
        PACKAGE_VERSION=${tag#v}
        PGHARDEND_RELEASE=1
    else
        PACKAGE_VERSION=0.0~git$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S).$(git_ rev-parse --short=7 HEAD)
    fi
fi
PACKAGE_ARCH=$($GO env GOARCH)
export PACKAGE_VERSION PACKAGE_ARCH TZ=UTC LC_ALL=C

module=build/selinux/pghardend.pp
if [[ -n $(find policies/selinux -name '*.te' 2>/dev/null) ]]; then
    make --no-print-directory selinux
fi
if [[ ! -e $module ]]; then
    echo "package: $module is missing: these packages are WITHOUT the SELinux module" >&2
    if [[ -n ${PGHARDEND_RELEASE:-} ]]; then
        echo 'package: a release must have it' >&2
        exit 1
    fi
fi

rm -rf build/package
mkdir -p build/package build/packages
# Position-independent, and without symbols and build identifiers, which name the way that it was linked.
$GO build -trimpath -buildmode=pie -o build/package/pghardend \
    -ldflags "-s -w -buildid= -X github.com/pghardend/pghardend/internal/cli.version=$PACKAGE_VERSION -extldflags '-Wl,-z,relro,-z,now,--build-id=none'" \
    ./cmd/pghardend
day=$(date -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%d)
$GO run ./packaging/generate -version "$PACKAGE_VERSION" -date "$day" build/package

gzip -9n <CHANGELOG.md >build/package/changelog.gz
gzip -9n >build/package/changelog.Debian.gz <<EOF
pghardend ($PACKAGE_VERSION-1) unstable; urgency=medium

  * Built from upstream; see changelog.gz for what changed.

 -- pghardend developers <pghardend@users.noreply.github.com>  $(date -R -d "@$SOURCE_DATE_EPOCH")
EOF
chmod -R u=rwX,go=rX build/package
cp packaging/nfpm.yaml build/package/nfpm.yaml
if [[ -e $module ]]; then
    cat packaging/nfpm-selinux.yaml >>build/package/nfpm.yaml
fi
# The time of all files is SOURCE_DATE_EPOCH; nfpm reads it.
rm -f build/packages/pghardend[_-]*
for packager in ${PACKAGERS:-deb rpm}; do
    "$NFPM" package --config build/package/nfpm.yaml --packager "$packager" --target build/packages/ >/dev/null
done
ls build/packages/pghardend[_-]*
