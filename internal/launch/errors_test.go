package launch

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
)

// allSteps has the constants once more: one that is not in the table of codes
// would exit with 0.
var allSteps = []Step{
	StepSpec, StepPrivilege, StepUser, StepGroups, StepBinary, StepDataDir, StepLimits, StepCapabilities,
	StepSeccomp, StepEnvironment, StepUmask, StepCwd, StepOOMScore, StepSetLimits, StepBoundingSet, StepIdentity,
	StepCapabilitySets, StepNoNewPrivs, StepReadBack, StepSignals, StepDescriptors, StepSeccompLoad, StepExec,
	StepLandlock, StepLandlockLoad, StepMounts, StepMountsEnter, StepCgroup, StepEnterCgroup, StepExecGate,
	StepSELinux, StepSELinuxLabel, StepUnit, StepRecord,
}

func TestCodesAreDistinct(t *testing.T) {
	taken := map[int]Step{}
	for i, step := range allSteps {
		code := (&Error{Step: step}).Code()
		if code != 71+i {
			t.Errorf("step %s has code %d, want %d: a code must never change", step, code, 71+i)
		}
		if other, ok := taken[code]; ok {
			t.Errorf("steps %s and %s share code %d", step, other, code)
		}
		taken[code] = step
	}
	if len(codes) != len(allSteps) {
		t.Errorf("the table has %d steps, want %d", len(codes), len(allSteps))
	}
}

func TestTell(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cause := errors.New("line one\nline two")
	e := &Error{Service: "postgres", Step: StepDataDir, Err: cause}
	tell(w, e)
	w.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(data), "\n"); n != 1 || !strings.HasSuffix(string(data), "\n") {
		t.Errorf("not one line: %q", data)
	}
	var got map[string]any
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if got["step"] != "data-dir" || got["code"] != float64(76) || got["error"] != e.Error() {
		t.Errorf("report is %v", got)
	}
	if want := "cannot start service postgres: step data-dir: line one"; !strings.HasPrefix(e.Error(), want) {
		t.Errorf("error is %q", e)
	}
	if !errors.Is(e, cause) {
		t.Error("the cause is lost")
	}
}

// Nobody to tell must not keep the launch from ending with its code.
func TestTellNobody(t *testing.T) {
	e := &Error{Step: StepExec, Err: errors.New("x")}
	tell(nil, e)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	tell(w, e)
	w.Close()
}
