package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pghardend/pghardend/internal/agent"
	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/firewall"
	"github.com/pghardend/pghardend/pkg/sysctl"
)

func TestExitCode(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code int
		text string
	}{
		{nil, 0, ""},
		{errors.New("no"), 1, "pghardend: no\n"},
		{&codeError{code: exitChanges}, 2, ""},
		{fmt.Errorf("x: %w", &codeError{code: 77, err: errors.New("no")}), 77, "pghardend: no\n"},
		{fmt.Errorf("x: %w", agent.ErrLocked), 5, "pghardend: x: another pghardend is at work\n"},
	} {
		var out bytes.Buffer
		o := &options{errOut: &out}
		if code := o.exitCode(tt.err); code != tt.code || out.String() != tt.text {
			t.Errorf("%v: %d %q, want %d %q", tt.err, code, out.String(), tt.code, tt.text)
		}
	}
}

func TestPrintVerification(t *testing.T) {
	finding := launch.Finding{PID: 7, Layer: "seccomp", Check: "mode", Want: "2", Got: "2", OK: true}
	bad := launch.Finding{PID: 8, Layer: "seccomp", Check: "mode", Want: "2", Got: "0"}
	services := []agent.VerifiedSvc{{Name: "postgres", PID: 7, Processes: 2}}
	for _, tt := range []struct {
		v    agent.Verification
		want string
	}{
		{agent.Verification{OK: true}, "all 0 checks passed; rules, sets and sysctls equal the plan\n"},
		{agent.Verification{OK: true, Services: services, Findings: []launch.Finding{finding}}, `PID  LAYER    CHECK  WANT  GOT  OK
7    seccomp  mode   2     2    yes
service postgres: 2 processes, the first is 7
all 1 checks passed; rules, sets and sysctls equal the plan
`},
		{agent.Verification{OK: true, Processes: []launch.Process{{PID: 7, Parent: 1, Role: "first", Program: "/p", Threads: 1, Cgroup: "0::/x", Listens: []string{"tcp [::]:1"}}}},
			`PID  PARENT  ROLE   THREADS  OOM  PROGRAM  CGROUP  LISTENS
7    1       first  1        0    /p       0::/x   tcp [::]:1
all 0 checks passed; rules, sets and sysctls equal the plan
`},
		{agent.Verification{Services: services, Findings: []launch.Finding{finding, bad}, Problems: []string{"process 8: seccomp mode is 0, not 2", "netfilter: differs\n"}}, `PID  LAYER    CHECK  WANT  GOT  OK
7    seccomp  mode   2     2    yes
8    seccomp  mode   2     0    NO
service postgres: 2 processes, the first is 7
! process 8: seccomp mode is 0, not 2
! netfilter: differs
`},
	} {
		var out bytes.Buffer
		o := &options{out: &out}
		if err := o.printVerification(tt.v); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tt.want, out.String()); d != "" {
			t.Errorf("(-want +got)\n%s", d)
		}
	}
}

func TestPrintPlan(t *testing.T) {
	rules := firewall.Plan{
		Changes: []firewall.Change{{Resource: "chain", Family: "ipv4", Name: "PGHARDEND-IN", Problem: "differs", Lines: []string{"+ -j DROP"}}},
		Foreign: []string{"-A INPUT -j ACCEPT"},
	}
	all := agent.Changes{
		Firewall:    rules,
		Sysctl:      sysctl.Plan{Changes: []sysctl.Change{{Key: "net.ipv4.tcp_syncookies", Have: "0", Want: "1"}}},
		Connections: firewall.Cuts{Connections: []firewall.Connection{{Proto: "udp", Src: netip.MustParseAddrPort("10.0.0.1:7"), Dst: netip.MustParseAddrPort("10.0.0.2:9")}}},
	}
	for _, tt := range []struct {
		plan agent.Changes
		json bool
		want string
	}{
		{agent.Changes{}, false, "nothing to do\n"},
		{agent.Changes{}, true, `{
  "changes": [],
  "foreign": [],
  "sysctls": [],
  "connections": []
}
`},
		{all, false, `sysctl net.ipv4.tcp_syncookies: is 0, want 1
ipv4 chain PGHARDEND-IN: differs
  + -j DROP
foreign rule above our jump, kept: -A INPUT -j ACCEPT
connection udp 10.0.0.1:7 to 10.0.0.2:9: not allowed any more
`},
		{agent.Changes{Sysctl: all.Sysctl, Connections: all.Connections}, true, `{
  "changes": [],
  "foreign": [],
  "sysctls": [
    {
      "key": "net.ipv4.tcp_syncookies",
      "have": "0",
      "want": "1"
    }
  ],
  "connections": [
    "udp 10.0.0.1:7 to 10.0.0.2:9"
  ]
}
`},
	} {
		var out bytes.Buffer
		o := &options{out: &out, json: tt.json}
		if err := o.printPlan(tt.plan, "nothing to do"); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tt.want, out.String()); d != "" {
			t.Errorf("(-want +got)\n%s", d)
		}
	}
}

// A plain apply does not make a change stay that somebody wanted to confirm.
func TestApplySaysThatAChangeGoesBack(t *testing.T) {
	const goesBack = "but what is in force goes back at 2026-01-02T03:04:05Z, unless `pghardend confirm` is said before\n"
	until := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	changes := agent.Changes{Sysctl: sysctl.Plan{Changes: []sysctl.Change{{Key: "a", Have: "0", Want: "1"}}}}
	for _, tt := range []struct {
		a    agent.Applied
		done bool
		want string
	}{
		{agent.Applied{}, true, "nothing to do\n"},
		{agent.Applied{Until: until}, true, "nothing to do\n" + goesBack},
		{agent.Applied{Changes: changes}, true, changes.String() + "done: rules and sets equal the plan now\n"},
		{agent.Applied{Changes: changes}, false, changes.String()},
	} {
		var out bytes.Buffer
		if err := (&options{out: &out}).printForGood(tt.a, tt.done); err != nil || out.String() != tt.want {
			t.Errorf("%v %q, want %q", err, out.String(), tt.want)
		}
	}
	var out bytes.Buffer
	if err := (&options{out: &out, json: true}).printForGood(agent.Applied{Until: until}, true); err != nil ||
		!strings.Contains(out.String(), `"confirm_until": "2026-01-02T03:04:05Z"`) {
		t.Errorf("%v %s", err, out.String())
	}
}

func TestDigest(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", ""},
		{"1\n2\n", "1\n2"},
		{"1\n  2\n3", "1\n  2\n3"}, // one more is shown, it takes no more room than to say so
		{"1\n2\n3\n4", "1\n2\n… 2 more lines, --json has them"},
		{"chain a\n  + x\n  + y\nchain b\n  + z\n", "chain a\nchain b\n… 3 more lines, --json has them"},
		{"a\n b\n c\n d", "a\n… 3 more lines, --json has them"},
	} {
		if got := digest(tt.text, 2); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.text, got, tt.want)
		}
	}
}

func TestLoggerIsJSONWithoutATerminal(t *testing.T) {
	var out bytes.Buffer
	(&options{errOut: &out}).logger(&out).Info("started", "node", "pg-0")
	if !strings.HasPrefix(out.String(), `{"time":`) || !strings.Contains(out.String(), `"node":"pg-0"`) {
		t.Errorf("%s", out.String())
	}
}

// The supervisor reads one line of JSON, whatever step it was.
func TestConfigErrorIsReported(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	tellConfigError(w, errors.New("pghardend.yaml:3: \"no\""))
	tellConfigError(nil, errors.New("nobody listens"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if want := `{"step":"config","error":"pghardend.yaml:3: \"no\"","code":70}` + "\n"; err != nil || string(got) != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}
