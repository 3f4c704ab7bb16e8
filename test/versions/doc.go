// Package versions shows that other versions of PostgreSQL and of glibc do their work in the box: it runs the tests of
// test/suites in the files of another Debian (scripts/rootfs.sh, scripts/in-rootfs.sh), with that Debian's server or with one
// of another version (scripts/embedded-postgres.sh). The program and the tests are built here, as a package for Debian 12 is.
// The kernel is this machine's. make test-versions prints at its end which versions ran, and what.
package versions
