package launch

import (
	"encoding/json"
	"fmt"
	"os"
)

// Step names one step of the launch.
type Step string

// The steps in their order, those of Landlock, mounts and control groups aside:
// StepMounts, StepCgroup and StepLandlock are the last ones before StepUmask,
// StepEnterCgroup, StepOOMScore and StepMountsEnter precede StepCwd, StepSELinux precedes StepMounts, StepExecGate precedes
// StepSetLimits, StepSELinuxLabel follows StepCapabilitySets, and StepLandlockLoad follows StepReadBack. Up to StepLandlock nothing has changed. A launch without
// privileges has StepUnit after StepGroups, and StepRecord around StepLandlockLoad.
const (
	StepSpec         Step = "spec"
	StepPrivilege    Step = "privilege"
	StepUser         Step = "user"
	StepGroups       Step = "groups"
	StepBinary       Step = "binary"
	StepDataDir      Step = "data-dir"
	StepLimits       Step = "limits"
	StepCapabilities Step = "capabilities"
	StepSeccomp      Step = "seccomp"
	StepEnvironment  Step = "environment"

	StepUmask          Step = "umask"
	StepCwd            Step = "cwd"
	StepOOMScore       Step = "oom-score"
	StepSetLimits      Step = "set-limits"
	StepBoundingSet    Step = "bounding-set"
	StepIdentity       Step = "identity"
	StepCapabilitySets Step = "capability-sets"
	StepNoNewPrivs     Step = "no-new-privs"
	StepReadBack       Step = "read-back"
	StepSignals        Step = "signals"
	StepDescriptors    Step = "descriptors"
	StepSeccompLoad    Step = "seccomp-load"
	StepExec           Step = "exec"

	StepLandlock     Step = "landlock"
	StepLandlockLoad Step = "landlock-load"

	StepMounts      Step = "mounts"
	StepMountsEnter Step = "mounts-enter"
	StepCgroup      Step = "cgroup"
	StepEnterCgroup Step = "enter-cgroup"

	StepExecGate Step = "exec-gate"

	StepUnit   Step = "unit"
	StepRecord Step = "record"

	StepSELinux      Step = "selinux"
	StepSELinuxLabel Step = "selinux-label"
)

// codes is the table of exit codes. They are part of the command line's
// contract: a number once given is not given to another step. They lie between
// those in common use below and those of shells and systemd above (126 and up).
var codes = map[Step]int{
	StepSpec:         71, // no program, no user, a NUL byte, an impossible oom_score_adj
	StepPrivilege:    72, // root without CAP_SETUID, CAP_SETGID, CAP_SETPCAP
	StepUser:         73, // F26: no such user, uid 0, gid 0
	StepGroups:       74, // F26: stray, missing or privileged groups
	StepBinary:       75, // F27: the program or a helper: missing, replaceable by others, a link, setuid, a script
	StepDataDir:      76, // F28: missing, wrong owner or mode
	StepLimits:       77, // F31: unknown, or above the hard limit
	StepCapabilities: 78, // F33: not ours to give, or inherited and not asked for
	StepSeccomp:      79, // F29: not supported by the kernel, or does not compile
	StepEnvironment:  80, // a variable that must not be set, or a broken LISTEN_FDS

	StepUmask:          81, // never fails today
	StepCwd:            82, // cannot enter the data directory, or it changed since the check
	StepOOMScore:       83, // oom_score_adj refused
	StepSetLimits:      84, // setrlimit refused, or read back differently
	StepBoundingSet:    85, // capability bounding set not dropped
	StepIdentity:       86, // keepcaps, setgroups, setresgid, setresuid
	StepCapabilitySets: 87, // effective, permitted, inheritable, ambient not as asked
	StepNoNewPrivs:     88, // no_new_privs refused
	StepReadBack:       89, // /proc/thread-self/status is not what was asked for
	StepSignals:        90, // mask or ignored signals not reset
	StepDescriptors:    91, // inherited descriptors not closed
	StepSeccompLoad:    92, // the kernel refused the filter
	StepExec:           93, // execve failed

	StepLandlock:     94, // not supported by the kernel, a declared path is missing or must not be written to
	StepLandlockLoad: 95, // the kernel refused the rules, or they do not hold

	StepMounts:      96, // not supported by the kernel, no CAP_SYS_ADMIN, or paths that contradict each other
	StepMountsEnter: 97, // no mount namespace, or its mounts are not as asked for
	StepCgroup:      98, // required, and the machine or the service manager does not offer it
	StepEnterCgroup: 99, // the kernel refused the group, or its settings are not as written

	StepExecGate: 100, // page 0 cannot be mapped

	StepSELinux:      101, // F30: required, and disabled, permissive, without the domain, or the transition is denied
	StepSELinuxLabel: 102, // the kernel refused the label for execve, or has another one

	StepUnit:   103, // not root, and what started the launch has not confined it
	StepRecord: 104, // the record of a launch without privileges cannot be written
}

// Error is a launch that did not happen.
type Error struct {
	Service string
	Step    Step
	Err     error
}

func (e *Error) Error() string {
	return fmt.Sprintf("cannot start service %s: step %s: %v", e.Service, e.Step, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Code is the exit code of a process whose launch failed with e: 71 to 104, one
// for each step.
func (e *Error) Code() int { return codes[e.Step] }

// reportLine is what the parent gets.
type reportLine struct {
	Step  Step   `json:"step"`
	Error string `json:"error"`
	Code  int    `json:"code"`
}

// tell writes e to file as one line of JSON. That nobody may be reading is not
// worth an error: the exit code says the same.
func tell(file *os.File, e *Error) {
	if file == nil {
		return
	}
	line, err := json.Marshal(reportLine{Step: e.Step, Error: e.Error(), Code: e.Code()})
	if err != nil {
		return
	}
	_, _ = file.Write(append(line, '\n'))
}
