package mac

import (
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pghardend/pghardend/policies"
)

const goodPolicy = `version: 1
paths:
  - {path: "{data_dir}", allow: [read, write, link]}
  - {path: /run/postgresql, allow: [write, socket], optional: true}
  - {path: /proc, allow: [update], if: oom_score_adj}
scope: [signals]
never_write: [/usr]
`

func TestParsePolicy(t *testing.T) {
	p, err := ParsePolicy("x.yaml", []byte(goodPolicy))
	if err != nil {
		t.Fatal(err)
	}
	want := RuleSet{Rules: []Rule{
		{Path: "/data", Access: Read | Write | Link, Setting: "key"},
		{Path: "/run/postgresql", Access: Write | Socket, Optional: true},
		{Path: "/proc", Access: Update, OOMScore: true},
	}, NeverWrite: []string{"/usr"}, Signals: true}
	if diff := cmp.Diff(want, p.RuleSet("/data", "key")); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if s := p.RuleSet("", "key"); len(s.Rules) != 2 {
		t.Errorf("without a data directory: %+v", s.Rules)
	}
}

func TestF18_PolicyRefused(t *testing.T) {
	for text, want := range map[string]string{
		"":                                              "EOF",
		"paths: []":                                     "x.yaml:1: version is missing",
		"version: 2":                                    "x.yaml:1: version: write 1",
		"version: 1\nversion: 1":                        "twice",
		"version: 1\n---\nversion: 1":                   "more than one document",
		"version: 1\npath: []":                          `x.yaml:2: unknown key "path"`,
		"version: 1\npaths: {}":                         "x.yaml:2: write a list",
		"version: 1\npaths:\n  - /usr":                  "x.yaml:3: write a mapping",
		"version: 1\nscope: [network]":                  `x.yaml:2: scope: "network" is not one of`,
		"version: 1\nnever_write: [usr]":                `x.yaml:2: "usr" is not an absolute`,
		"version: 1\npaths: [{path: /usr}]":             "x.yaml:2: a path needs path and allow",
		"version: 1\npaths: [{allow: [read]}]":          "a path needs path and allow",
		"version: 1\npaths: [{path: /, allow: [read]}]": `"/" is not an absolute, clean path`,
		"version: 1\npaths: [{path: /a/../b, allow: [read]}]":              "clean path",
		"version: 1\npaths: [{path: '/a/{data_dir}', allow: [read]}]":      "clean path",
		"version: 1\npaths: [{path: /a, allow: [execute]}]":                `x.yaml:2: allow: "execute" is not one of read, update, write, link, socket`,
		"version: 1\npaths: [{path: /a, allow: read}]":                     "write a list",
		"version: 1\npaths: [{path: /a, allow: [read], optional: yes}]":    "optional: write true",
		"version: 1\npaths: [{path: /a, allow: [read], if: rich}]":         "only condition",
		"version: 1\npaths: [{path: /a, allow: [read], mode: 1}]":          `unknown key "mode"`,
		"version: 1\npaths: [{path: /a, allow: [read], allow: [write]}]\n": "twice",
	} {
		if _, err := ParsePolicy("x.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// Each seccomp profile has a Landlock policy, and each policy is sound.
func TestBuiltInPolicies(t *testing.T) {
	profiles, err := fs.Glob(policies.FS, "seccomp/*.json")
	if err != nil || len(profiles) < 2 {
		t.Fatalf("%q %v", profiles, err)
	}
	for _, profile := range profiles {
		file := "landlock/" + strings.TrimSuffix(strings.TrimPrefix(profile, "seccomp/"), ".json") + ".yaml"
		data, err := policies.FS.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		p, err := ParsePolicy(file, data)
		if err != nil {
			t.Fatal(err)
		}
		s := p.RuleSet("/var/lib/postgresql/15/main", "data_dir")
		if err := s.Fault(); err != nil || !s.Signals || !s.Abstract || len(s.NeverWrite) < 10 {
			t.Errorf("%s: %v %+v", file, err, s)
		}
		for _, r := range s.Rules {
			s.Rules = nil
			for _, never := range s.NeverWrite {
				device := r.Path == "/dev/shm" || r.Access&^(Read|Update) == 0
				if r.Access&creating != 0 && !device && (Beneath(r.Path, never) || Beneath(never, r.Path)) {
					t.Errorf("%s: %s is written to, though never %s", file, r.Path, never)
				}
			}
		}
	}
}

func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte(goodPolicy))
	for _, name := range []string{"postgres", "pgpool"} {
		data, err := policies.FS.ReadFile("landlock/" + name + ".yaml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, s := range []string{"version: 1\npaths: [&a {path: /a, allow: [read]}, *a]", "version: 1\n<<: {}", "? []\n: 1", "- 1", "version: 1\npaths: [{path: [], allow: [[]], optional: {}, if: {}}]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParsePolicy("x.yaml", data)
		if err != nil {
			return
		}
		s := p.RuleSet("/data", "")
		if err := s.Fault(); err != nil && !strings.Contains(err.Error(), "could change") {
			t.Errorf("a policy that parses is refused: %v", err)
		}
		for _, r := range s.Rules {
			if r.Access&Execute != 0 || r.Access == 0 {
				t.Errorf("rule %+v", r)
			}
		}
		s.Digest()
	})
}
