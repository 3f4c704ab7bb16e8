package pkgtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const pgpool = `  pgpool:
    profile: pgpool
    user: postgres
    groups: [ssl-cert]
    command: [/usr/sbin/pgpool, -n, -f, /etc/pgpool2/pgpool.conf]
    start: external
    max_connections: 32
`

// A service whose unit has confined it is launched with nothing to give away, and not at
// all where the unit has left something out.
func TestUnitOfAService(t *testing.T) {
	shared := t.TempDir()
	data, err := os.ReadFile(build(t, t.TempDir(), "1.1")["deb"])
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(shared, "new.deb"), data)
	put(t, filepath.Join(shared, "pghardend.yaml"), []byte(configuration))
	put(t, filepath.Join(shared, "pgpool.yaml"), []byte(configuration+pgpool))
	put(t, filepath.Join(shared, "peers.yaml"), []byte(peers))
	said := boot(t, shared, "unit.sh")
	checkFacts(t, said, map[string]string{
		"control-program": "COPY 1 1",
		"control-filters": "Seccomp_filters: 0",

		"start":              "0",
		"confined":           `Uid: (\d+) .*CapInh: 0{16} CapPrm: 0{16} CapEff: 0{16} CapBnd: 0{16} CapAmb: 0{16} NoNewPrivs: 1 Seccomp: 2 ?`,
		"record":             `root 600 socket:\[\] 0`,
		"layer-dac":          " *yes yes .*",
		"layer-capabilities": " *yes yes .*",
		"layer-seccomp":      " *yes yes .*open_exec.*no exec gate.*",
		"layer-mounts":       " *yes yes .*",
		"layer-landlock":     " *yes yes probed at launch.*",
		"verify":             "0 all .* checks passed.*",
		"verify-gate":        "[1-9].*",
		"verify-digest":      `.* under \d+ of the caller's yes`,
		"program":            "ERROR: .*could not execute command.*",
		"pgbench":            ".*processed: 400/400 .*failed transactions: 0 .*",
		"reload":             "t ",
		"profile-event":      "started with another profile: without huge_pages.*",
		"drill":              "0 .* 0 NOT STOPPED.*",
		"drill-note":         "1",
		"drill-gate":         "0",
		"drill-proc":         "stopped 1: landlock",

		"pgpool":        "0",
		"pgpool-query":  "42 ",
		"pgpool-verify": "0 all .* checks passed.*",
		"pgpool-layers": "dac capabilities seccomp mounts landlock ",

		"complain":   `\d\d +yes complain .*`,
		"complained": ` *yes NO .*filters is \d+, not \d+ or more.*`,

		"refused-capability": `1 103 .*CapabilityBoundingSet= \(bounding is cap_net_raw.*`,
		"refused-group":      `1 103 .*SupplementaryGroups=.*`,
		"refused-user":       `1 103 .*User= .*`,
		"refused-noexec":     `1 96 .*NoExecPaths=.*executable: .*`,
		"refused-read-only":  `1 96 .*ReadOnlyPaths=.*writable: .*`,
		"refused-hidden":     `1 96 .*InaccessiblePaths=.*`,
		"refused-devices":    `1 96 .*PrivateDevices=yes.*`,
		"refused-record":     `1 103 .*StandardOutput=truncate:/run/pghardend/launch/postgres.json.*`,
		"refused-descriptor": `1 103 `,
		"descriptor":         `pghardend: .*descriptor 2 is the record of the launch too.*StandardError=journal.*`,
		"refused-data":       `1 96 .*ReadWritePaths=.*`,
		"refused-nnp":        `1 103 .*NoNewPrivileges=yes.*`,

		"debian":          "0",
		"debian-verify":   "0 all .* checks passed.*",
		"debian-exposure": "1.[0-3]",
		"debian-reload":   "0",
		"debian-stop":     "inactive success",
	})
	m := regexp.MustCompile(`(?m)^fact filters: (\d+) (\d+)$`).FindStringSubmatch(said)
	if m == nil {
		t.Fatal("the filters are not told")
	}
	before, _ := strconv.Atoi(m[1])
	if now, _ := strconv.Atoi(m[2]); before < 10 || now != before+1 {
		t.Errorf("%d filters, %d of them before the launch; want a dozen, and one more", now, before)
	}
}

// The three units differ in what they replace, and in nothing that confines.
func TestUnitsConfineAlike(t *testing.T) {
	confining := func(name string) string {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(root, "packaging/systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		text := string(data)
		from, to := strings.Index(text, "# What follows confines"), strings.Index(text, "MemoryDenyWriteExecute=yes\n")
		if from < 0 || to < from {
			t.Fatalf("%s has no such part", name)
		}
		return strings.Replace(text[from:to], "%i.json", "postgres.json", 1)
	}
	want := confining("pghardend@.service")
	for _, name := range []string{"postgresql-debian.conf", "postgresql-pgdg.conf"} {
		if confining(name) != want {
			t.Errorf("%s confines otherwise than pghardend@.service", name)
		}
	}
}

// With the drop-in, Debian's and PGDG's units are exposed as little as our own.
func TestExposureOfDropIns(t *testing.T) {
	level := regexp.MustCompile(`exposure level for \S+: ([0-9.]+)`)
	for _, name := range []string{"postgresql-debian.conf", "postgresql-pgdg.conf"} {
		text, err := os.ReadFile(filepath.Join(root, "packaging/systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		base := "[Service]\nType=notify\nExecStart=/bin/true\n"
		if strings.Contains(name, "debian") {
			data, err := os.ReadFile("/usr/lib/systemd/system/postgresql@.service")
			if err != nil {
				t.Fatalf("install postgresql-common: %v", err)
			}
			base = string(data)
		}
		unit := filepath.Join(t.TempDir(), "postgresql@.service")
		put(t, unit, []byte(base+"\n"+string(text)))
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", unit).CombinedOutput()
		m := level.FindSubmatch(out)
		if m == nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		if got, _ := strconv.ParseFloat(string(m[1]), 64); got > 1.3 {
			t.Errorf("%s: exposure %v, at most 1.3:\n%s", name, got, out)
		}
	}
}
