package mac

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// full asks for everything.
func full(rules ...Rule) RuleSet {
	return RuleSet{Rules: rules, Bind: Ports{Restricted: true, Allowed: []uint16{5432}},
		Connect: Ports{Restricted: true, Allowed: []uint16{53, 5432}}, Signals: true, Abstract: true}
}

func TestCompileByABI(t *testing.T) {
	const truncate, ioctl = unix.LANDLOCK_ACCESS_FS_TRUNCATE, unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	all := []string{"files", "refer", "truncate", "ioctl-dev", "tcp-bind", "tcp-connect", "signals", "abstract-sockets", "audit-log"}
	for _, c := range []struct {
		abi, effective     int
		missing            string
		files, net, scoped uint64
		flags              uintptr
	}{
		{2, 2, "truncate (Linux 6.2), ioctl-dev (Linux 6.10), tcp-bind (Linux 6.7), tcp-connect (Linux 6.7), signals (Linux 6.12), abstract-sockets (Linux 6.12), audit-log (Linux 6.15)", 0x3fff, 0, 0, 0},
		{3, 3, "ioctl-dev (Linux 6.10), tcp-bind (Linux 6.7), tcp-connect (Linux 6.7), signals (Linux 6.12), abstract-sockets (Linux 6.12), audit-log (Linux 6.15)", 0x7fff, 0, 0, 0},
		{4, 4, "ioctl-dev (Linux 6.10), signals (Linux 6.12), abstract-sockets (Linux 6.12), audit-log (Linux 6.15)", 0x7fff, 3, 0, 0},
		{5, 5, "signals (Linux 6.12), abstract-sockets (Linux 6.12), audit-log (Linux 6.15)", 0xffff, 3, 0, 0},
		{6, 6, "audit-log (Linux 6.15)", 0xffff, 3, 3, 0},
		{7, 7, "", 0xffff, 3, 3, 3},
		{99, 7, "", 0xffff, 3, 3, 3},
	} {
		p, err := Compile(full(), c.abi, true)
		if err != nil {
			t.Fatal(err)
		}
		if p.ABI != c.effective || FeatureText(p.Missing) != c.missing || p.files != c.files || p.net != c.net || p.scoped != c.scoped || p.flags != c.flags {
			t.Errorf("ABI %d: %+v", c.abi, p)
		}
		if got := slices.Sorted(slices.Values(append(Names(p.Enforced), Names(p.Missing)...))); !slices.Equal(got, slices.Sorted(slices.Values(all))) {
			t.Errorf("ABI %d: features %q", c.abi, got)
		}
	}
	if 0x7fff&truncate == 0 || 0x3fff&truncate != 0 || 0x7fff&ioctl != 0 || 0xffff&ioctl == 0 {
		t.Error("the numbers above are not those of the kernel")
	}
}

func TestF30_CompileTooOld(t *testing.T) {
	for abi := -1; abi < MinABI; abi++ {
		if _, err := Compile(full(), abi, true); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "Linux 5.19") {
			t.Errorf("ABI %d: %v", abi, err)
		}
	}
}

// What is not asked for is neither enforced nor missed.
func TestCompileAsksForNoMore(t *testing.T) {
	p, err := Compile(RuleSet{}, newestABI, false)
	if err != nil || p.net != 0 || p.scoped != 0 || len(p.Missing) != 0 || slices.Contains(Names(p.Enforced), "tcp-bind") {
		t.Errorf("%+v %v", p, err)
	}
	score := Rule{Path: "/proc", Access: Update, OOMScore: true}
	for _, adjusted := range []bool{true, false} {
		if p, err := Compile(full(score), 7, adjusted); err != nil || len(p.Set.Rules) == 1 != adjusted {
			t.Errorf("adjusted %t: %+v %v", adjusted, p.Set.Rules, err)
		}
	}
}

// Nobody makes devices and FIFOs, and writing is not executing.
func TestRights(t *testing.T) {
	for access := range Access(64) {
		bits := access.rights()
		if bits&rightsNobody != 0 {
			t.Errorf("%s has %#x", access, bits)
		}
		if (bits&unix.LANDLOCK_ACCESS_FS_EXECUTE != 0) != (access&Execute != 0) {
			t.Errorf("%s: execute is %#x", access, bits)
		}
		if access&creating == 0 && bits&^(rightsRead|unix.LANDLOCK_ACCESS_FS_EXECUTE) != 0 {
			t.Errorf("%s changes something: %#x", access, bits)
		}
	}
	if rightsAll != 0xffff {
		t.Errorf("all rights are %#x", rightsAll)
	}
}

func TestFault(t *testing.T) {
	write := func(path string) Rule { return Rule{Path: path, Access: Write, Setting: "key"} }
	program := Rule{Path: "/usr/bin/postgres", Access: Execute}
	for name, c := range map[string]struct {
		rules []Rule
		want  string
	}{
		"fine":                       {[]Rule{program, write("/srv/ts"), {Path: "/usr", Access: Read, Setting: "key"}}, ""},
		"the policy's own":           {[]Rule{{Path: "/etc/x", Access: Write}}, ""},
		"a name that begins alike":   {[]Rule{write("/etcetera"), write("/usr2")}, ""},
		"relative":                   {[]Rule{write("srv")}, "key: srv: use an absolute path"},
		"not clean":                  {[]Rule{write("/srv/../etc")}, "use an absolute path"},
		"everything":                 {[]Rule{{Path: "/", Access: Read}}, "is everything"},
		"nothing":                    {[]Rule{{Path: "/srv"}}, "grants nothing"},
		"never":                      {[]Rule{write("/etc")}, "must not write to /etc"},
		"below":                      {[]Rule{write("/etc/pghardend")}, "must not write to /etc"},
		"above":                      {[]Rule{write("/var")}, "must not write to /var/lib/pghardend"},
		"sockets are writing too":    {[]Rule{{Path: "/etc", Access: Socket, Setting: "key"}}, "must not write to /etc"},
		"what it executes":           {[]Rule{write("/srv"), {Path: "/srv/bin/helper", Access: Execute}}, "could change /srv/bin/helper"},
		"what it executes, its file": {[]Rule{{Path: "/srv/helper", Access: Update}, {Path: "/srv/helper", Access: Execute}}, "could change"},
	} {
		err := RuleSet{Rules: c.rules, NeverWrite: []string{"/usr", "/etc", "/var/lib/pghardend"}}.Fault()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestDigest(t *testing.T) {
	base := full(Rule{Path: "/srv", Access: Read})
	seen := map[string]bool{base.Digest(): true}
	for i, change := range []func(*RuleSet){
		func(s *RuleSet) { s.Rules = append(slices.Clone(s.Rules), Rule{Path: "/a", Access: Read}) },
		func(s *RuleSet) { s.Rules = []Rule{{Path: "/srv", Access: Write}} },
		func(s *RuleSet) { s.Bind.Allowed = []uint16{1} },
		func(s *RuleSet) { s.Connect.Restricted = false },
		func(s *RuleSet) { s.Signals = false },
		func(s *RuleSet) { s.Abstract = false },
	} {
		s := base
		change(&s)
		if seen[s.Digest()] {
			t.Errorf("change %d leaves the digest", i)
		}
		seen[s.Digest()] = true
	}
	again := full(Rule{Path: "/srv", Access: Read, Setting: "elsewhere"})
	if again.NeverWrite = []string{"/etc"}; again.Digest() != base.Digest() {
		t.Error("what is not enforced changes the digest")
	}
}
