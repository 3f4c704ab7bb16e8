package drill

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func denied(step string, errno unix.Errno) outcome { return stopped(step, errno) }

// What is reported follows from what was seen, and never from the attempt's name.
func TestResult(t *testing.T) {
	every := []Layer{Seccomp, DAC, Capabilities, Landlock, Netfilter}
	for _, tt := range []struct {
		name   string
		trial  trial
		result string
		layer  Layer
		alone  []Layer
	}{
		{"one layer", trial{control: reached, whole: denied("open", unix.EACCES), alone: map[Layer]outcome{DAC: reached, Landlock: denied("open", unix.EACCES)}},
			Stopped, Landlock, []Layer{Landlock}},
		{"the one that is asked first, if several look alike", trial{control: reached, whole: denied("bpf", unix.EPERM),
			alone: map[Layer]outcome{DAC: denied("bpf", unix.EPERM), Seccomp: denied("bpf", unix.EPERM)}}, Stopped, Seccomp, []Layer{Seccomp, DAC}},
		{"not one that stops it elsewhere", trial{control: reached, whole: denied("connect", unix.EACCES),
			alone: map[Layer]outcome{Seccomp: denied("socket", unix.EPERM), Landlock: denied("connect", unix.EACCES)}}, Stopped, Landlock, []Layer{Seccomp, Landlock}},
		{"not one by no_new_privs that came with it", trial{control: reached, whole: denied("execve", unix.EACCES),
			alone: map[Layer]outcome{Seccomp: {Step: stepGain}, Capabilities: {Step: stepGain}, Landlock: denied("execve", unix.EACCES)}},
			Stopped, Landlock, []Layer{Capabilities, Landlock}},
		{"no layer alone", trial{control: reached, whole: denied("open", unix.EACCES), alone: map[Layer]outcome{DAC: reached}}, Stopped, "", []Layer{}},
		{"the control fails", trial{control: denied("finit_module", unix.ENOSYS), whole: denied("finit_module", unix.ENOSYS)}, NotApplicable, "", []Layer{}},
		{"reached", trial{control: reached, whole: reached}, NotStopped, "", []Layer{}},
		{"reached, and selinux could", trial{attempt: attempt{row: "A52", name: "public-socket"}, control: reached, whole: reached}, Open, "", []Layer{}},
		{"reached, for want of selinux, and nobody has decided that this may be", trial{attempt: attempt{row: "A52", name: "new"}, control: reached, whole: reached}, NotStopped, "", []Layer{}},
	} {
		r := tt.trial.result(every)
		if r.Result != tt.result || r.Layer != tt.layer || !slices.Equal(r.Alone, tt.alone) {
			t.Errorf("%s: %s by %q, alone %q; want %s by %q, alone %q", tt.name, r.Result, r.Layer, r.Alone, tt.result, tt.layer, tt.alone)
		}
	}
}

// The keys and words of --json are for programs and do not change.
func TestReportJSON(t *testing.T) {
	r := Report{Service: "postgres", Layers: []LayerOn{{Seccomp, true, ""}, {SELinux, false, "absent"}}, Ablated: true, Attempts: []Result{
		trial{attempt: attempt{row: "A45", name: "bpf", does: "make a BPF map"}, control: reached, whole: denied("bpf", unix.EPERM),
			alone: map[Layer]outcome{Seccomp: denied("bpf", unix.EPERM)}}.result(nil),
		trial{attempt: attempt{row: "A38", name: "load", does: "LOAD", fix: fixNoexec}, control: reached, whole: reached}.result(nil),
		trial{attempt: attempt{row: "A46", name: "alg", does: "AF_ALG"}, control: denied("socket", unix.EAFNOSUPPORT)}.result(nil),
	}}
	r.finish()
	if r.OK {
		t.Error("ok with an attack that was not stopped")
	}
	got, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/report.json")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.TrimSpace(string(want)), string(got)); diff != "" {
		t.Errorf("other keys or words than before (-want +got):\n%s", diff)
	}
}

// Every attempt can be tried, and says what to do if it succeeds.
func TestCatalogue(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range catalogue() {
		if (a.act == nil) == (a.sql == nil) || a.does == "" || a.fix == "" && !slices.Contains(needSELinux, a.id()) || seen[a.id()] {
			t.Errorf("%s: %+v", a.id(), a)
		}
		seen[a.id()] = true
	}
	docs, err := os.ReadFile("../../docs/drill.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range needSELinux {
		if !seen[id] || !strings.Contains(string(docs), "`"+id+"`") {
			t.Errorf("%s is no attempt, or docs/drill.md does not say that it may be open", id)
		}
	}
	for _, row := range []string{"A36", "A37", "A38", "A39", "A40", "A41", "A42", "A43", "A44", "A45", "A46", "A47", "A48", "A49", "A50", "A51", "A52", "A53"} {
		if !slices.Contains(Rows(), row) {
			t.Errorf("no attempt for %s", row)
		}
	}
	if got := Attempts([]string{"A44"}); len(got) != 4 {
		t.Errorf("%d attempts of A44", len(got))
	}
}

func TestGroupsWith(t *testing.T) {
	got := groupsWith("root:x:0:\nssl-cert:x:103:postgres\nempty:x:7:\n+nis\n", []string{"ssl-cert", "7"})
	want := "root:x:0:\nssl-cert:x:103:postgres," + User + "\nempty:x:7:" + User + "\n+nis\n"
	if got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestSQLOutcome(t *testing.T) {
	for text, want := range map[string]outcome{
		`ERROR:  could not execute command "id": Cannot allocate memory`: {Step: "execve", Note: "the shell was not executed"},
		"ERROR:  could not open file: Permission denied":                 {Step: "x", Errno: "EACCES"},
		"ERROR:  something else\nLINE 1":                                 {Step: "x", Note: "ERROR:  something else"},
	} {
		if got := sqlOutcome("x", errors.New(text)); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
}

func TestJudges(t *testing.T) {
	for _, tt := range []struct {
		judge   func(outcome) outcome
		o       outcome
		reached bool
		step    string
	}{
		{judgeUser, outcome{said: "0\n"}, true, ""},
		{judgeUser, outcome{said: "65520\n"}, false, stepGain},
		{judgeUser, outcome{exit: 1}, false, "run"},
		{judgeCapabilities, outcome{said: "Name:\tx\nCapEff:\t0000000000200000\n"}, true, ""},
		{judgeCapabilities, outcome{said: "CapEff:\t0000000000000000\n"}, false, stepGain},
		{judgeCapabilities, outcome{exit: 126}, false, "run"},
		{judgeRun, outcome{}, true, ""},
		{judgeRun, outcome{exit: 127}, false, "run"},
	} {
		if got := tt.judge(tt.o); got.Reached != tt.reached || got.Step != tt.step {
			t.Errorf("%+v: %+v", tt.o, got)
		}
	}
}
