#!/bin/bash
# Prints the address of the Debian mirror that this host's apt is set up for.
set -euo pipefail

codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
# shellcheck disable=SC2016 # expanded by apt-get
mirror=$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' 'Component: main' |
    awk -v name="$codename" '$1 == name { print $2; exit }')
if [[ -z $mirror ]]; then
    echo "mirror: cannot find this host's Debian mirror in apt's configuration: run 'apt-get update', or add one" >&2
    exit 1
fi
echo "$mirror"
