package launch

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/limits"
	"github.com/pghardend/pghardend/pkg/mounts"
	"github.com/pghardend/pghardend/pkg/sandbox"
)

// Each thing that a unit has not done is refused, with the directive that does it.
func TestUnitFaultNamesTheDirective(t *testing.T) {
	id := Identity{User: "pg", UID: 26, GID: 27, Groups: []uint32{103}}
	raw := capability(unix.CAP_NET_RAW)
	unit := func(change func(*sandbox.Status)) sandbox.Status {
		s := sandbox.Status{UIDs: [4]uint32{26, 26, 26, 26}, GIDs: [4]uint32{27, 27, 27, 27}, Groups: []uint32{27, 103}, NoNewPrivs: true}
		change(&s)
		return s
	}
	wantNone(t, unitFault(unit(func(*sandbox.Status) {}), id, 0))
	for directive, change := range map[string]func(*sandbox.Status){
		"User=":                 func(s *sandbox.Status) { s.UIDs[2] = 0 },
		"Group=":                func(s *sandbox.Status) { s.GIDs[0] = 0 },
		"SupplementaryGroups=":  func(s *sandbox.Status) { s.Groups = []uint32{27, 103, 4} },
		"NoNewPrivileges=yes":   func(s *sandbox.Status) { s.NoNewPrivs = false },
		"CapabilityBoundingSet": func(s *sandbox.Status) { s.Bnd = raw },
		"AmbientCapabilities":   func(s *sandbox.Status) { s.Amb = raw },
	} {
		err := unitFault(unit(change), id, 0)
		wantError(t, err, directive, "running as uid 26")
		if n := strings.Count(err.Error(), "want "); n != 1 {
			t.Errorf("%s: %d things are said to be wrong: %v", directive, n, err)
		}
	}
	kept := unit(func(s *sandbox.Status) { s.Inh, s.Prm, s.Eff, s.Bnd, s.Amb = raw, raw, raw, raw, raw })
	wantNone(t, unitFault(kept, id, raw))
	wantError(t, unitFault(unit(func(*sandbox.Status) {}), id, raw), "AmbientCapabilities", "CapabilityBoundingSet")
}

// unitTable is what systemd made of our unit, shortened.
const unitTable = `2388 2350 0:195 / / ro,nosuid,noexec,relatime - ext4 /dev/vda rw
2424 2388 0:201 / /run rw,nosuid,noexec - tmpfs tmpfs rw
2442 2388 0:211 / /dev ro,nosuid,noexec - tmpfs tmpfs rw
2461 2388 0:195 DIR/bin DIR/bin ro,nosuid - ext4 /dev/vda rw
2464 2388 0:195 DIR/data DIR/data rw,nosuid,noexec - ext4 /dev/vda rw
2481 2388 0:186 /systemd/inaccessible/dir DIR/hidden ro,nosuid,noexec - tmpfs tmpfs rw
`

// The mounts of a unit are judged by what the kernel shows of them, whoever made them.
func TestUnitMountsFaultNamesTheDirective(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"bin", "data", "hidden", "etc"} {
		wantNone(t, os.Mkdir(filepath.Join(dir, name), 0o755))
	}
	wantNone(t, os.WriteFile(filepath.Join(dir, "bin/pg"), nil, 0o755))
	layout, err := mounts.Resolve(t.Context(), mounts.Spec{Exec: []string{dir + "/bin"}, ReadOnly: []string{dir + "/etc"},
		Write: []string{dir + "/data"}, Hide: []string{dir + "/hidden"}})
	wantNone(t, err)
	spec := Spec{Service: "pg", Command: []string{dir + "/bin/pg"}, DataDir: dir + "/data"}
	check := func(old, now string) error {
		t.Helper()
		text := strings.ReplaceAll(unitTable, "DIR", dir)
		changed := strings.Replace(text, strings.ReplaceAll(old, "DIR", dir), strings.ReplaceAll(now, "DIR", dir), 1)
		if old != "" && changed == text {
			t.Fatalf("no %q in the table", old)
		}
		table, err := mounts.ParseTable([]byte(changed))
		wantNone(t, err)
		return unitMountsFault(layout.OfUnit(), table, spec.Command, spec)
	}
	wantNone(t, check("", ""))
	for _, c := range []struct{ old, now, want string }{
		{"DIR/data rw,nosuid,noexec", "DIR/data rw,nosuid", "NoExecPaths= in the unit"},
		{"/ / ro,nosuid,noexec", "/ / ro,nosuid", "NoExecPaths= in the unit"},
		{"DIR/bin ro,nosuid", "DIR/bin rw,nosuid", "ReadOnlyPaths="},
		{"/ / ro,nosuid", "/ / rw,nosuid", "ProtectSystem=strict"},
		{"/ /dev ro,nosuid,noexec - tmpfs", "/ /dev ro,nosuid,noexec - devtmpfs", "PrivateDevices=yes"},
		{"/systemd/inaccessible/dir", "/elsewhere", "InaccessiblePaths="},
		{"DIR/bin ro,nosuid", "DIR/bin ro,nosuid,noexec", "ExecPaths=" + dir + "/bin/pg and BindReadOnlyPaths="},
		{"DIR/data rw", "DIR/data ro", "ReadWritePaths="},
	} {
		wantError(t, check(c.old, c.now), c.want)
	}
}

// The record proves something only if the service could neither make nor keep it.
func TestUnitRecordIsRootsAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pg.json")
	err := checkUnitRecord(path) // of a test it is a pipe, a terminal or somebody's file
	wantError(t, err, "standard output is", "StandardOutput=truncate:"+path, "StandardError=journal")
}

func TestUnitScoreAndGroup(t *testing.T) {
	ctx := t.Context()
	have, err := readOOMScore(ctx, os.Getpid())
	wantNone(t, err)
	other := have + 1
	wantNone(t, checkUnitScore(ctx, nil))
	wantNone(t, checkUnitScore(ctx, &have))
	wantError(t, checkUnitScore(ctx, &other), "OOMScoreAdjust=")

	group := limits.CgroupGroup{Version: limits.CgroupV2, Dir: t.TempDir(), Settings: []limits.CgroupSetting{
		{Name: "tasks_max", Controller: "pids", File: "pids.max", Value: "300"}}}
	stage := func(mode string, g limits.CgroupGroup) *cgroupStage {
		return &cgroupStage{Spec{Service: "pg", Cgroup: Cgroup{Mode: mode}}, limits.CgroupPlan{Groups: []limits.CgroupGroup{g}}}
	}
	wantNone(t, os.WriteFile(filepath.Join(group.Dir, "pids.max"), []byte("max\n"), 0o600))
	_, err = stage(CgroupRequired, group).checkUnit(ctx)
	wantError(t, err, "TasksMax=300")
	r, err := stage(CgroupPreferred, group).checkUnit(ctx)
	if err != nil || len(r.Missing) != 1 || len(r.Groups) != 0 {
		t.Errorf("%+v, %v: a bound that is not there is not told of", r, err)
	}
	wantNone(t, os.WriteFile(filepath.Join(group.Dir, "pids.max"), []byte("300\n"), 0o600))
	if r, err = stage(CgroupRequired, group).checkUnit(ctx); err != nil || len(r.Groups) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	group.Base = group.Dir
	_, err = stage(CgroupPreferred, group).checkUnit(ctx)
	wantError(t, err, "Delegate=")
}

// All parts of the record are of the process that left them, and of no other.
func TestUnitRecordIsRead(t *testing.T) {
	ctx := context.Background()
	runtime := t.TempDir()
	spec := Spec{Service: "pg", RecordDir: filepath.Join(runtime, RecordsDir), Landlock: Landlock{Mode: LandlockRequired, RecordDir: filepath.Join(runtime, "landlock")},
		Features: ProfileRecord{Chosen: []Chosen{{featureOpenExec, "its unit"}}}, Cgroup: Cgroup{Mode: CgroupPreferred, RecordDir: filepath.Join(runtime, "cgroup")}}
	wantNone(t, os.Mkdir(spec.RecordDir, 0o700))
	r := unitRecord{startRecord: startRecord{Filters: 34, Launcher: "/usr/bin/pghardend"}, Cgroup: &cgroupRecord{Unit: true}}
	wantNone(t, r.identify(ctx, spec))
	r.Landlock = &launchRecord{processID: r.processID, ABI: 7, Rules: spec.Landlock.Rules.Digest()}
	write := func() {
		data, err := json.Marshal(r)
		wantNone(t, err)
		wantNone(t, os.WriteFile(unitRecordPath(spec.RecordDir, "pg"), data, 0o600))
	}
	write()
	self, err := sandbox.ReadStatus(ctx, 0)
	wantNone(t, err)
	if b, err := filtersBefore(ctx, spec, self); err != nil || b != (before{filters: 34, known: true}) {
		t.Errorf("%+v, %v", b, err)
	}
	landlock, err := ReadLandlock(ctx, spec, os.Getpid())
	if err != nil || !landlock.Enforced() {
		t.Errorf("%v, %v", landlock.Text(), err)
	}
	profile, ok, err := ReadProfile(ctx, filepath.Join(runtime, "profiles"), "pg", os.Getpid())
	if err != nil || !ok || !profile.Unit || len(profile.Names()) != 1 {
		t.Errorf("%+v, %t, %v", profile, ok, err)
	}
	if groups, err := ReadCgroup(ctx, spec, os.Getpid()); err != nil || groups.Fault != "" {
		t.Errorf("%+v, %v", groups, err)
	}
	r.Start++ // another process with this number
	write()
	if b, err := filtersBefore(ctx, spec, self); err != nil || b.known {
		t.Errorf("the record of a process that is gone counts: %+v, %v", b, err)
	}
	if landlock, err := ReadLandlock(ctx, spec, os.Getpid()); err != nil || landlock.Enforced() {
		t.Errorf("the record of a process that is gone counts: %v, %v", landlock.Text(), err)
	}
}

// That there is no gate is no fault, and is said.
func TestUngatedIsSaid(t *testing.T) {
	if got := ungated(Spec{}, 7); got != nil {
		t.Errorf("a profile that had none: %+v", got)
	}
}
