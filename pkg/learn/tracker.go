package learn

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Act is one thing that a process did, when it is seen for the first time.
type Act struct {
	PID    int
	Call   Call   // the zero Call if it is about a file or port
	Access Access // of Path
	Path   string // where it is, not condensed
	Port   uint16
	Listen bool // Port is bound, not connected to
}

// unnamed is followed by the number of a call.
const unnamed = "number_"

// Subject is the service that a Tracker follows.
type Subject struct {
	Command []string // its program and the arguments that it is started with at least
	DataDir string   // "" for none
	// Question is the argument behind Command with which the program answers and ends; "" for none.
	Question string
	Name     func(number int) string
}

// Tracker makes sense of reports. It is used by one goroutine.
type Tracker struct {
	subject    Subject
	runs       map[uint64]*run
	uses       map[string]Use
	started    bool
	unresolved uint64
	places     places
	forget     func(pid uint32) // the process is not the service's
	act        func(Act)        // may be nil
}

// run is one program in one process.
type run struct {
	pid    int
	parent *run // nil for the first; not its parent's parent once that is done
	first  bool
	exe    string // "" for one that is known by its first open only
	title  string
	cwd    string // "" if not known
	use    Use
	seen   map[string]bool // what act was told
}

// NewTracker begins with nothing. r forgets processes of other services with the
// same program; act is told of everything new and may be nil.
func NewTracker(s Subject, r *Recorder, act func(Act)) *Tracker {
	return &Tracker{subject: s, runs: map[uint64]*run{}, uses: map[string]Use{}, places: places{}, forget: r.remove, act: act}
}

// Enrolled takes processes that ran before the recorder: the first is the
// service's, parents come before their children.
func (t *Tracker) Enrolled(ctx context.Context, pid int, id uint64, first bool) {
	if _, known := t.runs[id]; known || ctx.Err() != nil {
		return
	}
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)) // it may have ended, and then did nothing yet
	x := &run{pid: pid, first: first, exe: strings.TrimSuffix(exe, " (deleted)"), use: newUse(), seen: map[string]bool{}}
	x.cwd = workingDir(pid)
	t.runs[id] = x
}

func newUse() Use { return Use{Files: map[Access][]string{}} }

// Take handles one report.
func (t *Tracker) Take(r Report) {
	if r.kind == kindFork {
		t.fork(r)
		return
	}
	if r.kind == kindExec {
		t.exec(r)
		return
	}
	x, ok := t.runs[r.run]
	if !ok {
		return // of a process that was found to be another service's, or whose beginning was lost and counted
	}
	switch r.kind {
	case kindCall:
		t.call(x, r)
	case kindPath:
		t.path(x, r)
	case kindSock:
		t.address(x, r)
	case kindTitle:
		x.title = r.text()
	case kindExit:
		if title := r.text(); title != "" {
			x.title = title
		}
		t.finish(x)
		delete(t.runs, r.run)
	}
}

func (t *Tracker) fork(r Report) {
	parent, ok := t.runs[r.args[0]]
	if !ok {
		return
	}
	t.runs[r.run] = &run{pid: int(r.pid), parent: parent, exe: parent.exe, cwd: parent.cwd, use: newUse(), seen: map[string]bool{}}
}

func (t *Tracker) exec(r Report) {
	if r.args[0] == 0 {
		ours, starts := t.ours(r)
		if !ours {
			t.forget(r.pid)
			return
		}
		t.started = t.started || starts
		x := &run{pid: int(r.pid), first: true, exe: t.subject.Command[0], cwd: t.subject.DataDir, use: newUse(), seen: map[string]bool{}}
		t.runs[r.run] = x
		t.file(x, Execute, t.places.file(x.exe))
		return
	}
	before, ok := t.runs[r.args[0]]
	if !ok {
		return
	}
	// What it did until then it did as the program that made it.
	t.finish(before)
	delete(t.runs, r.args[0])
	exe := r.text()
	if !path.IsAbs(exe) {
		exe = path.Join(before.base(unix.AT_FDCWD), exe)
	}
	x := &run{pid: int(r.pid), parent: before.parent, exe: exe, cwd: before.cwd, use: newUse(), seen: map[string]bool{}}
	t.runs[r.run] = x
	t.file(x, Execute, t.places.file(exe))
}

// ours compares the command line, as far as it was read, with what the service
// is started with. One with a question runs its program, but does not start it.
func (t *Tracker) ours(r Report) (ours, starts bool) {
	size := min(r.args[1], uint64(len(r.data)))
	line := string(r.data[:size])
	want := strings.Join(t.subject.Command, "\x00") + "\x00"
	if size == dataSize && len(want) > len(line) {
		want = want[:len(line)]
	}
	more, ours := strings.CutPrefix(line, want)
	asks := t.subject.Question != "" && slices.Contains(strings.Split(more, "\x00"), t.subject.Question)
	return size > 0 && ours, !asks
}

func (t *Tracker) call(x *run, r Report) {
	c := Call{Name: t.subject.Name(int(r.number))}
	if c.Name == "" {
		c.Name = unnamed + fmt.Sprint(r.number)
	}
	c.Args = usefulArgs(c.Name, r.args)
	x.use.Calls = append(x.use.Calls, c)
	t.tell(x, c.String(), Act{Call: c})
}

// usefulArgs leaves out what follows the last argument that matters.
func usefulArgs(name string, args [3]uint64) []uint64 {
	rule, ok := argumentRules[name]
	if !ok {
		return nil
	}
	n := 0
	for i, mask := range rule.mask {
		if mask != 0 {
			n = i + 1
		}
	}
	if name == "prctl" && args[0] != prCapAmbient {
		n = 1
	}
	return slices.Clone(args[:n])
}

// open sorts by the flags of open(2).
func (t *Tracker) open(x *run, flags uint64, p string) {
	if flags&oPath != 0 {
		return
	}
	if flags&unix.O_ACCMODE != unix.O_WRONLY {
		t.file(x, Read, p)
	}
	device := beneath(p, "/dev") && !beneath(p, "/dev/shm") // `> /dev/null` makes nothing
	switch {
	case flags&(unix.O_CREAT|unix.O_TRUNC) != 0 && !device:
		t.file(x, Write, p)
	case flags&unix.O_ACCMODE != unix.O_RDONLY:
		t.file(x, Update, p)
	}
}

func (t *Tracker) path(x *run, r Report) {
	name := t.subject.Name(int(r.number))
	if name == "fchdir" {
		x.cwd = "" // looked up when it matters
		return
	}
	args := pathCalls[name]
	p := r.text()
	if int(r.args[0]) >= len(args) || p == "" {
		return
	}
	arg := args[r.args[0]]
	if !path.IsAbs(p) {
		dir := x.base(r.dirFD)
		if dir == "" {
			t.unresolved++
			return
		}
		p = path.Join(dir, p)
	}
	switch p = path.Clean(p); arg.access {
	case moves:
		x.cwd = t.places.file(p)
	case opens:
		t.open(x, r.args[1], t.places.file(p))
	default:
		t.file(x, arg.access, t.places.entry(p))
	}
}

// base is what a relative path begins at.
func (x *run) base(dirFD int32) string {
	if dirFD != unix.AT_FDCWD {
		dir, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", x.pid, dirFD)) // gone, if it has ended
		if !path.IsAbs(dir) {
			return ""
		}
		return dir
	}
	if x.cwd == "" {
		x.cwd = workingDir(x.pid)
	}
	return x.cwd
}

func workingDir(pid int) string {
	dir, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	return dir
}

// address handles struct sockaddr: the family in the machine's byte order, then a
// port in the network's or a path.
func (t *Tracker) address(x *run, r Report) {
	data := r.data[:min(r.args[0], uint64(len(r.data)))]
	if len(data) < 4 {
		return
	}
	listen := t.subject.Name(int(r.number)) == "bind"
	switch binary.NativeEndian.Uint16(data) {
	case unix.AF_INET, unix.AF_INET6:
		port := binary.BigEndian.Uint16(data[2:])
		if port == 0 {
			return
		}
		if listen {
			x.use.Bind = append(x.use.Bind, port)
		} else {
			x.use.Connect = append(x.use.Connect, port)
		}
		t.tell(x, fmt.Sprint(listen, port), Act{Port: port, Listen: listen})
	case unix.AF_UNIX:
		name := Report{data: data[2:]}.text()
		if !listen || name == "" { // abstract, or without name
			return
		}
		if !path.IsAbs(name) {
			name = path.Join(x.base(unix.AT_FDCWD), name)
		}
		t.file(x, Socket, path.Clean(name))
	}
}

func (t *Tracker) file(x *run, access Access, p string) {
	place := Place(p, t.subject.DataDir)
	x.use.Files[access] = append(x.use.Files[access], place)
	if len(x.use.Files[access]) > 8*maxFiles {
		x.use.Files[access] = condense(x.use.Files[access], access)
	}
	t.tell(x, string(access)+place, Act{Access: access, Path: p})
}

func (t *Tracker) tell(x *run, key string, a Act) {
	if t.act == nil || x.seen[key] {
		return
	}
	x.seen[key] = true
	a.PID = x.pid
	t.act(a)
}

// finish adds what a run did to its type. A child without a title of its own,
// which ended or executed something before it had one, counts as its parent.
func (t *Tracker) finish(x *run) {
	name := t.typeOf(x)
	t.uses[name] = mergeUse(t.uses[name], x.use)
	x.use = newUse()
}

func (t *Tracker) typeOf(x *run) string {
	program := t.subject.Command[0]
	if name := Classify(program, x.exe, x.title, x.first); name != typeChild || x.parent == nil {
		return name
	}
	if x.parent.title == "" && !x.parent.first {
		x.parent.readTitle()
	}
	return Classify(program, x.parent.exe, x.parent.title, x.parent.first)
}

func (x *run) readTitle() {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", x.pid)) // gone, if it has ended
	title, _, _ := strings.Cut(string(line), "\x00")
	if title != "" {
		x.title = title
	}
}

// Use is what all types of processes did so far, by type. It may be called again.
func (t *Tracker) Use(ctx context.Context) map[string]Use {
	for _, x := range t.runs {
		if ctx.Err() == nil {
			x.readTitle()
		}
		t.finish(x)
	}
	out := map[string]Use{}
	for name, use := range t.uses {
		if len(use.Calls)+len(use.Files) > 0 {
			out[name] = mergeUse(use, Use{})
		}
	}
	return out
}

// Counts are for people who wait: processes that live, types, different calls.
func (t *Tracker) Counts() (processes, types, calls int) {
	names := map[string]bool{}
	for _, use := range t.uses {
		for _, c := range use.Calls {
			names[c.Name] = true
		}
	}
	for _, x := range t.runs {
		for _, c := range x.use.Calls {
			names[c.Name] = true
		}
	}
	return len(t.runs), len(t.uses), len(names)
}

// Started says whether the service's program was started meanwhile.
func (t *Tracker) Started() bool { return t.started }

// Unresolved is how many paths could not be told.
func (t *Tracker) Unresolved() uint64 { return t.unresolved }
