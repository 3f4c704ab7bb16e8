package mac

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseContext(t *testing.T) {
	for text, want := range map[string]Context{
		"system_u:system_r:init_t":                                  {"system_u", "system_r", "init_t", ""},
		"system_u:object_r:etc_t:s0\x00":                            {"system_u", "object_r", "etc_t", "s0"},
		"unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023\x00": {"unconfined_u", "unconfined_r", "unconfined_t", "s0-s0:c0.c1023"},
	} {
		got, err := ParseContext(text)
		if err != nil || got != want || got.String() != strings.TrimRight(text, "\x00") {
			t.Errorf("%q: %+v %v", text, got, err)
		}
	}
	for _, text := range []string{"", "unconfined", "kernel\n", "a:b", "a::c:s0", "docker-default (enforce)", "a:b:c d:s0"} {
		if got, err := ParseContext(text); err == nil {
			t.Errorf("%q is %+v", text, got)
		}
	}
}

func TestCanonicalLevel(t *testing.T) {
	for text, want := range map[string]string{
		"s0": "s0", "s0:c34,c12": "s0:c12,c34", "s0:c1.c3": "s0:c1.c3", "s0:c1,c2": "s0:c1,c2", "s0:c1.c2": "s0:c1,c2",
		"s0:c3,c2,c1,c1": "s0:c1.c3", "s0:c0.c1023": "s0:c0.c1023", "s0:c7,c1.c3,c5": "s0:c1.c3,c5,c7", "s15:c9": "s15:c9",
	} {
		if got, err := CanonicalLevel(text); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "s", "c1", "s0:", "s0:c1024", "s0:c3.c1", "s0-s0:c1", "s0:c1,,c2", "s0:c1,", "s0:1", "s0:c1.c2.c3"} {
		if got, err := CanonicalLevel(text); err == nil {
			t.Errorf("%q is %s", text, got)
		}
	}
}

// policy is a selinuxfs and the kernel behind it.
type policy struct {
	enforcing  bool
	known      []string            // types
	allowed    map[string][]string // "source target class" by type: permissions
	permissive []string            // types
	self       string
	program    string
}

// fakeClasses are the numbers of a policy, which no other has to have.
var fakeClasses = map[string][]string{
	"process":  {"fork", "transition", "setexec"},
	"process2": {"nnp_transition", "nosuid_transition"},
	"file":     {"read", "write", "entrypoint"},
}

func (p policy) host(t *testing.T) *SELinux {
	t.Helper()
	dir := t.TempDir()
	write := func(path, text string) {
		path = filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	names := []string{"file", "process", "process2"}
	for i, class := range names {
		write("class/"+class+"/index", fmt.Sprint(i+2))
		for n, permission := range fakeClasses[class] {
			write("class/"+class+"/perms/"+permission, fmt.Sprint(n+1))
		}
	}
	status := make([]byte, StatusSize)
	for i, v := range []uint32{1, 4, uint32(number(p.enforcing)), 7, 0} {
		binary.NativeEndian.PutUint32(status[4*i:], v)
	}
	write("status", string(status))
	write("booleans/on", "1 1")
	write("booleans/pending", "0 1")
	return &SELinux{
		dir: dir, unmounted: func() (bool, error) { return false, nil },
		self:  func() (string, error) { return p.self, nil },
		label: func(string) (string, error) { return p.program, nil },
		ask: func(file, request string) (string, error) {
			if filepath.Base(file) == "context" {
				return request, p.know(request)
			}
			return p.answer(names, request)
		},
	}
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (p policy) know(label string) error {
	c, err := ParseContext(label)
	if err != nil || !slices.Contains(p.known, c.Type) {
		return unix.EINVAL
	}
	return nil
}

func (p policy) answer(classes []string, request string) (string, error) {
	words := strings.Fields(request)
	source, _ := ParseContext(words[0])
	target, _ := ParseContext(words[1])
	var index, allowed, flags int
	fmt.Sscan(words[2], &index)
	class := classes[index-2]
	for n, permission := range fakeClasses[class] {
		if slices.Contains(p.allowed[source.Type+" "+target.Type+" "+class], permission) {
			allowed |= 1 << n
		}
	}
	if slices.Contains(p.permissive, source.Type) {
		flags = 1
	}
	return fmt.Sprintf("%x ffffffff 0 ffffffff 9 %x", allowed, flags), errors.Join(p.know(words[0]), p.know(words[1]))
}

// good is a policy under which the launch works.
func good() policy {
	return policy{
		enforcing: true,
		known:     []string{"agent_t", "postgres_t", "postgres_exec_t"},
		allowed: map[string][]string{
			"agent_t agent_t process": {"fork", "setexec"}, "agent_t postgres_t process": {"transition"},
			"agent_t postgres_t process2": {"nnp_transition", "nosuid_transition"}, "postgres_t postgres_exec_t file": {"read", "entrypoint"},
		},
		self: "system_u:system_r:agent_t:s0-s0:c0.c1023", program: "system_u:object_r:postgres_exec_t:s0",
	}
}

// F30: disabled, permissive, no domain, transition denied: each is found before the
// launch, has a reason of its own and says what to do. What can be had is had.
func TestF30_SELinuxReasons(t *testing.T) {
	const label = "system_u:system_r:postgres_t:s0:c1,c2"
	for name, c := range map[string]struct {
		change func(*policy)
		reason Reason
		words  string // in the message
		label  string
	}{
		"all is right":      {func(*policy) {}, "", "", label},
		"permissive":        {func(p *policy) { p.enforcing = false }, ReasonPermissive, "setenforce 1", label},
		"permissive domain": {func(p *policy) { p.permissive = []string{"postgres_t"} }, ReasonPermissiveDomain, "semanage permissive -d postgres_t", label},
		"another domain is": {func(p *policy) { p.permissive = []string{"agent_t"} }, "", "", label},
		"no domain":         {func(p *policy) { p.known = []string{"agent_t"} }, ReasonNoDomain, "semodule -i", ""},
		"no setexec":        {func(p *policy) { delete(p.allowed, "agent_t agent_t process") }, ReasonTransition, "process { setexec }", ""},
		"no transition":     {func(p *policy) { delete(p.allowed, "agent_t postgres_t process") }, ReasonTransition, "process { transition }", ""},
		"no transition under no_new_privs": {func(p *policy) { p.allowed["agent_t postgres_t process2"] = []string{"nosuid_transition"} },
			ReasonTransition, "process2 { nnp_transition }", ""},
		"wrong label of the program": {func(p *policy) { p.program = "system_u:object_r:postgres_t:s0" }, ReasonTransition, "restorecon -v /bin/postgres", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := good()
			c.change(&p)
			got, err := p.host(t).LaunchLabel(t.Context(), "postgres_t", "s0:c1,c2", "/bin/postgres")
			var fault *LabelError
			if errors.As(err, &fault) != (c.reason != "") || fault != nil && (fault.Reason != c.reason || !strings.Contains(fault.Text, c.words)) || got != c.label {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	disabled := good().host(t)
	disabled.unmounted = func() (bool, error) { return true, nil }
	_, err := disabled.LaunchLabel(t.Context(), "postgres_t", "s0", "/bin/postgres")
	var fault *LabelError
	if !errors.As(err, &fault) || fault.Reason != ReasonDisabled || !strings.Contains(fault.Text, "security=selinux") {
		t.Error(err)
	}
}

// Whatever it is that makes a label mean nothing, the label is not called enforced.
func TestF30_SELinuxEnforced(t *testing.T) {
	label := Context{"system_u", "system_r", "postgres_t", "s0"}
	for reason, change := range map[Reason]func(*policy){
		"":                     func(*policy) {},
		ReasonPermissive:       func(p *policy) { p.enforcing = false },
		ReasonPermissiveDomain: func(p *policy) { p.permissive = []string{"postgres_t"} },
		ReasonNoDomain:         func(p *policy) { p.known = nil },
	} {
		p := good()
		change(&p)
		err := p.host(t).Enforced(t.Context(), label)
		var fault *LabelError
		if errors.As(err, &fault) != (reason != "") || fault != nil && fault.Reason != reason {
			t.Errorf("%q: %v", reason, err)
		}
	}
}

func TestSELinuxBooleans(t *testing.T) {
	s := good().host(t)
	for name, want := range map[string]bool{"on": true, "pending": false} {
		if got, err := s.Boolean(t.Context(), name); err != nil || got != want {
			t.Errorf("%s: %t %v", name, got, err)
		}
	}
	if _, err := s.Boolean(t.Context(), "missing"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if err := s.SetBooleans(t.Context(), map[string]bool{"pending": true}); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"booleans/pending": "1", "commit_pending_bools": "1"} {
		if got, err := os.ReadFile(filepath.Join(s.dir, file)); err != nil || string(got) != want {
			t.Errorf("%s: %s %v", file, got, err)
		}
	}
}

func TestParseStatusRefuses(t *testing.T) {
	page := make([]byte, StatusSize)
	if _, err := ParseStatus(page); err == nil {
		t.Error("version 0 is taken")
	}
	if _, err := ParseStatus(page[:StatusSize-1]); err == nil {
		t.Error("a short one is taken")
	}
}

func TestParsePolicyChange(t *testing.T) {
	word := func(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }
	for _, c := range []struct {
		typ  uint16
		data []byte
		want PolicyChange
		ok   bool
	}{
		{messageSetEnforce, word(0), PolicyChange{Mode: true}, true},
		{messageSetEnforce, word(1), PolicyChange{Mode: true, Enforcing: true}, true},
		{messagePolicyLoad, word(9), PolicyChange{}, true},
		{messageSetEnforce, nil, PolicyChange{}, false},
		{3, word(0), PolicyChange{}, false},
	} {
		if got, ok := parsePolicyChange(c.typ, c.data); got != c.want || ok != c.ok {
			t.Errorf("%d %v: %+v %t", c.typ, c.data, got, ok)
		}
	}
}

const portsLocal = `# This file is auto-generated by libsemanage
# Do not edit directly.

portcon tcp 9999 system_u:object_r:pghardend_pgpool_port_t:s0
portcon udp 9694 system_u:object_r:pghardend_heartbeat_port_t:s0
portcon tcp 8000 - 8001 system_u:object_r:http_port_t:s0
`

func TestParsePorts(t *testing.T) {
	got, err := ParsePorts([]byte(portsLocal))
	want := []PortType{{"tcp", 9999, "pghardend_pgpool_port_t"}, {"udp", 9694, "pghardend_heartbeat_port_t"}, {"tcp", 8000, "http_port_t"}, {"tcp", 8001, "http_port_t"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v %v", got, err)
	}
	for _, text := range []string{"portcon tcp x a:b:c\n", "portcon tcp 1\n", "nodecon 1 2 a:b:c\n", "portcon tcp 70000 a:b:c\n"} {
		if got, err := ParsePorts([]byte(text)); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

func FuzzParsePorts(f *testing.F) {
	f.Add([]byte(portsLocal))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := ParsePorts(data)
		for _, p := range list {
			if err != nil || p.Port < 0 || p.Port > 65535 || p.Type == "" {
				t.Errorf("%+v", p)
			}
		}
	})
}

func FuzzParseContext(f *testing.F) {
	f.Add("system_u:object_r:etc_t:s0\x00")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseContext(text)
		if err == nil && c.String() != strings.TrimRight(text, "\x00\n") {
			t.Errorf("%q is %+v", text, c)
		}
	})
}

func FuzzCanonicalLevel(f *testing.F) {
	f.Add("s0:c1.c3,c7")
	f.Fuzz(func(t *testing.T, text string) {
		once, err := CanonicalLevel(text)
		if err != nil {
			return
		}
		if twice, err := CanonicalLevel(once); err != nil || twice != once {
			t.Errorf("%q: %q, then %q, %v", text, once, twice, err)
		}
	})
}
