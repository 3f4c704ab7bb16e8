#!/bin/bash
# Prints the share of statements that a coverage profile says were run, for each package below a path and for all of them.
#
#   scripts/coverage.sh build/cover.out github.com/pghardend/pghardend/pkg
set -euo pipefail

# A line of the profile: path/file.go:12.34,15.2 <statements> <times run>. A block that was in several test binaries
# is there several times.
awk -v below="$2/" '
    index($1, below) == 1 {
        statements[$1] = $2
        if ($3 > 0) run[$1] = 1
    }
    END {
        for (block in statements) {
            package = block
            sub(/\/[^\/]*$/, "", package)
            all[package] += statements[block]
            total += statements[block]
            if (block in run) {
                covered[package] += statements[block]
                total_covered += statements[block]
            }
        }
        for (package in all)
            printf "%s %.1f %d %d\n", package, 100 * covered[package] / all[package], covered[package], all[package]
        if (total > 0)
            printf "~total %.1f %d %d\n", 100 * total_covered / total, total_covered, total
    }
' "$1" | LC_ALL=C sort | awk '
    BEGIN { print "coverage of statements by the unit tests:" }
    { sub(/^~/, "", $1); printf "  %-55s %5.1f %%  (%d of %d)\n", $1, $2, $3, $4 }
'
