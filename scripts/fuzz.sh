#!/bin/bash
# Runs every fuzz target of the module, one after the other, for FUZZTIME each. Ends with 1 when one of them found something.
set -euo pipefail

failed=()
count=0
packages=$(go list ./...) # an error ends it here, and would not in the line below
for package in $packages; do
    # An error here (a package that does not compile) must not look like a package without targets.
    targets=$(go test -list '^Fuzz' "$package")
    for target in $(grep '^Fuzz' <<<"$targets" || true); do
        echo "== $package $target"
        count=$((count + 1))
        go test -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-20s}" -fuzzminimizetime 5s "$package" || failed+=("$package $target")
    done
done

if ((${#failed[@]} > 0)); then
    echo "fuzz: ${#failed[@]} of $count targets failed; the inputs are in the packages' testdata/fuzz: keep them as seeds" >&2
    printf '  %s\n' "${failed[@]}" >&2
    exit 1
fi
echo "fuzz: $count targets, nothing found"
