package launch

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/pghardend/pghardend/pkg/mac"
	"github.com/pghardend/pghardend/pkg/sandbox"
	"github.com/pghardend/pghardend/policies"
)

// Records of processes that are gone go away; one that is about to be written by
// another launch of the same service does not, nor another service's.
func TestLaunchRecords(t *testing.T) {
	ctx := context.Background()
	dir := filepath.Join(t.TempDir(), "landlock")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("pg.1.json", "")                             // alive, about to be written
	put("pg.2000000000.json", "{}")                  // above any pid
	put("pg.x.json", "")                             // none of ours
	put("pgpool.2000000000.json", "{}")              // another service's
	put(filepath.Base(recordPath("", "pg", 1)), "{") // half-written
	self := os.Getpid()
	put(filepath.Base(recordPath("", "pg", self)), `{"pid":1}`) // of a process that had this number
	file, id, err := createRecord(ctx, dir, "pg", self)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for name, there := range map[string]bool{"pg.1.json": true, "pg.2000000000.json": false, "pg.x.json": true, "pgpool.2000000000.json": true} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != there {
			t.Errorf("%s: %v", name, err)
		}
	}
	spec := Spec{Service: "pg", Landlock: Landlock{Mode: LandlockRequired, RecordDir: dir}}
	r := launchRecord{processID: id, Time: time.Now(), ABI: 6, Rules: spec.Landlock.Rules.Digest(), Enforced: []string{"files", "signals"},
		Probed: []string{"files"}, Missing: []mac.Feature{{Name: "audit-log", ABI: 7, Kernel: "6.15"}}}
	r.write(file)
	state, err := ReadLandlock(ctx, spec, self)
	if err != nil || !state.Enforced() || !strings.Contains(state.Text(), "set with them: signals; NOT enforced by this kernel: audit-log (Linux 6.15)") {
		t.Errorf("%v %s", err, state.Text())
	}
	if got := faults(state.Findings(self)); got != "" || len(state.Findings(self)) != 4 {
		t.Errorf("faults %q in %+v", got, state.Findings(self))
	}
	r.Start++ // another process with this number
	put(filepath.Base(recordPath("", "pg", self)), "")
	again, err := os.OpenFile(recordPath(dir, "pg", self), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	r.write(again)
	if state, err := ReadLandlock(ctx, spec, self); err != nil || state.Enforced() || faults(state.Findings(self)) != "launch" {
		t.Errorf("%v %+v", err, state.Findings(self))
	}
}

// What is not enforced is accepted only where that was asked for.
func TestF30_LandlockFindings(t *testing.T) {
	for mode, want := range map[string]string{LandlockRequired: "launch", LandlockPreferred: "", LandlockOff: ""} {
		state := LandlockState{Mode: mode}
		if got := faults(state.Findings(7)); got != want || state.Enforced() {
			t.Errorf("%s: faults %q, want %q", mode, got, want)
		}
	}
}

func TestParseStart(t *testing.T) {
	const stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 2 3"
	if got, err := parseStart(stat); err != nil || got != 4242 {
		t.Errorf("%d %v", got, err)
	}
	for _, text := range []string{"", "7 (a) S", ")"} {
		if _, err := parseStart(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

// The program, its loader, and of a script the interpreter and its loader.
func TestExecutables(t *testing.T) {
	program := realPath(t, "cat")
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh -e\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := executables(Spec{Service: "pg", Command: []string{program}, Helpers: []string{script}})
	wantNone(t, err)
	if len(got) != 5 || got[0] != program || !strings.Contains(got[1], "ld-linux") || got[2] != script || got[3] != realPath(t, "sh") || got[4] != got[1] {
		t.Errorf("%q", got)
	}
	_, err = executables(Spec{Service: "pg", Command: []string{script}})
	wantError(t, err, "only ELF programs and scripts")
}

// What the layer adds to a launch: the check before anything has changed, then the
// step with its probes.
func BenchmarkLandlock(b *testing.B) {
	program, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		b.Fatal(err)
	}
	text, err := policies.FS.ReadFile("landlock/postgres.yaml")
	if err != nil {
		b.Fatal(err)
	}
	policy, err := mac.ParsePolicy("postgres.yaml", text)
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	spec := Spec{Service: "pg", Command: []string{program}, DataDir: dir, Landlock: Landlock{Mode: LandlockRequired, Rules: policy.RuleSet(dir, "data_dir")}}
	spec.Landlock.Rules.Bind, spec.Landlock.Rules.Connect = mac.Ports{Restricted: true, Allowed: []uint16{5432}}, mac.Ports{Restricted: true, Allowed: []uint16{53, 5432}}
	var check, step time.Duration
	for b.Loop() {
		began := time.Now()
		stage, err := checkLandlock(context.Background(), spec)
		if err != nil {
			b.Fatal(err)
		}
		check += time.Since(began)
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // for good
			if err := sandbox.NoNewPrivs(); err != nil {
				done <- err
				return
			}
			began := time.Now()
			err := stage.enforce()
			step += time.Since(began)
			done <- err
		}()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		stage.close()
	}
	b.ReportMetric(float64(check.Microseconds())/float64(b.N), "µs/check")
	b.ReportMetric(float64(step.Microseconds())/float64(b.N), "µs/step")
}

// A launch becomes its service from a thread that is not the first, which is a zombie for a moment then. Another
// launch must not take away the record of a process that lives; one that is really over loses it.
func TestRecordOfWhoseFirstThreadHasEnded(t *testing.T) {
	dir, pid := t.TempDir(), startHelper(t)
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil || !strings.Contains(string(stat), ") Z ") {
		t.Fatalf("the first thread has not ended: %s, %v", stat, err)
	}
	id, err := identify(t.Context(), pid)
	wantNone(t, err)
	data, err := json.Marshal(launchRecord{processID: id})
	wantNone(t, err)
	path := recordPath(dir, "pg", pid)
	wantNone(t, os.WriteFile(path, data, 0o600))
	if outdated(t.Context(), path) {
		t.Error("it counts as gone")
	}
	over := exec.Command("/bin/true")
	wantNone(t, over.Start())
	defer func() { _ = over.Wait() }()
	for gone := false; !gone; { // nobody reaps it
		gone, err = isZombie(over.Process.Pid)
		wantNone(t, err)
	}
	if !outdated(t.Context(), recordPath(dir, "pg", over.Process.Pid)) {
		t.Error("one that is over counts as alive")
	}
}
