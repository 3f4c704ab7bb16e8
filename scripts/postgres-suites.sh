#!/bin/bash
# Fetches PostgreSQL's own tests for the version that is installed, and prints the directory they are in:
#
#   scripts/postgres-suites.sh [ROOTFS SUITE]    of this host, or of a Debian that scripts/rootfs.sh has made
#
#   build/postgres-suites/VERSION/regress      regression tests   (sql, expected, data, parallel_schedule)
#                                isolation     isolation tests    (specs, expected, isolation_schedule)
#                                ext/NAME      tests of a language or a contrib module; the file tests has their names
#                                lib           regress.so, autoinc.so, refint.so: what the tests load
#
# The tests are those of Debian's source package, and regress.so is compiled with the headers of Debian's own build. The
# drivers (pg_regress, isolationtester) are in postgresql-client-NN. Nothing is installed, and apt's configuration and
# lists are left alone: the lists of source packages are fetched to a directory of this script's own. apt checks the
# signatures of the lists, and with them the checksums of what it fetches. Does nothing if the directory is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extensions=(src/pl/plpgsql/src src/pl/plperl contrib/citext contrib/dblink contrib/file_fdw contrib/hstore contrib/ltree
    contrib/pg_stat_statements contrib/pg_trgm contrib/pgcrypto contrib/postgres_fdw contrib/tablefunc contrib/test_decoding
    contrib/uuid-ossp)

fail() {
    echo "postgres-suites: $*" >&2
    exit 1
}

root=${1:-} suite=${2:-}
query() {
    dpkg-query --admindir="$root/var/lib/dpkg" --show --showformat="$1" "$2"
}

# The newest server, as the test bed picks it.
bin=$(printf '%s\n' "$root"/usr/lib/postgresql/*/bin/postgres | sort -V | tail -n 1)
[[ -x $bin ]] || fail "cannot find a server below /usr/lib/postgresql: run 'make deps'"
major=$(basename "$(dirname "$(dirname "$bin")")")
server=postgresql-$major
version=$(query '${Version}' "$server")
source=$(query '${source:Package}=${source:Version}' "$server")
out=build/postgres-suites/$version
if [[ -d $out ]]; then
    echo "$out"
    exit 0
fi

mkdir -p build/postgres-suites
work=$(mktemp -d "$PWD/build/postgres-suites/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
log=build/postgres-suites/log
: >"$log"

quietly() { # what, command …
    local what=$1
    shift
    "$@" >>"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        fail "cannot $what: see above, all of it is in $log"
    }
}

# Where the installed version came from: "name | version | URI suite/component arch Packages".
if [[ -z $root ]]; then
    read -r uri place _ < <(apt-cache madison "$server" | awk -F ' *[|] *' -v v="$version" '$2 == v { print $3; exit }') ||
        fail "no package source of this host offers $server $version any more, so its tests cannot be had: update $server"
else
    uri=$(scripts/mirror.sh)
    place=$suite/main
fi
mkdir -p "$work"/{lists,cache,src,dev}
printf "%s $uri ${place%/*} ${place##*/}\n" deb deb-src >"$work/sources.list"
cat >"$work/apt.conf" <<END
Dir::Etc::SourceList "$work/sources.list";
Dir::Etc::SourceParts "-";
Dir::State::Lists "$work/lists";
Dir::Cache "$work/cache";
APT::Sandbox::User "root";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets::deb-src::DEP-11;
END
echo "postgres-suites: fetching $source (output: $log)" >&2
quietly "fetch the lists of packages" apt-get -q -c "$work/apt.conf" update
cd "$work/src"
log=$OLDPWD/$log
quietly "fetch the source of $server" apt-get -q -c "$work/apt.conf" source --download-only "$source"
quietly "unpack the source of $server" dpkg-source --no-check -x ./*.dsc tree # apt has checked it
cd "$work/dev"
quietly "fetch the headers of $server" apt-get -q -c "$work/apt.conf" download "postgresql-server-dev-$major=$version"
quietly "unpack the headers of $server" dpkg-deb -x ./*.deb .

tree=$work/src/tree
new=$work/new
mkdir -p "$new"/{regress,isolation,ext,lib}
cp -r "$tree"/src/test/regress/{sql,expected,data,resultmap,parallel_schedule} "$new/regress"
cp -r "$tree"/src/test/isolation/{specs,expected,isolation_schedule} "$new/isolation"
for path in "${extensions[@]}"; do
    name=$(basename "${path%/src}")
    mkdir "$new/ext/$name"
    for part in sql expected data pg_service.conf; do
        [[ ! -e $tree/$path/$part ]] || cp -r "$tree/$path/$part" "$new/ext/$name"
    done
    # The names are a variable of the module's Makefile.
    sed -e ':a' -e '/\\$/{N;s/\\\n//;ta' -e '}' "$tree/$path"/*akefile |
        sed -nE 's/^REGRESS *[:+]?= *//p' | tr -s ' \t' '\n\n' | grep -vE '^(\$.*)?$' >"$new/ext/$name/tests"
done
quietly "compile regress.so" gcc -O2 -fPIC -shared -Wall -I"$tree/src/test/regress" \
    -I"$work/dev/usr/include/postgresql/$major/server" -o "$new/lib/regress.so" "$tree/src/test/regress/regress.c"
cp "$(dirname "$bin")"/../lib/{autoinc,refint}.so "$new/lib"

cd "$work/../../.."
mv "$new" "$out"
echo "$out"
