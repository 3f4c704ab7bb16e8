package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/mac"
)

// landlockConfig is a configuration with a service of a profile and more keys.
func landlockConfig(profile, command, more string) string {
	return configHead + "services:\n  svc:\n    profile: " + profile + "\n    user: postgres\n    command: " + command + "\n" + more
}

const pgCommand = "[/usr/lib/postgresql/15/bin/postgres, -D, /var/lib/postgresql/15/main]"

func TestLandlockSpec(t *testing.T) {
	spec := mustBuild(t, landlockConfig("postgres", pgCommand, "    landlock: {read: [/srv/ca], write: [/srv/ts], bind: [5433], connect: [389]}\n")).Services[0].Landlock
	if spec.Mode != launch.LandlockRequired || spec.RecordDir != "/run/pghardend/landlock" || !spec.Rules.Signals || !spec.Rules.Abstract {
		t.Errorf("%+v", spec)
	}
	for _, want := range []mac.Rule{
		{Path: "/var/lib/postgresql/15/main", Access: mac.Read | mac.Write | mac.Link, Setting: "services.svc.data_dir"},
		{Path: "/srv/ca", Access: mac.Read, Setting: "services.svc.landlock.read[0]"},
		{Path: "/srv/ts", Access: mac.Write | mac.Link | mac.Socket, Setting: "services.svc.landlock.write[0]"},
	} {
		if !slices.Contains(spec.Rules.Rules, want) {
			t.Errorf("no rule %+v", want)
		}
	}
	if off := mustBuild(t, landlockConfig("postgres", pgCommand, "    landlock: {mode: off}\n")).Services[0].Landlock; off.Mode != launch.LandlockOff || off.Rules.Rules != nil {
		t.Errorf("%+v", off)
	}
}

// The ports are those of the matrix: the service's own to listen on, what its role
// may reach to connect to. ssh is no service's, though every node's.
func TestLandlockPorts(t *testing.T) {
	for _, c := range []struct {
		profile, command, more string
		bind, connect          []uint16
	}{
		{"postgres", pgCommand, "", []uint16{5432}, []uint16{53, 5432}},
		{"postgres", "[/usr/lib/postgresql/15/bin/postgres, -p, '6000', -D, /data/pg]", "", []uint16{5432, 6000}, []uint16{53, 5432, 6000}},
		{"postgres", pgCommand, "flows: {backup: {enabled: true}, postgres: {ports: [5433]}}\n", []uint16{5433}, []uint16{53, 443, 5433}},
		{"pgpool", "[/usr/sbin/pgpool, -n]", "", []uint16{9000, 9898, 9999}, []uint16{53, 5432, 9000, 9898, 9999}},
	} {
		set := mustBuild(t, landlockConfig(c.profile, c.command, c.more)).Services[0].Landlock.Rules
		want := mac.RuleSet{Bind: mac.Ports{Restricted: true, Allowed: c.bind}, Connect: mac.Ports{Restricted: true, Allowed: c.connect}}
		if diff := cmp.Diff(want, mac.RuleSet{Bind: set.Bind, Connect: set.Connect}); diff != "" {
			t.Errorf("%s %s: -want +got\n%s", c.profile, c.more, diff)
		}
	}
}

func TestF18_LandlockCollisions(t *testing.T) {
	for path, want := range map[string]string{
		"/etc/ssl":                   "must not write to /etc",
		"/usr/lib/postgresql/15/bin": "it may execute: keep the two apart",
		"/proc/sys":                  "must not write to /proc",
		"/sys":                       "must not write to /sys",
		"/var":                       "must not write to /var/lib/dpkg",
		"/run":                       "must not write to /run/systemd",
		"/run/pghardend/services":    "must not write to /run/pghardend",
		"/var/lib/pghardend":         "must not write to /var/lib/pghardend",
		"/opt/scripts":               "it may execute: keep the two apart",
	} {
		_, err := build(t, landlockConfig("postgres", pgCommand, "    helpers: [/opt/scripts/archive]\n    landlock: {write: [/srv/ok, "+path+"]}\n"))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "pghardend.yaml:9: services.svc.landlock.write[1]: "+path) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if _, err := build(t, landlockConfig("postgres", "[/usr/bin/postgres, -D, /etc/data]", "")); err == nil || !strings.Contains(err.Error(), "services.svc.data_dir: /etc/data") {
		t.Errorf("%v", err)
	}
}

// F30: what runs without the layer is flagged where that is accepted, and a reason
// where it is not. The same holds for rules that are not those of the launch.
func TestF30_StatusShowsLandlock(t *testing.T) {
	dir := t.TempDir()
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	rest := string(stat[strings.LastIndexByte(string(stat), ')')+1:])
	start := strings.Fields(rest)[19] // field 22
	var rules mac.RuleSet
	record := func(abi int, digest string) string {
		return fmt.Sprintf(`{"pid": %d, "start_ticks": %s, "boot_id": %q, "time": "2026-01-02T03:04:05Z", "abi": %d, "rules": %q, "enforced": ["files"], "probed": ["files"]}`,
			os.Getpid(), start, strings.TrimSpace(string(boot)), abi, digest)
	}
	for name, c := range map[string]struct {
		mode, record        string
		enforced            bool
		reasons, warnings   int
		detail, consequence string
	}{
		"enforced":             {"required", record(7, rules.Digest()), true, 0, 0, "probed at launch, 2026-01-02T03:04:05Z (ABI 7): files", ""},
		"other rules":          {"required", record(7, "x"), true, 1, 0, "probed at launch", "restart the service"},
		"accepted without":     {"preferred", record(0, rules.Digest()), false, 0, 1, "the kernel has no Landlock", "runs without Landlock"},
		"not accepted without": {"required", record(0, rules.Digest()), false, 1, 0, "the kernel has no Landlock", "not enforced"},
		"no record":            {"required", "", false, 1, 0, "no record of its launch", "restart it"},
		"garbage":              {"preferred", "{", false, 1, 0, "no record of its launch", "restart it"},
		"off":                  {"off", "", false, 0, 0, "switched off", ""},
	} {
		file := filepath.Join(dir, fmt.Sprintf("pg.%d.json", os.Getpid()))
		if err := os.WriteFile(file, []byte(c.record), 0o600); err != nil {
			t.Fatal(err)
		}
		var s control.Status
		spec := launch.Spec{Service: "pg", Landlock: launch.Landlock{Mode: c.mode, Rules: rules, RecordDir: dir}}
		addLandlock(t.Context(), spec, os.Getpid(), &s)
		if l := s.Layers[0]; l.Enforced != c.enforced || l.Configured == (c.mode == "off") || !strings.Contains(l.Detail, c.detail) {
			t.Errorf("%s: layer %+v", name, l)
		}
		if len(s.Reasons) != c.reasons || len(s.Warnings) != c.warnings || !strings.Contains(strings.Join(append(s.Reasons, s.Warnings...), ""), c.consequence) {
			t.Errorf("%s: reasons %q, warnings %q", name, s.Reasons, s.Warnings)
		}
	}
}
