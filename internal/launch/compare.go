package launch

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/pghardend/pghardend/pkg/sandbox"
)

// The layers of findings.
const (
	layerDAC          = "dac"
	layerCapabilities = "capabilities"
	LayerLimits       = "rlimits"
	layerSeccomp      = "seccomp"
	LayerLandlock     = "landlock"
	LayerMounts       = "mounts"
	LayerSELinux      = "selinux"
)

// Finding is one thing a process was asked for: what was wanted and what the
// kernel says. A check that passed is a finding too, with OK set.
type Finding struct {
	PID   int    `json:"pid"`
	Layer string `json:"layer"`
	Check string `json:"check"`
	Want  string `json:"want"`
	Got   string `json:"got"`
	OK    bool   `json:"ok"`
}

// finding compares two texts.
func finding(pid int, layer, check, want, got string) Finding {
	return Finding{PID: pid, Layer: layer, Check: check, Want: want, Got: got, OK: want == got}
}

// compareStatus compares what holds from the read-back step on: credentials,
// capability sets, no_new_privs. lastCap is the highest capability the kernel
// has; the sets are compared as a whole, so that one of which nobody knows the
// name counts as well.
func compareStatus(s sandbox.Status, id Identity, keep sandbox.CapSet, lastCap int) []Finding {
	dac := func(check, want, got string) Finding { return finding(s.PID, layerDAC, check, want, got) }
	out := []Finding{
		dac("uid", fourTimes(id.UID), four(s.UIDs)),
		dac("gid", fourTimes(id.GID), four(s.GIDs)),
		// systemd has the primary group among the others as well, which gives nothing more.
		dac("groups", numbers(id.Groups), numbers(slices.DeleteFunc(slices.Clone(s.Groups), func(g uint32) bool { return g == id.GID }))),
	}
	sets := []struct {
		check string
		got   sandbox.CapSet
	}{
		{"inheritable", s.Inh}, {"permitted", s.Prm}, {"effective", s.Eff}, {"bounding", s.Bnd}, {"ambient", s.Amb},
	}
	for _, set := range sets {
		f := finding(s.PID, layerCapabilities, set.check, capText(keep, lastCap), capText(set.got, lastCap))
		f.OK = set.got == keep
		out = append(out, f)
	}
	nnp := "0"
	if s.NoNewPrivs {
		nnp = "1"
	}
	return append(out, finding(s.PID, layerCapabilities, "no_new_privs", "1", nnp))
}

// compareSeccomp needs mode 2 (SECCOMP_MODE_FILTER) and more filters than there were before the
// launch, seccomp(2): those of a container or of a unit say nothing of the service's own.
func compareSeccomp(s sandbox.Status, others before) []Finding {
	count := finding(s.PID, layerSeccomp, "filters", others.want(), others.got(s))
	count.OK = others.loaded(s)
	return []Finding{finding(s.PID, layerSeccomp, "mode", "2", fmt.Sprint(s.Seccomp)), count}
}

// capText is "none of 41", or names and how many they are.
func capText(set sandbox.CapSet, lastCap int) string {
	if set == 0 {
		return fmt.Sprintf("none of %d", lastCap+1)
	}
	return fmt.Sprintf("%s (%d of %d)", set, bits.OnesCount64(uint64(set)), lastCap+1)
}

// four shows the real, effective, saved and filesystem id.
func four(ids [4]uint32) string {
	return fmt.Sprintf("%d %d %d %d", ids[0], ids[1], ids[2], ids[3])
}

func fourTimes(id uint32) string { return four([4]uint32{id, id, id, id}) }

// numbers is a list in order, "none" if empty.
func numbers(ids []uint32) string {
	if len(ids) == 0 {
		return "none"
	}
	var text []string
	for _, id := range slices.Sorted(slices.Values(ids)) {
		text = append(text, fmt.Sprint(id))
	}
	return strings.Join(text, " ")
}
