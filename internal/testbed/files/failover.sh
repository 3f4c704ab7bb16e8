#!/bin/sh
# Promotes the other server when the primary is lost: by SQL, so that the nodes need no ssh among each other.
# failover.sh FAILED-NODE OLD-PRIMARY NEW-HOST NEW-PORT
set -eu
if [ "$1" != "$2" ]; then
    exit 0
fi
exec '{{.Psql}}' -X -q -A -t -v ON_ERROR_STOP=1 -h "$3" -p "$4" -U '{{.Superuser}}' -d postgres -c 'SELECT pg_promote(true, 60)'
