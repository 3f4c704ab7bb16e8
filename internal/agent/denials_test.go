package agent

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/launch"
)

func denialOf(service, what string) control.Denial {
	return control.Denial{Service: service, What: what, Who: &control.Culprit{PID: 7}}
}

// What is denied again and again is told of at once, and then once in a while with a count.
func TestDenialsAreToldOfOnceInAWhile(t *testing.T) {
	var l denialLog
	now := time.Now()
	sh := denialOf("postgres", "sh")
	if before, event := l.add(sh, 3, now); !event || before != 0 {
		t.Errorf("the first: %d, %t", before, event)
	}
	if _, event := l.add(denialOf("pgpool", "sh"), 1, now); !event {
		t.Error("another service's is not told of")
	}
	if _, event := l.add(sh, 5, now.Add(toldAgain-1)); event || !l.pending() {
		t.Error("it is told of again at once")
	}
	if due := l.untold(now.Add(toldAgain - 1)); len(due) != 0 {
		t.Errorf("due too early: %+v", due)
	}
	if before, event := l.add(sh, 1, now.Add(toldAgain)); !event || before != 5 {
		t.Errorf("after a while: %d, %t; 5 were not told of", before, event)
	}
	l.add(sh, 2, now.Add(toldAgain+1))
	if due := l.untold(now.Add(2 * toldAgain)); len(due) != 1 || due[0].since != 2 || l.pending() {
		t.Errorf("what is due: %+v", due)
	}
	if last := l.last(); len(last) != 2 || last[1].What != "sh" || last[1].Count != 11 || !last[1].First.Equal(now) {
		t.Errorf("%+v", last)
	}
}

// Nobody fills the journal or the memory by being denied many different things.
func TestDenialsAreBounded(t *testing.T) {
	var l denialLog
	now, told := time.Now(), 0
	for i := range 10000 {
		if _, event := l.add(denialOf("postgres", fmt.Sprint(i)), 1, now); event {
			told++
		}
	}
	if told != maxTold+1 || len(l.list) > keptDenials || len(l.last()) > shownDenials {
		t.Errorf("%d events, %d are kept, %d shown", told, len(l.list), len(l.last()))
	}
	if _, event := l.add(denialOf("pgpool", "sh"), 1, now); !event {
		t.Error("another service is not told of for it")
	}
}

// Whether the filter denied a call is for the profile to say: the kernel answers EPERM too.
func TestDeniedIsWhatTheProfileDenies(t *testing.T) {
	profile, err := baseProfile("postgres")
	if err != nil {
		t.Fatal(err)
	}
	d := &denials{spec: func(name string) (launch.Spec, bool) { return launch.Spec{Seccomp: profile}, name == "postgres" }}
	for _, tt := range []struct {
		service string
		number  int
		errno   syscall.Errno
		name    string
		ours    bool
	}{
		{"postgres", syscall.SYS_PTRACE, syscall.EPERM, "ptrace", true},
		{"postgres", syscall.SYS_FCHMOD, syscall.EPERM, "fchmod", false},
		{"postgres", -1, syscall.ENOSYS, unknownCall, true},
		{"gone", syscall.SYS_PTRACE, syscall.EPERM, "ptrace", false},
	} {
		if name, ours := d.denied(tt.service, tt.number, tt.errno); name != tt.name || ours != tt.ours {
			t.Errorf("%+v: %s, %t", tt, name, ours)
		}
	}
}

func TestDenialTexts(t *testing.T) {
	if got := blockedText("/tmp/a\nb", syscall.EACCES); got != "the execution of /tmp/a?b was blocked (EACCES)" {
		t.Error(got)
	}
	if got := againText(blockedText("", syscall.EPERM), 3); got != "the execution of a program was blocked (EPERM); 3 more times since the last event" {
		t.Error(got)
	}
}
