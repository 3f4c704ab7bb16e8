package culprit

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// Look reads what is still there of a process. command is the name that the
// kernel gave it, at most 15 bytes; a process of another name is somebody else,
// who got the pid since. An empty command accepts any.
func Look(ctx context.Context, pid int, command string) Culprit {
	return look(ctx, "/proc", pid, command)
}

// maxRead bounds what is read of one file of /proc.
const maxRead = 8 << 10

func look(ctx context.Context, proc string, pid int, command string) Culprit {
	c := Culprit{PID: max(pid, 0), Command: clean(command), UID: unknown}
	if pid <= 0 || ctx.Err() != nil {
		return c
	}
	// Held open, the directory stands for this process and never for its successor.
	dir, err := os.OpenRoot(filepath.Join(proc, strconv.Itoa(pid)))
	if err != nil {
		return c
	}
	defer closeDir(dir)
	name, ok := read(dir, "comm")
	if name = strings.TrimSuffix(name, "\n"); !ok || (command != "" && name != command) {
		return c
	}
	c.Command = clean(name)
	exe, _ := dir.Readlink("exe") // fails for one that has just ended
	c.Exe = clean(exe)
	status, _ := read(dir, "status")
	uid, parent := parseStatus(status)
	c.UID, c.Parent = uid, parentName(proc, parent)
	if c.UID == 0 && ctx.Err() == nil { // this file is the process' own memory, which anybody else could make us wait for
		args, _ := read(dir, "cmdline")
		c.Args = clean(arguments(exe, args))
	}
	return c
}

// read is empty-handed for a process that has ended.
func read(dir *os.Root, name string) (text string, ok bool) {
	f, err := dir.Open(name)
	if err != nil {
		return "", false
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRead))
	return string(data), err == nil
}

func closeDir(dir *os.Root) { _ = dir.Close() } // nothing was written

// parseStatus reads the real uid and the parent's pid, proc_pid_status(5). What
// is missing is unknown or 0.
func parseStatus(text string) (uid, parent int) {
	uid = unknown
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		words := strings.Fields(value)
		if len(words) == 0 {
			continue
		}
		n, err := strconv.Atoi(words[0])
		switch {
		case err != nil || n < 0:
		case key == "Uid":
			uid = n
		case key == "PPid":
			parent = n
		}
	}
	return uid, parent
}

func parentName(proc string, pid int) string {
	if pid <= 0 {
		return ""
	}
	dir, err := os.OpenRoot(filepath.Join(proc, strconv.Itoa(pid)))
	if err != nil {
		return ""
	}
	defer closeDir(dir)
	name, ok := read(dir, "comm")
	if !ok {
		return ""
	}
	return clean(fmt.Sprintf("%s (%d)", strings.TrimSuffix(name, "\n"), pid))
}

// writers are the programs that change rules, by the beginning of their names.
// Their arguments tell what was changed, and hold no password.
var writers = []string{"iptables", "ip6tables", "xtables", "nft", "ipset"}

// arguments picks what may be shown of a command line. A program that is none of
// the writers shows its first word alone, without what a title of its own may
// say behind it.
func arguments(exe, cmdline string) string {
	words := bytes.Split([]byte(strings.TrimRight(cmdline, "\x00")), []byte{0})
	if isWriter(strings.TrimSuffix(exe, " (deleted)")) {
		return string(bytes.Join(words, []byte(" ")))
	}
	first, _, _ := strings.Cut(string(words[0]), " ")
	return first
}

func isWriter(exe string) bool {
	base := path.Base(exe)
	for _, w := range writers {
		rest, ok := strings.CutPrefix(base, w)
		if ok && (rest == "" || rest[0] == '-') {
			return true
		}
	}
	return false
}
