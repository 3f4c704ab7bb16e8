// Package pkgtest builds the packages and lives with them: on a Debian of its own, booted by systemd in namespaces.
package pkgtest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/pghardend/pghardend/internal/testbed"
)

const root = "../.."

// build makes the packages of a copy of the sources in dir and returns their paths by
// extension. The version is given, so that it does not matter which commit this is.
func build(t *testing.T, dir, version string) map[string]string {
	t.Helper()
	copySources(t, dir)
	// What PATH finds may be another go than the one that runs this.
	cmd := exec.Command("scripts/package.sh")
	cmd.Dir = dir
	nfpm, err := filepath.Abs(onlyOne(t, filepath.Join(root, "build/bin/nfpm-*")))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), "PACKAGE_VERSION="+version, "SOURCE_DATE_EPOCH=1700000000", "NFPM="+nfpm, "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the packages: %v\n%s", err, out)
	}
	return map[string]string{
		"deb": onlyOne(t, filepath.Join(dir, "build/packages/*.deb")),
		"rpm": onlyOne(t, filepath.Join(dir, "build/packages/*.rpm")),
	}
}

func onlyOne(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %v, %v; run `make package`, it installs nfpm", pattern, found, err)
	}
	return found[0]
}

func copySources(t *testing.T, dir string) {
	t.Helper()
	cmd := exec.Command("bash", "-c", `git -c safe.directory='*' ls-files -co --exclude-standard -z | tar -c --null -T - | tar -x -C "$1"
		if [ -e build/selinux/pghardend.pp ]; then mkdir -p "$1/build/selinux"; cp build/selinux/pghardend.pp "$1/build/selinux/"; fi`, "-", dir)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot copy the sources: %v\n%s", err, out)
	}
}

func same(t *testing.T, a, b string) {
	t.Helper()
	first, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Errorf("%s and %s differ: the build depends on where or when it runs", a, b)
	}
}

func TestPackagesAreReproducibleAndClean(t *testing.T) {
	deep := filepath.Join(t.TempDir(), "another", "place")
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	one, two := build(t, t.TempDir(), "1.0"), build(t, deep, "1.0")
	for kind := range one {
		same(t, one[kind], two[kind])
	}
	out, err := exec.Command("lintian", "--allow-root", "--fail-on", "error,warning", one["deb"]).CombinedOutput()
	if err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("lintian: %v\n%s", err, out)
	}
	out, err = exec.Command("rpm", "-qlp", one["rpm"]).CombinedOutput()
	if err != nil {
		t.Fatalf("rpm -qlp: %v\n%s", err, out)
	}
	for _, file := range []string{"/usr/bin/pghardend", "/etc/pghardend/pghardend.yaml", "/usr/lib/systemd/system/pghardend@.service", "/usr/share/man/man8/pghardend.8.gz"} {
		if !strings.Contains(string(out), file+"\n") {
			t.Errorf("the rpm lacks %s", file)
		}
	}
}

// exposures are what systemd-analyze(1) gives the units; their comments say what is left and why.
var exposures = map[string]float64{"pghardend.service": 2.5, "pghardend-boot.service": 2.5, "pghardend-repair.service": 3.7, "pghardend@.service": 1.3}

func TestExposureOfUnits(t *testing.T) {
	level := regexp.MustCompile(`exposure level for \S+: ([0-9.]+)`)
	for unit, most := range exposures {
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", filepath.Join(root, "packaging/systemd", unit)).CombinedOutput()
		if m := level.FindSubmatch(out); m == nil {
			t.Errorf("%s: %v\n%s", unit, err, out)
		} else if got, _ := strconv.ParseFloat(string(m[1]), 64); got > most {
			t.Errorf("%s: exposure %v, at most %v:\n%s", unit, got, most, out)
		}
	}
}

const configuration = `version: 1
node: pg-0
services:
  postgres:
    profile: postgres
    user: postgres
    groups: [ssl-cert]
    command: [/usr/lib/postgresql/15/bin/postgres, -D, /var/lib/postgresql/15/main, -c, config_file=/etc/postgresql/15/main/postgresql.conf]
    start: external
    max_connections: 100
    landlock: {write: [/var/log/postgresql]}
`

const peers = `version: 1
instance: orders
nodes:
  - {name: pg-0, role: postgres, addresses: [10.20.1.10]}
  - {name: pool-0, role: pgpool, addresses: [10.20.1.20]}
networks:
  control_plane: [10.0.0.0/24]
  applications: [10.50.0.0/16]
`

// boot runs a script of testdata on a Debian of its own and returns what it says.
func boot(t *testing.T, shared, script string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", script))
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(shared, script), text)
	said, err := testbed.Booted(t.Context(), shared, script)
	if err != nil {
		t.Fatal(err)
	}
	return said
}

func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o644); err != nil { // as an operator's umask leaves it
		t.Fatal(err)
	}
}

// F17: install, three commands, upgrade and downgrade under load, removal, purge.
func TestF17_LifeOfThePackage(t *testing.T) {
	shared := t.TempDir()
	for name, version := range map[string]string{"old.deb": "1.0", "new.deb": "1.1"} {
		data, err := os.ReadFile(build(t, t.TempDir(), version)["deb"])
		if err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(shared, name), data)
	}
	put(t, filepath.Join(shared, "pghardend.yaml"), []byte(configuration))
	put(t, filepath.Join(shared, "peers.yaml"), []byte(peers))
	said := boot(t, shared, "life.sh")
	checkFacts(t, said, map[string]string{
		"distribution":         "active", // the control: Debian's own server ran before
		"install":              "0",
		"inert":                "enabled inactive 0 rules",
		"failed-after-install": "0",
		"bash":                 "pghardend 1.0 ",
		"zsh":                  "pghardend 1.0 ",
		"fish":                 "verify version ",
		"start":                "0",
		"units":                "active active inactive",
		"main":                 "same",
		"confined":             `Uid: (\d+) .*CapEff: 0{16} CapBnd: 0{16} NoNewPrivs: 1 Seccomp: 2 ?`,
		"adopted":              `postgres ready \d+ `,
		"rules":                "some",
		"psql":                 "42",
		"upgrade":              "0",
		"new-agent":            "active",
		"downgrade":            "0",
		"stopped":              "inactive rules postgres",
		"pgbench":              `0 .*failed transactions: 0 .*`,
		"same-postmaster":      "same",
		"remove":               "0",
		"after-remove":         "rules postgres [1-9].*",
		"purge-with-data":      "/var/lib/pghardend/mine ",
		"data":                 "/var/lib/postgresql/15/main/PG_VERSION",
		"purge":                "0",
	})
}

// The agent keeps all that it keeps in the unit that hardens it, by itself or by the repair unit, and starts a service only with the drop-in.
func TestAgentInItsUnit(t *testing.T) {
	shared := t.TempDir()
	data, err := os.ReadFile(build(t, t.TempDir(), "1.0")["deb"])
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(shared, "new.deb"), data)
	// No full look comes in time: what is put back was noticed by itself.
	put(t, filepath.Join(shared, "pghardend.yaml"), []byte(configuration+"reconcile: {full: 10m}\n"))
	put(t, filepath.Join(shared, "peers.yaml"), []byte(peers))
	checkFacts(t, boot(t, shared, "agentunit.sh"), map[string]string{
		"adopted":         "yes",
		"ok":              "yes",
		"filtered":        "NoNewPrivs: 1 Seccomp: 2 ?",
		"capabilities":    "CapBnd: 000000e04008300c", // those that the unit lists
		"verify":          "0",
		"rules":           "yes",
		"rules6":          "yes",
		"sets":            "yes",
		"sysctl":          "yes",
		"others-settings": "read-only",
		"mode":            "yes",
		"owner":           "yes",
		"own-files":       "yes",
		"mounts":          "yes",
		"who-repaired":    "success 0 ?",
		"ok-again":        "yes",
		"asked":           "pghardend-repair.service was asked to",
		"nobody":          "yes",        // the control: without the repair unit, status says so
		"nobody-did":      "rw,[a-z,]*", // and the mount is as it came
		"after-all":       "yes",
		"ok-after-all":    "yes",
		"raised":          "yes",
		"denial":          "yes",
		"readopted":       "yes",
		"killed":          "yes",
		"stop-refused":    "systemctl stop runs",
		"refused":         "yes",
		"refused-runs":    "0",
		"started":         "yes",
		"started-ok":      "yes",
		"confined":        "CapEff: 0{16} CapBnd: 0{16} NoNewPrivs: 1 Seccomp: 2 Seccomp_filters: 1 ?",
		"left":            "runs",
	})
}

// checkFacts compares the lines "fact NAME: VALUE" with expressions for the whole value.
func checkFacts(t *testing.T, said string, facts map[string]string) {
	t.Helper()
	for fact, want := range facts {
		m := regexp.MustCompile(`(?m)^fact ` + fact + `: (.*)$`).FindStringSubmatch(said)
		if m == nil || !regexp.MustCompile(`^(?:`+want+`)$`).MatchString(m[1]) {
			t.Errorf("%s: %q, want %q", fact, m, want)
		}
	}
	if t.Failed() {
		t.Log(said)
	}
}
