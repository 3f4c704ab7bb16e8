package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/config"
)

// cluster makes a data directory and a configuration for it.
func cluster(t *testing.T, service string, files map[string]string) (config.Config, config.Service) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text := fmt.Sprintf("%sservices:\n  postgres:\n    profile: postgres\n    user: postgres\n    command: [/nowhere/bin/postgres, -D, %s]\n%s", configHead, dir, service)
	cfg, err := config.ParseConfig("/etc/pghardend/pghardend.yaml", []byte(text), "pg-0")
	if err != nil {
		t.Fatal(err)
	}
	return cfg, cfg.Services[0]
}

func names(list []launch.Chosen) []string { return launch.ProfileRecord{Chosen: list}.Names() }

// Features by configuration and settings. What gives an attacker something is never
// chosen by a setting.
func TestChooseFeatures(t *testing.T) {
	const conf, auto, version = "postgresql.conf", "postgresql.auto.conf", "PG_VERSION"
	for name, c := range map[string]struct {
		service        string
		files          map[string]string
		chosen, wanted []string
	}{
		"defaults":                   {"", map[string]string{conf: "", version: "15\n"}, []string{"huge_pages", "resolver"}, nil},
		"nothing":                    {"    features: []\n", map[string]string{conf: "", version: "15\n"}, nil, nil},
		"newer server":               {"    features: []\n", map[string]string{conf: "", version: "18\n"}, []string{"pg17"}, nil},
		"older server":               {"    features: []\n", map[string]string{conf: "", version: "14\n"}, []string{"udp"}, nil},
		"unknown version":            {"    features: []\n", map[string]string{conf: ""}, []string{"pg17"}, nil},
		"no huge pages":              {"", map[string]string{conf: "huge_pages = off", version: "15\n"}, []string{"resolver"}, nil},
		"settings not there":         {"", map[string]string{version: "15\n"}, []string{"huge_pages", "resolver"}, nil},
		"helpers":                    {"    helpers: [/usr/bin/dash]\n    features: []\n", map[string]string{conf: "", version: "15\n"}, []string{"helpers"}, nil},
		"everything can be executed": {"    landlock: {mode: off}\n", map[string]string{conf: "huge_pages=off", version: "15\n"}, []string{"helpers", "resolver"}, nil},
		"archiving": {"", map[string]string{conf: "archive_command = 'cp %p /a/%f'\nhuge_pages=off", version: "15\n"},
			[]string{"resolver"}, []string{"helpers"}},
		"superuser asks for io_uring": {"", map[string]string{conf: "huge_pages=off", auto: "io_method = 'io_uring'\n", version: "18\n"},
			[]string{"pg17", "resolver"}, []string{"io_uring"}},
		"administrator allows it": {"    features: [auto, io_uring, jit]\n", map[string]string{conf: "huge_pages=off", auto: "io_method = 'io_uring'\njit = on", version: "18\n"},
			[]string{"io_uring", "jit", "pg17", "resolver"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, svc := cluster(t, c.service, c.files)
			facts := readServerFacts(t.Context(), svc)
			chosen, wanted := chooseFeatures(cfg, svc, facts)
			if d := cmp.Diff([][]string{c.chosen, c.wanted}, [][]string{names(chosen), names(wanted)}); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			p, err := serviceProfile(cfg, svc, facts)
			if err != nil || !slices.Equal(p.Features(), names(chosen)) {
				t.Errorf("%v %v", p.Features(), err)
			}
		})
	}
}

// A39: whatever a superuser of the database writes into the server's settings,
// nothing that needs the administrator is chosen.
func TestA39_SettingsDoNotWidenTheBox(t *testing.T) {
	everything := "jit = on\njit_provider = 'llvmjit'\nio_method = io_uring\nhuge_pages = on\narchive_command = 'sh'\nrestore_command = 'sh'\n" +
		"shared_preload_libraries = 'plv8,plperl,pltcl'\nssl_passphrase_command = 'sh'\ndelegate_ip = '10.0.0.1'\ntrusted_servers = 'a'\n"
	cfg, svc := cluster(t, "", map[string]string{"postgresql.conf": everything, "postgresql.auto.conf": everything, "PG_VERSION": "99\n"})
	facts := readServerFacts(t.Context(), svc)
	facts.libraries = interesting
	chosen, wanted := chooseFeatures(cfg, svc, facts)
	for _, c := range chosen {
		f, err := readFeature(c.Feature)
		if err != nil || f.OptIn() || c.Feature == featureHelpers {
			t.Errorf("%s was chosen (%s), %v", c.Feature, c.Because, err)
		}
	}
	if d := cmp.Diff([]string{"helpers", "io_uring", "jit"}, names(wanted)); d != "" {
		t.Errorf("wanted (-want +got)\n%s", d)
	}
}

func TestF35_UnknownFeaturesAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"    features: [jti]\n":                            `services.postgres.features: profile postgres has no feature "jti"; features: helpers, huge_pages, io_uring, jit,`,
		"    features: [delegate_ip]\n":                    `profile postgres has no feature "delegate_ip"`,
		"    features: [auto, jit]\n    user: x\n":         "",
		"    features: [resolver, huge_pages, io_uring]\n": "",
	} {
		text, _, _ = strings.Cut(text, "    user")
		cfg, _ := cluster(t, text, nil)
		_, err := ServiceSpec(cfg, "postgres")
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "pghardend.yaml:8")) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// As PostgreSQL reads them: the last one counts, the command line before
// postgresql.auto.conf before postgresql.conf with what it includes.
func TestReadPostgresSettings(t *testing.T) {
	cfg, svc := cluster(t, "", map[string]string{
		"postgresql.conf": "# a = b\nJIT = on # yes\nhuge_pages 'try'\nio_method='work#er' # x\nquoted = 'it''s \\'it'\n" +
			"include_dir = 'conf.d'\ninclude_if_exists 'gone.conf'\nlast = 1\nlast = 2\nopen = 'no end\n",
		"conf.d/20.conf":       "order = 20",
		"conf.d/10.conf":       "order = 10",
		"conf.d/.hidden.conf":  "order = hidden",
		"conf.d/30.conf.off":   "order = off",
		"postgresql.auto.conf": "huge_pages = 'off'\n",
	})
	svc.Command = append(svc.Command, "-c", "work_mem=1MB", "--io-method=sync", "-cx=y")
	got, err := readPostgresSettings(t.Context(), svc)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{}
	for name, s := range got {
		values[name] = s.value
	}
	want := map[string]string{"jit": "on", "huge_pages": "off", "io_method": "sync", "quoted": "it's 'it", "order": "20", "last": "2", "work_mem": "1MB", "x": "y"}
	if d := cmp.Diff(want, values); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	if where := got["huge_pages"].where; where != filepath.Join(svc.DataDir, "postgresql.auto.conf")+":1" {
		t.Errorf("huge_pages is from %s", where)
	}
	if got["io_method"].where != "the command line" {
		t.Errorf("%+v", got["io_method"])
	}
	_ = cfg
}

// Files of the service's user hold nobody up.
func TestSettingsAreBounded(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"endless":  {"postgresql.conf": "include 'postgresql.conf'\n"},
		"too many": {"postgresql.conf": strings.Repeat("include 'x.conf'\n", maxSettingsFiles+1), "x.conf": ""},
		"too big":  {"postgresql.conf": strings.Repeat("# x\n", maxSettingsFile)},
		"missing":  {"postgresql.conf": "include 'x.conf'\n"},
	} {
		_, svc := cluster(t, "", files)
		if got, err := readPostgresSettings(t.Context(), svc); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
	_, svc := cluster(t, "", map[string]string{"real.conf": ""})
	if err := os.Symlink("real.conf", filepath.Join(svc.DataDir, "postgresql.conf")); err != nil {
		t.Fatal(err)
	}
	if got, err := readPostgresSettings(t.Context(), svc); err == nil {
		t.Errorf("a link: %v", got)
	}
}

func TestSettingOff(t *testing.T) {
	for value, want := range map[string]bool{"off": true, "OFF": true, "of": true, "0": true, "f": true, "false": true, "no": true, "n": true,
		"": false, "on": false, "o": false, "try": false, "1": false, "offf": false} {
		if got := (setting{value: value}).off(); got != want {
			t.Errorf("%q: %v", value, got)
		}
	}
}

func TestFeatureChange(t *testing.T) {
	helpers := launch.Chosen{Feature: "helpers", Because: "x:1"}
	for name, c := range map[string]struct {
		r    launch.ProfileRecord
		want string
	}{
		"first start": {launch.ProfileRecord{Chosen: []launch.Chosen{helpers}}, ""},
		"as before":   {launch.ProfileRecord{Chosen: []launch.Chosen{helpers}, Before: []string{"helpers"}}, ""},
		"wider":       {launch.ProfileRecord{Chosen: []launch.Chosen{helpers}, Before: []string{"jit"}}, "with helpers (x:1); without jit"},
		"from none":   {launch.ProfileRecord{Chosen: []launch.Chosen{helpers}, Before: []string{}}, "with helpers (x:1)"},
	} {
		if got := featureChange("s", c.r); (got == "") != (c.want == "") || !strings.HasSuffix(got, c.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestProfileDrift(t *testing.T) {
	_, svc := cluster(t, "    features: [auto, io_uring]\n", nil)
	r := launch.ProfileRecord{Chosen: []launch.Chosen{{Feature: "jit"}, {Feature: "helpers"}, {Feature: "resolver"}}}
	gone, missing := profileDrift(svc, r)
	if d := cmp.Diff([][]string{{"helpers", "jit"}, {"io_uring"}}, [][]string{gone, missing}); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// A whole comparison: what a feature changes, and nothing for other reasons.
func TestDiffProfiles(t *testing.T) {
	base, err := ShowProfile("postgres", nil)
	if err != nil {
		t.Fatal(err)
	}
	jit, err := ShowProfile("postgres", []string{"jit"})
	if err != nil {
		t.Fatal(err)
	}
	d, err := DiffProfiles(base, jit)
	if err != nil || d.Empty() || !slices.Equal(d.FeaturesAdded, []string{"jit"}) || !slices.Equal(d.AllowedAdded, []string{"madvise"}) || len(d.AllowedRemoved) != 0 {
		t.Errorf("%+v %v", d, err)
	}
	for i := range base.Entries {
		base.Entries[i].Reason = "another"
	}
	jit.Entries = slices.Clone(base.Entries)
	if d, err := DiffProfiles(base, jit); err != nil || !d.Empty() {
		t.Errorf("%+v %v", d, err)
	}
	jit.Arch = "other"
	if _, err := DiffProfiles(base, jit); err == nil {
		t.Error("architectures are mixed up")
	}
}

func FuzzParseSetting(f *testing.F) {
	f.Add("jit = 'o''n' # x")
	f.Add("include_dir 'conf.d'")
	f.Fuzz(func(t *testing.T, line string) {
		if name, _, ok := parseSetting(line); ok && name == "" {
			t.Errorf("%q has no name", line)
		}
	})
}

// pgpool's heartbeat is UDP; of other programs nothing is known. Names of hosts choose
// nothing: they are asked for by TCP.
func TestChooseUDP(t *testing.T) {
	on, off := setting{"on", "x"}, setting{"off", "x"}
	for name, c := range map[string]struct {
		profile  string
		features []string
		facts    serverFacts
		want     bool
	}{
		"watchdog":               {config.RolePgpool, []string{config.FeaturesAuto}, serverFacts{settings: map[string]setting{"use_watchdog": on}}, true},
		"no watchdog":            {config.RolePgpool, []string{config.FeaturesAuto}, serverFacts{settings: map[string]setting{"use_watchdog": off}}, false},
		"watchdog's default":     {config.RolePgpool, []string{config.FeaturesAuto}, serverFacts{settings: map[string]setting{}}, false},
		"settings not known":     {config.RolePgpool, []string{config.FeaturesAuto}, serverFacts{}, true},
		"administrator says not": {config.RolePgpool, nil, serverFacts{settings: map[string]setting{"use_watchdog": on}}, false},
		"other programs":         {"generic", []string{config.FeaturesAuto}, serverFacts{}, true},
		"other programs, listed": {"generic", nil, serverFacts{}, false},
		"postgres":               {config.RolePostgres, []string{config.FeaturesAuto}, serverFacts{version: 15, settings: map[string]setting{"primary_conninfo": {"host=a", "x"}}}, false},
		"postgres, not known":    {config.RolePostgres, []string{config.FeaturesAuto}, serverFacts{}, false},
	} {
		chosen, _ := chooseFeatures(config.Config{}, config.Service{Name: "s", Profile: c.profile, Features: c.features}, c.facts)
		if got := slices.Contains(names(chosen), featureUDP); got != c.want {
			t.Errorf("%s: chosen %v, want %v", name, got, c.want)
		}
	}
}

// A question is as confined as a start, and leaves nothing behind.
func TestQuestionIsNoStart(t *testing.T) {
	cfg, svc := cluster(t, "", map[string]string{"postgresql.conf": "", "PG_VERSION": "15\n"})
	cfg.RuntimeDir = t.TempDir()
	start, err := launchSpec(t.Context(), cfg, svc.Name)
	if err != nil {
		t.Fatal(err)
	}
	records := func() []string {
		list, err := filepath.Glob(filepath.Join(cfg.RuntimeDir, profilesDir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if len(records()) != 1 || start.Cgroup.Mode == launch.CgroupOff {
		t.Fatalf("a start has records %v and control groups %s", records(), start.Cgroup.Mode)
	}
	if err := os.RemoveAll(filepath.Join(cfg.RuntimeDir, profilesDir)); err != nil {
		t.Fatal(err)
	}
	question, err := questionSpec(t.Context(), cfg, svc.Name, "max_connections")
	if err != nil || len(records()) != 0 || question.Cgroup.Mode != launch.CgroupOff {
		t.Errorf("records %v, control groups %s, %v", records(), question.Cgroup.Mode, err)
	}
	if want := slices.Concat(start.Command, []string{"-C", "max_connections"}); !slices.Equal(question.Command, want) {
		t.Errorf("command %q, want %q", question.Command, want)
	}
	same := cmp.Comparer(func(a, b launch.Spec) bool {
		return slices.Equal(a.Seccomp.Features(), b.Seccomp.Features()) && a.User == b.User && a.Capabilities == b.Capabilities
	})
	if !cmp.Equal(start, question, same) {
		t.Error("it is confined in another way")
	}
	cfg.Services[0].Command[0] = "/nowhere/bin/wrapper"
	if _, err := questionSpec(t.Context(), cfg, svc.Name, "max_connections"); err == nil {
		t.Error("a wrapper, which may start a server, is asked")
	}
}
