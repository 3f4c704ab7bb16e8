package sandbox

import (
	"encoding/json"
	"math/bits"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// capTest is what the helper "caps" is to do, in this order.
type capTest struct {
	Bound   []CapSet // DropBounding with each
	Set     []CapSet // SetCapabilities with each
	Execute bool     // become cat /proc/self/status
}

const envCaps = "SANDBOX_TEST_CAPS"

func tryCapabilities() (any, error) {
	var c capTest
	if err := json.Unmarshal([]byte(os.Getenv(envCaps)), &c); err != nil {
		return nil, err
	}
	for _, keep := range c.Bound {
		if err := DropBounding(keep); err != nil {
			return nil, err
		}
	}
	for _, keep := range c.Set {
		if err := SetCapabilities(keep); err != nil {
			return nil, err
		}
	}
	if c.Execute {
		return nil, syscall.Exec("/bin/cat", []string{"cat", "/proc/self/status"}, nil)
	}
	return ownStatus()
}

// inUserNamespace gives the helper a user namespace of its own, where it has
// every capability whoever runs the test. It is a user other than root there, so
// that it has them through the ambient set, as something started by a careless
// parent would.
func inUserNamespace(t *testing.T, c capTest, ambient CapSet) func(*exec.Cmd) {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return func(cmd *exec.Cmd) {
		cmd.Env = append(cmd.Env, envCaps+"="+string(text))
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Getgid(), Size: 1}},
		}
		for n := range 64 {
			if ambient.Has(n) {
				cmd.SysProcAttr.AmbientCaps = append(cmd.SysProcAttr.AmbientCaps, uintptr(n))
			}
		}
	}
}

func allCapabilities(t *testing.T) CapSet {
	t.Helper()
	all, err := kernelCapabilities()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// The sets of the calling thread, and of the program it becomes, are exactly
// what was asked for, over every capability the kernel has.
func TestF33_CapabilitiesAreExact(t *testing.T) {
	all := allCapabilities(t)
	last := CapSet(1) << (bits.Len64(uint64(all)) - 1)
	netAdmin := CapSet(1) << unix.CAP_NET_ADMIN
	tests := []struct {
		name string
		keep CapSet
	}{
		{"none", 0},
		{"one", netAdmin},
		{"the highest the kernel has", last},
		{"lowest and highest, above and below 32", 1 | last | netAdmin | 1<<32},
		{"all", all},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := mustHelp[Status](t, "caps", inUserNamespace(t, capTest{}, all))
			if before.Eff != all || before.Bnd != all || before.Amb != all {
				t.Fatalf("the helper starts with %s, bounding %s, ambient %s, want all: the test is wrong",
					before.Eff, before.Bnd, before.Amb)
			}
			c := capTest{Bound: []CapSet{tt.keep}, Set: []CapSet{tt.keep}}
			checkCaps(t, mustHelp[Status](t, "caps", inUserNamespace(t, c, all)), tt.keep)
			c.Execute = true
			out, err := help(t, "caps", inUserNamespace(t, c, all))
			if err != nil {
				t.Fatal(err)
			}
			s, err := ParseStatus(out)
			if err != nil {
				t.Fatal(err)
			}
			checkCaps(t, s, tt.keep)
		})
	}
}

func checkCaps(t *testing.T, s Status, want CapSet) {
	t.Helper()
	for name, got := range map[string]CapSet{
		"inheritable": s.Inh, "permitted": s.Prm, "effective": s.Eff, "bounding": s.Bnd, "ambient": s.Amb,
	} {
		if got != want {
			t.Errorf("%s: %s set %s, want %s", s.Name, name, got, want)
		}
	}
}

func TestF33_CapabilityErrors(t *testing.T) {
	all := allCapabilities(t)
	netAdmin, netRaw := CapSet(1)<<unix.CAP_NET_ADMIN, CapSet(1)<<unix.CAP_NET_RAW
	tests := []struct {
		name    string
		do      capTest
		ambient CapSet
		want    []string
	}{
		{"bounding set without CAP_SETPCAP", capTest{Bound: []CapSet{0}}, 0,
			[]string{"cannot make none the capability bounding set", "dropping cap_chown,", "needs CAP_SETPCAP"}},
		{"bounding set cannot grow again", capTest{Bound: []CapSet{0, netAdmin}}, all,
			[]string{"cannot make cap_net_admin the capability bounding set", "cap_net_admin is not in the bounding set of this process"}},
		{"bit without a capability", capTest{Bound: []CapSet{1 << 63}}, all, []string{"this kernel does not have cap_63"}},
		{"bit without a capability, set", capTest{Set: []CapSet{1 << 63}}, all, []string{"this kernel does not have cap_63"}},
		{"not permitted", capTest{Set: []CapSet{netAdmin}}, 0,
			[]string{"cannot make cap_net_admin the capabilities: operation not permitted", "keepcaps"}},
		{"not permitted any more", capTest{Set: []CapSet{netAdmin, netAdmin | netRaw}}, all,
			[]string{"cannot make cap_net_admin,cap_net_raw the capabilities: operation not permitted"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := help(t, "caps", inUserNamespace(t, tt.do, tt.ambient))
			checkError(t, err, tt.want...)
		})
	}
}

// Asking for what is there already needs no privilege.
func TestDropBoundingNothingToDo(t *testing.T) {
	all := allCapabilities(t)
	mustHelp[Status](t, "caps", inUserNamespace(t, capTest{Bound: []CapSet{all}, Set: []CapSet{0, 0}}, 0))
}

// tryKeepCaps reads the flag back after each change.
func tryKeepCaps() (any, error) {
	var got []int
	for _, on := range []bool{true, false} {
		if err := KeepCaps(on); err != nil {
			return nil, err
		}
		v, err := unix.PrctlRetInt(unix.PR_GET_KEEPCAPS, 0, 0, 0, 0)
		if err != nil {
			return nil, err
		}
		got = append(got, v)
	}
	return got, nil
}

func TestKeepCaps(t *testing.T) {
	if got := mustHelp[[]int](t, "keepcaps"); len(got) != 2 || got[0] != 1 || got[1] != 0 {
		t.Errorf("keepcaps on, then off: %v, want [1 0]", got)
	}
}

func TestParseCapabilities(t *testing.T) {
	got, err := ParseCapabilities([]string{"CAP_NET_ADMIN", "cap_net_raw", "Cap_Chown", "CAP_CHECKPOINT_RESTORE", "CAP_CHOWN"})
	if err != nil {
		t.Fatal(err)
	}
	want := CapSet(1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_CHOWN | 1<<unix.CAP_CHECKPOINT_RESTORE)
	if got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, err := ParseCapabilities(nil); err != nil || got != 0 {
		t.Errorf("no names: %s, %v", got, err)
	}
}

func TestF33_UnknownCapabilitiesAreListed(t *testing.T) {
	for _, bad := range []string{"", "NET_ADMIN", "CAP_", "CAP_NET_ADMIN ", "CAP_ALL", "CAP_63", "cap_net_admin=ep"} {
		if _, err := ParseCapabilities([]string{bad}); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	_, err := ParseCapabilities([]string{"CAP_FOO", "CAP_NET_ADMIN", "bar"})
	checkError(t, err, `unknown capabilities: "CAP_FOO", "bar"`, "such as CAP_NET_ADMIN")
}

func TestCapSetString(t *testing.T) {
	tests := map[CapSet]string{
		0:                          "none",
		1:                          "cap_chown",
		1 << unix.CAP_BPF:          "cap_bpf",
		1<<63 | 1<<12:              "cap_net_admin,cap_63",
		1 << unix.CAP_LAST_CAP:     "cap_checkpoint_restore",
		1 << unix.CAP_DAC_OVERRIDE: "cap_dac_override",
	}
	for set, want := range tests {
		if got := set.String(); got != want {
			t.Errorf("%#x: %s, want %s", uint64(set), got, want)
		}
	}
}

// The library's names are in the order of the numbers, without a gap.
func TestCapabilityNames(t *testing.T) {
	names := capNames()
	if len(names) < unix.CAP_LAST_CAP+1 {
		t.Fatalf("%d names, want at least %d", len(names), unix.CAP_LAST_CAP+1)
	}
	for n, name := range names {
		set, err := ParseCapabilities([]string{name})
		if err != nil || set != 1<<n {
			t.Errorf("%s: %#x, %v, want number %d", name, uint64(set), err, n)
		}
	}
	if has := (CapSet(1) << 40); has.Has(41) || has.Has(-1) || has.Has(64) || !has.Has(40) {
		t.Error("Has is wrong")
	}
}
