package drill

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// outcome is what became of an attempt in one box.
type outcome struct {
	Reached bool
	Step    string // where it ended, if it was not reached
	Errno   string // its name, such as EPERM; "" if there was no error number
	Note    string
	Absent  string // why it cannot be tried on this machine

	said string // what a program said that was executed
	exit int
}

var reached = outcome{Reached: true}

// stopped is an outcome for an error of a system call.
func stopped(step string, err error) outcome {
	if err == nil {
		return reached
	}
	if errno, ok := err.(unix.Errno); ok { //nolint:errorlint // system calls return them bare
		return outcome{Step: step, Errno: errnoName(errno)}
	}
	return outcome{Step: step, Note: err.Error()}
}

func errnoName(errno unix.Errno) string {
	if name := unix.ErrnoName(errno); name != "" {
		return name
	}
	return strconv.Itoa(int(errno))
}

func absent(why string, args ...any) outcome { return outcome{Absent: fmt.Sprintf(why, args...)} }

// same says whether two outcomes ended in the same way.
func (o outcome) same(other outcome) bool { return o.Step == other.Step && o.Errno == other.Errno }

// Text is such as "EPERM at bpf".
func (o outcome) text() string {
	switch {
	case o.Reached:
		return "succeeded"
	case o.Absent != "":
		return o.Absent
	}
	text := "failed at " + o.Step
	if o.Errno != "" {
		text = o.Errno + " at " + o.Step
	}
	if o.Note != "" {
		text += " (" + o.Note + ")"
	}
	return text
}

// stepGain is where a program was executed and has gained nothing, which is
// no_new_privs' doing.
const stepGain = "gain"

// judgeUser reads what the setuid copy of id said.
func judgeUser(o outcome) outcome {
	said := strings.TrimSpace(o.said)
	if o.exit == 0 && said == "0" {
		return reached
	}
	if o.exit != 0 {
		return outcome{Step: "run", Note: fmt.Sprintf("exit code %d", o.exit)}
	}
	return outcome{Step: stepGain, Note: "still uid " + said}
}

// judgeCapabilities reads what the copy of cat showed of itself.
func judgeCapabilities(o outcome) outcome {
	for line := range strings.Lines(o.said) {
		set, ok := strings.CutPrefix(line, "CapEff:")
		if !ok {
			continue
		}
		if strings.Trim(strings.TrimSpace(set), "0") != "" {
			return reached
		}
		return outcome{Step: stepGain, Note: "no capability gained"}
	}
	return outcome{Step: "run", Note: fmt.Sprintf("exit code %d", o.exit)}
}

// judgeRun is for a program that says nothing and ends well if it was run.
func judgeRun(o outcome) outcome {
	if o.exit == 0 {
		return reached
	}
	return outcome{Step: "run", Note: fmt.Sprintf("exit code %d", o.exit)}
}

// counts says whether an outcome under one layer on top of the control is that
// layer's doing. Filters and Landlock rules bring no_new_privs with them, which is
// not theirs.
func counts(l Layer, o outcome) bool {
	return !o.Reached && o.Absent == "" && (o.Step != stepGain || !slices.Contains([]Layer{Seccomp, Landlock}, l))
}
