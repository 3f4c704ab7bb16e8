package launch

import "testing"

// All layers make the launch that services get: nothing of it is left out.
func TestStepsWithout(t *testing.T) {
	all, err := stepsWithout(Layers())
	if err != nil {
		t.Fatal(err)
	}
	for step, skipped := range all {
		if skipped {
			t.Errorf("with all layers, step %s is left out", step)
		}
	}
	for _, tt := range []struct {
		on   []string
		step Step
		skip bool
	}{
		{nil, StepIdentity, true},
		{nil, StepNoNewPrivs, true},
		{nil, StepDescriptors, false},
		{[]string{"dac"}, StepIdentity, false},
		{[]string{"dac"}, StepBoundingSet, true},
		{[]string{"dac"}, StepReadBack, true},
		{[]string{"seccomp"}, StepNoNewPrivs, false},
		{[]string{"landlock"}, StepNoNewPrivs, false},
		{[]string{"landlock"}, StepSeccompLoad, true},
		{[]string{"capabilities", "dac"}, StepReadBack, false},
	} {
		skip, err := stepsWithout(tt.on)
		if err != nil || skip[tt.step] != tt.skip {
			t.Errorf("with %q: step %s left out: %v %v, want %v", tt.on, tt.step, skip[tt.step], err, tt.skip)
		}
	}
	if _, err := stepsWithout([]string{"apparmor"}); err == nil {
		t.Error("an unknown layer is accepted")
	}
}
