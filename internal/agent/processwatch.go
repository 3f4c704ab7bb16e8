package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/internal/launch"
	"github.com/pghardend/pghardend/pkg/limits"
)

// How much one Peek looks at of a service, so that one with a thousand backends
// costs no more than a small one: its first process each time, and of that one's
// children, in turn, the limits of peekLimits and the credentials of peekStatus.
// The others, and the children's children, are for the full look.
const (
	peekLimits = 32
	peekStatus = 2
)

// maxSignatures is more kinds of processes than a service has.
const maxSignatures = 16

// processWatch is what is remembered of a service between two looks. The open
// files are of this one process: once it has ended they cannot be read any more,
// whoever has its number then.
type processWatch struct {
	root       limits.Process
	spec       launch.Spec // what it was started with
	status     *os.File    // /proc/PID/…
	score      *os.File
	mounts     *os.File // tells of changes, mountsChanged
	children   *os.File // nil: the kernel has no such file (CONFIG_PROC_CHILDREN)
	signatures []uint64 // of its processes in the last look that found nothing
	next       int      // of the children

	// Where limits can be had as text only, see limits.Match: digests of texts that
	// have what is wanted.
	text  []byte
	known []uint64
}

// watch returns what is known of a service, anew for each first process.
func (r *processesResource) watch(ctx context.Context, svc runningService) (*processWatch, error) {
	root, err := limits.Identify(ctx, svc.pid)
	if err != nil {
		return nil, err
	}
	if w, ok := r.watched[svc.name]; ok && w.root == root {
		return w, nil
	}
	spec, err := startedWith(ctx, svc)
	if err != nil {
		return nil, err
	}
	w := &processWatch{root: root, spec: spec}
	dir := fmt.Sprintf("/proc/%d/", svc.pid)
	w.status, err = os.Open(dir + "status")
	if err == nil {
		w.score, err = os.Open(dir + "oom_score_adj")
	}
	if err == nil {
		w.mounts, err = openUnpolled(dir + "mountinfo")
	}
	if err == nil {
		w.children, err = os.Open(fmt.Sprintf("%stask/%d/children", dir, svc.pid))
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		w.close()
		return nil, asDone(err)
	}
	if old, ok := r.watched[svc.name]; ok {
		old.close()
	}
	r.watched[svc.name] = w
	return w, nil
}

// openUnpolled keeps a file from Go's poller, which os.Open gives all that can be polled:
// that would take the news of mounts, which each open file has once.
func openUnpolled(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil // it does not poll what is not O_NONBLOCK
}

// forget drops the services that are not in the list.
func (r *processesResource) forget(list []runningService) {
	for name, w := range r.watched {
		if !slices.ContainsFunc(list, func(s runningService) bool { return s.name == name }) {
			w.close()
			delete(r.watched, name)
		}
	}
}

// close ends the watching of all services.
func (r *processesResource) close() { r.forget(nil) }

func (w *processWatch) close() {
	for _, f := range []*os.File{w.status, w.score, w.mounts, w.children} {
		if f != nil {
			f.Close()
		}
	}
}

func (w *processWatch) learn(signatures []uint64) {
	w.signatures = signatures[:min(len(signatures), maxSignatures)]
}

// Peek implements reconcile.Peeker. It takes less than 0.1 ms for one service,
// most of it for reading three files /proc/PID/status.
func (r *processesResource) Peek(ctx context.Context) bool {
	r.list = r.running(r.list[:0])
	if len(r.list) != len(r.watched) {
		return true
	}
	for i := range r.list {
		w, ok := r.watched[r.list[i].name]
		if !ok || w.root.PID != r.list[i].pid || r.peekService(ctx, w) {
			return true
		}
	}
	return false
}

func (r *processesResource) peekService(ctx context.Context, w *processWatch) bool {
	n, err := rawRead(int(w.status.Fd()), r.buf)
	if err != nil || n == 0 || n == len(r.buf) || !slices.Contains(w.signatures, statusSignature(r.seed, r.buf[:n])) {
		return true
	}
	if same, err := r.match(ctx, w, w.root.PID); err != nil || !same {
		return true
	}
	if mountsChanged(int(w.mounts.Fd())) {
		return true
	}
	if w.spec.OOMScoreAdj != nil {
		n, err := rawRead(int(w.score.Fd()), r.buf)
		if got, rest := cutNumber(r.buf[:n]); err != nil || got != *w.spec.OOMScoreAdj || len(rest) != 0 {
			return true
		}
	}
	return r.peekChildren(ctx, w)
}

func (r *processesResource) peekChildren(ctx context.Context, w *processWatch) bool {
	if w.children == nil {
		return false
	}
	n, _ := rawRead(int(w.children.Fd()), r.buf) // a process that has ended has none
	count := bytes.Count(r.buf[:n], []byte(" "))
	if count == 0 {
		return false
	}
	// The status of a process is read into the same buffer, so these come last.
	var status [peekStatus]int
	turns := peekLimits
	if w.text != nil {
		turns = peekStatus
	}
	first, i := w.next%count, 0
	for rest := r.buf[:n]; i < count; i++ {
		var pid int
		pid, rest = cutNumber(rest)
		turn := (i - first + count) % count
		if turn >= turns || pid <= 0 {
			continue
		}
		if turn < peekStatus {
			status[turn] = pid
		}
		same, err := r.match(ctx, w, pid)
		if !same && !errors.Is(err, os.ErrProcessDone) {
			return true
		}
	}
	w.next = first + min(turns, count)
	return r.strange(ctx, w, status[:])
}

// match compares the limits of one process.
func (r *processesResource) match(ctx context.Context, w *processWatch, pid int) (bool, error) {
	if w.text == nil {
		same, err := limits.Match(ctx, pid, w.spec.Limits)
		if !errors.Is(err, os.ErrPermission) {
			return same, err
		}
		w.text = make([]byte, 4<<10)
	}
	n, err := readInto(ctx, pid, "limits", w.text)
	if err != nil {
		return false, err
	}
	sum := maphash.Bytes(r.seed, w.text[:n])
	if slices.Contains(w.known, sum) {
		return true, nil
	}
	has, err := limits.ParseProc(w.text[:n])
	if err != nil || len(limits.Diff(w.spec.Limits, has)) > 0 {
		return false, err
	}
	if len(w.known) < maxSignatures {
		w.known = append(w.known, sum)
	}
	return true, nil
}

// strange says whether one of the processes is of no known kind. A child that has
// ended is not.
func (r *processesResource) strange(ctx context.Context, w *processWatch, pids []int) bool {
	for _, pid := range pids {
		if pid == 0 {
			continue
		}
		sig, err := r.signatureOf(ctx, pid)
		if err == nil && !slices.Contains(w.signatures, sig) || err != nil && !errors.Is(err, os.ErrProcessDone) {
			return true
		}
	}
	return false
}

func (r *processesResource) signatureOf(ctx context.Context, pid int) (uint64, error) {
	n, err := readInto(ctx, pid, "status", r.buf)
	return statusSignature(r.seed, r.buf[:n]), err
}

// readInto reads a small file of a process whole. An empty one is that of a
// process that has ended.
func readInto(ctx context.Context, pid int, name string, buf []byte) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	fd, err := rawOpen(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		return 0, asDone(err)
	}
	n, err := rawRead(fd, buf)
	rawClose(fd)
	if err == nil && n == 0 {
		err = os.ErrProcessDone
	}
	return n, asDone(err)
}

// signed are the lines of /proc/PID/status that say what a process may do.
var signed = [][]byte{
	[]byte("Uid:"), []byte("Gid:"), []byte("Groups:"), []byte("CapInh:"), []byte("CapPrm:"), []byte("CapEff:"), []byte("CapBnd:"),
	[]byte("CapAmb:"), []byte("NoNewPrivs:"), []byte("Seccomp:"), []byte("Seccomp_filters:"),
}

// statusSignature is the same for all processes that may do the same. Line breaks
// in a process's name are escaped by the kernel, proc_pid_status(5).
func statusSignature(seed maphash.Seed, status []byte) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	for len(status) > 0 {
		line, rest, _ := bytes.Cut(status, []byte("\n"))
		status = rest
		if slices.ContainsFunc(signed, func(key []byte) bool { return bytes.HasPrefix(line, key) }) {
			_, _ = h.Write(line) // it never fails
			_ = h.WriteByte('\n')
		}
	}
	return h.Sum64()
}

// cutNumber takes a number and the white space that follows off the text; 0 if
// there is none.
func cutNumber(text []byte) (number int, rest []byte) {
	i, sign := 0, 1
	if len(text) > 0 && text[0] == '-' {
		i, sign = 1, -1
	}
	for ; i < len(text) && text[i] >= '0' && text[i] <= '9' && number < 1<<31; i++ {
		number = 10*number + int(text[i]-'0')
	}
	return sign * number, bytes.TrimLeft(text[i:], " \n")
}

// asDone makes one error of all that say that a process has ended.
func asDone(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}
