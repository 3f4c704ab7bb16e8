package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/internal/reconcile"
	"github.com/pghardend/pghardend/pkg/limits"
)

var (
	_ reconcile.Peeker       = (*processesResource)(nil)
	_ reconcile.Peeker       = (*filesResource)(nil)
	_ reconcile.Unrepairable = processPlan{}
	_ reconcile.Unrepairable = filePlan{}
)

// fakeService starts two processes with limits nofile 77:88 and core 0, which
// stand for a service, and returns a function that ends them. They are the
// caller's, whose limits anybody may change, and confined in no other way.
func fakeService(t testing.TB) (svc runningService, end func()) {
	t.Helper()
	return fakeServiceOf(t, os.Geteuid())
}

func fakeServiceOf(t testing.TB, uid int) (svc runningService, end func()) {
	t.Helper()
	u, err := user.LookupId(fmt.Sprint(notRoot())) // Verify refuses to hear of root
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", "ulimit -Sn 77; ulimit -Hn 88; ulimit -c 0; (echo ready; exec cat); exit")
	if uid != os.Geteuid() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	cmd.Dir = "/"
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = func() {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	}
	t.Cleanup(end)
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	return runningService{name: "db", pid: cmd.Process.Pid, spec: launch.Spec{
		Service: "db", User: u.Username, Command: []string{"/bin/sh"},
		Limits: limits.Set{"nofile": {Soft: 77, Hard: 88}, "core": {}},
	}}, end
}

// notRoot is whom a service may run as.
func notRoot() int {
	if uid := os.Geteuid(); uid != 0 {
		return uid
	}
	return 65534
}

// services is a list that the test may change.
type services []runningService

func (s *services) running(list []runningService) []runningService { return append(list, *s...) }

func planOf(t *testing.T, r *processesResource) processPlan {
	t.Helper()
	p, err := r.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p.(processPlan)
}

func lower(t *testing.T, pid, resource int, soft, hard uint64) {
	t.Helper()
	if err := unix.Prlimit(pid, resource, &unix.Rlimit{Cur: soft, Max: hard}, nil); err != nil {
		t.Fatal(err)
	}
}

// Limits of the service and of its child are put back; of the rest, which no
// process of these tests has, the plan says that it needs a restart.
func TestProcessLimitsArePutBack(t *testing.T) {
	svc, _ := fakeService(t)
	list := services{svc}
	r := newProcessesResource(list.running)
	defer r.close()
	if p := planOf(t, r); len(p.limits) != 0 || p.Empty() || p.String() != p.Unrepairable() {
		t.Errorf("nothing to put back, and the plan is\n%s", p)
	}
	pids, err := launch.Tree(t.Context(), svc.pid)
	if err != nil || len(pids) != 2 {
		t.Fatalf("%v %v, want a shell and its child", pids, err)
	}
	for _, pid := range pids {
		lower(t, pid, unix.RLIMIT_NOFILE, 50, 88)
	}
	p := planOf(t, r)
	for _, pid := range pids {
		contains(t, errors.New(p.String()), fmt.Sprintf("service db: process %d: limit nofile is 50:88, want 77:88\n", pid))
	}
	if !strings.HasSuffix(p.String(), p.Unrepairable()) || strings.Contains(p.Unrepairable(), "nofile") {
		t.Errorf("what can be put back is not told apart:\n%s", p)
	}
	contains(t, errors.New(p.Unrepairable()), "no_new_privs is 0, not 1: restart needed", "`pghardend stop --service db`")
	if err := r.Apply(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if p := planOf(t, r); len(p.limits) != 0 {
		t.Errorf("still differs:\n%s", p)
	}
	contains(t, r.Apply(t.Context(), strangePlan{}), "cannot apply a agent.strangePlan to processes")
}

// The configuration may have changed since the service was started.
func TestProcessesAreHeldToWhatTheyWereStartedWith(t *testing.T) {
	svc, _ := fakeService(t)
	list := services{svc}
	r := newProcessesResource(list.running)
	defer r.close()
	planOf(t, r)
	changed := svc.spec
	changed.Limits = limits.Set{"nofile": {Soft: 5, Hard: 6}, "core": {}}
	list[0].spec = changed
	if p := planOf(t, r); len(p.limits) != 0 {
		t.Errorf("a change of the configuration is taken for drift:\n%s", p)
	}
	lower(t, svc.pid, unix.RLIMIT_NOFILE, 50, 88)
	if p := planOf(t, r); len(p.limits) != 1 || p.limits[0].want["nofile"].Soft != 77 {
		t.Errorf("not what it was started with:\n%+v", p.limits)
	}

	// Of an adopted one, what the two agree about is kept.
	list[0].adopted = true
	other := newProcessesResource(list.running)
	defer other.close()
	score := 77
	list[0].spec.OOMScoreAdj = &score
	if p := planOf(t, other); len(p.limits)+len(p.scores) != 0 {
		t.Errorf("adopted with other limits, which may be a change of the configuration:\n%s", p)
	}
	lower(t, svc.pid, unix.RLIMIT_CORE, 0, 0)
	has, err := limits.Read(t.Context(), svc.pid)
	if err != nil {
		t.Fatal(err)
	}
	if spec := other.watched["db"].spec; spec.OOMScoreAdj != nil || len(spec.Limits) != 1 || spec.Limits["core"] != has["core"] {
		t.Errorf("adopted: kept to %+v", spec)
	}
}

func TestProcessOOMScoreIsPutBack(t *testing.T) {
	svc, _ := fakeService(t)
	had, err := limits.OOMScore(t.Context(), svc.pid)
	if err != nil {
		t.Fatal(err)
	}
	want := had + 10 // up, which anybody may
	svc.spec.OOMScoreAdj = &want
	list := services{svc}
	r := newProcessesResource(list.running)
	defer r.close()
	p := planOf(t, r)
	contains(t, errors.New(p.String()), fmt.Sprintf("service db: process %d: oom_score_adj is %d, want %d\n", svc.pid, had, want))
	if len(p.scores) != 1 {
		t.Errorf("%+v: want that of the first process alone", p.scores)
	}
	if err := r.Apply(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if p := planOf(t, r); len(p.scores) != 0 {
		t.Errorf("still differs:\n%s", p)
	}
}

func TestProcessPeek(t *testing.T) {
	svc, end := fakeService(t)
	score, err := limits.OOMScore(t.Context(), svc.pid)
	if err != nil {
		t.Fatal(err)
	}
	svc.spec.OOMScoreAdj = &score
	list := services{svc}
	r := newProcessesResource(list.running)
	defer r.close()
	peek := func(want bool, when string) {
		t.Helper()
		for range 2 {
			if got := r.Peek(t.Context()); got != want {
				t.Errorf("%s: %v, want %v", when, got, want)
			}
		}
	}
	pids, err := launch.Tree(t.Context(), svc.pid)
	if err != nil {
		t.Fatal(err)
	}
	peek(true, "before the first look")
	planOf(t, r)
	peek(true, "after a look that found something")
	w := r.watched["db"]
	sig, err := r.signatureOf(t.Context(), svc.pid)
	if err != nil {
		t.Fatal(err)
	}
	w.learn([]uint64{sig + 1})
	peek(true, "with other credentials")
	w.learn([]uint64{sig + 1, sig})
	peek(false, "as it was")
	for _, pid := range pids {
		lower(t, pid, unix.RLIMIT_NOFILE, 50, 88)
		peek(true, fmt.Sprintf("process %d of %v with another limit", pid, pids))
		lower(t, pid, unix.RLIMIT_NOFILE, 77, 88)
		peek(false, "and back")
	}
	score++
	peek(true, "with another OOM score")
	score--
	peek(false, "and back")
	list[0].pid++
	peek(true, "started again")
	list[0].pid--
	list = nil
	peek(true, "with the service gone")
	list = services{svc}
	peek(false, "and back")
	end()
	peek(true, "after its end")
	if p := planOf(t, r); !p.Empty() {
		t.Errorf("of a service that has ended: %s", p)
	}
	list = nil
	if p := planOf(t, r); !p.Empty() || len(r.watched) != 0 {
		t.Errorf("of no service: %s", p)
	}
	peek(false, "without services")
}

// A process with another number of a child in each look is looked at in turn.
func TestProcessPeekTakesTurns(t *testing.T) {
	w := &processWatch{}
	w.learn(make([]uint64, 100))
	if len(w.signatures) != maxSignatures {
		t.Errorf("%d signatures are kept", len(w.signatures))
	}
	svc, _ := fakeService(t)
	list := services{svc}
	r := newProcessesResource(list.running)
	defer r.close()
	planOf(t, r)
	w = r.watched["db"]
	// A file of 100 children, of which the 70th is one that has what is not wanted.
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		pid := 1 << 30 // nobody
		if i == 70 {
			pid = os.Getpid()
		}
		fmt.Fprintf(f, "%d ", pid)
	}
	w.children.Close()
	w.children = f
	var found []bool
	for range 8 {
		found = append(found, r.peekChildren(t.Context(), w))
	}
	if fmt.Sprint(found[:4]) != "[false false true true]" {
		t.Errorf("found in the turns %v, want in the third", found)
	}
}

// Without CAP_SYS_RESOURCE another user's limits can be had as text.
func TestProcessPeekReadsText(t *testing.T) {
	svc, end := fakeService(t)
	list := services{svc}
	r := newProcessesResource(list.running)
	defer r.close()
	planOf(t, r)
	w := r.watched["db"]
	w.text = make([]byte, 4<<10)
	match := func(want bool) {
		t.Helper()
		for range 2 {
			if same, err := r.match(t.Context(), w, svc.pid); err != nil || same != want {
				t.Errorf("%v %v, want %v", same, err, want)
			}
		}
	}
	match(true)
	lower(t, svc.pid, unix.RLIMIT_NOFILE, 50, 88)
	match(false)
	lower(t, svc.pid, unix.RLIMIT_NOFILE, 77, 88)
	match(true)
	lower(t, svc.pid, unix.RLIMIT_FSIZE, 1<<40, 1<<40) // nobody asked for that one
	match(true)
	if len(w.known) != 2 {
		t.Errorf("%d texts are known, want 2", len(w.known))
	}
	end()
	if _, err := r.match(t.Context(), w, svc.pid); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("after its end: %v", err)
	}
}

func TestProcessPlanIsBounded(t *testing.T) {
	var p processPlan
	for pid := range 50 {
		p.add(launch.Spec{Service: "db", Limits: limits.Set{"core": {}}}, processLook{findings: []launch.Finding{
			{PID: pid, Layer: "seccomp", Check: "mode", Want: "2", Got: "0"},
			{PID: pid, Layer: "seccomp", Check: "filters", OK: true},
		}})
	}
	if lines := strings.Count(p.Unrepairable(), "\n"); lines != maxRestartLines+1 || !strings.Contains(p.Unrepairable(), "and 40 more") {
		t.Errorf("%d lines:\n%s", lines, p.Unrepairable())
	}
	if (processPlan{}).Unrepairable() != "" || !(processPlan{}).Empty() {
		t.Error("an empty plan is not empty")
	}
}

func TestStatusSignature(t *testing.T) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	seed := newProcessesResource(nil).seed
	sig := statusSignature(seed, status)
	for _, key := range signed {
		if !strings.Contains(string(status), "\n"+string(key)) {
			t.Errorf("the kernel has no line %s", key)
			continue
		}
		other := strings.Replace(string(status), "\n"+string(key), "\n"+string(key)+"1", 1)
		if statusSignature(seed, []byte(other)) == sig {
			t.Errorf("another %s makes no other signature", key)
		}
	}
	for _, key := range []string{"Name:", "Pid:", "VmRSS:", "voluntary_ctxt_switches:"} {
		other := strings.Replace(string(status), key, key+"1", 1)
		if statusSignature(seed, []byte(other)) != sig {
			t.Errorf("another %s makes another signature", key)
		}
	}
}

func FuzzCutNumber(f *testing.F) {
	for _, text := range []string{"12 34 ", "-900\n", "", "-", "99999999999999999999 1", "x"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		n, rest := cutNumber(text)
		if len(rest) > len(text) || n > 1<<36 || n < -1<<36 {
			t.Errorf("%d and a rest of %d bytes", n, len(rest))
		}
	})
}

// BenchmarkProcessPeek: one service of two processes.
func BenchmarkProcessPeek(b *testing.B) {
	svc, _ := fakeService(b)
	list := services{svc}
	r := newProcessesResource(list.running)
	defer r.close()
	if _, err := r.Plan(b.Context()); err != nil {
		b.Fatal(err)
	}
	sig, err := r.signatureOf(b.Context(), svc.pid)
	if err != nil {
		b.Fatal(err)
	}
	r.watched["db"].learn([]uint64{sig})
	b.ReportAllocs()
	for b.Loop() {
		if r.Peek(b.Context()) {
			b.Fatal("a difference")
		}
	}
}
