package drill

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// options are those of what holds neither code nor devices.
const options = unix.MS_NOEXEC | unix.MS_NOSUID | unix.MS_NODEV

// makeMounts arranges the mount namespace. Nothing of it is seen outside.
func (b *box) makeMounts(context.Context) error {
	// Slave: what the host unmounts goes away here too.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("cannot detach the mounts from the host's: %w", err)
	}
	// A copy of names of namespaces would keep them alive.
	if err := unix.Unmount("/run/netns", unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("cannot unmount /run/netns: %w", err)
	}
	area := filepath.Join(b.Area, "area")
	for _, dir := range []string{area, filepath.Join(area, "bin"), filepath.Join(area, "etc"), filepath.Join(area, "state"), filepath.Join(area, "state", "run")} {
		if err := makeDir(dir, 0); err != nil {
			return err
		}
	}
	for _, dir := range []string{"data", "socket"} {
		if err := makeDir(filepath.Join(area, dir), b.UID); err != nil {
			return err
		}
	}
	for _, m := range []struct {
		what, where, kind string
		flags             uintptr
	}{
		{"proc", "/proc", "proc", options},
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV},
		{area, b.Inside.Root, "", unix.MS_BIND},
		{"", b.Inside.Root, "", unix.MS_BIND | unix.MS_REMOUNT}, // without the options of where it lies
	} {
		if err := unix.Mount(m.what, m.where, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("cannot mount %s on %s: %w", m.what, m.where, err)
		}
	}
	return errors.Join(b.addUser(), b.allowSudo())
}

// makeDir makes a directory of root's that everybody may pass, or one of the user's
// alone, whatever the umask is.
func makeDir(path string, uid int) error {
	mode := os.FileMode(0o755)
	if uid != 0 {
		mode = 0o700
	}
	if err := os.Mkdir(path, mode); err != nil {
		return fmt.Errorf("cannot make a directory: %w", err)
	}
	return errors.Join(os.Chmod(path, mode), os.Chown(path, uid, uid))
}

// addUser puts the drill's user into passwd and group as they are seen here.
func (b *box) addUser() error {
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return fmt.Errorf("cannot add the drill's user: %w", err)
	}
	group, err := os.ReadFile("/etc/group")
	if err != nil {
		return fmt.Errorf("cannot add the drill's user: %w", err)
	}
	for file, text := range map[string]string{
		"passwd": lines(string(passwd)) + fmt.Sprintf("%s:*:%d:%d::/nonexistent:/usr/sbin/nologin\n", User, b.UID, b.UID),
		"group":  groupsWith(lines(string(group)), b.Groups) + fmt.Sprintf("%s:x:%d:\n", User, b.UID),
	} {
		own := filepath.Join(b.Inside.Root, "etc", file)
		if err := writeFile(own, []byte(text), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(own, "/etc/"+file, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cannot mount %s: %w", own, err)
		}
	}
	// A cache would not know the user.
	if err := unix.Mount("tmpfs", "/run/nscd", "tmpfs", options, ""); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("cannot hide /run/nscd: %w", err)
	}
	return nil
}

// lines ends a text with a line break.
func lines(text string) string { return strings.TrimRight(text, "\n") + "\n" }

// groupsWith adds the user to groups, which are given by name or number. Pure.
func groupsWith(text string, groups []string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimRight(line, "\n"), ":")
		if len(f) == 4 && (slices.Contains(groups, f[0]) || slices.Contains(groups, f[2])) {
			if f[3] != "" {
				f[3] += ","
			}
			f[3] += User
		}
		out.WriteString(strings.Join(f, ":") + "\n")
	}
	return out.String()
}

// writeFile makes a file of root's, whatever the umask is.
func writeFile(path string, data []byte, mode os.FileMode) error {
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("cannot write a scratch file: %w", err)
	}
	return os.Chmod(path, mode)
}

// capSysAdmin is a file capability, effective and permitted, capabilities(7):
// struct vfs_cap_data of revision 2 with CAP_SYS_ADMIN (21).
var capSysAdmin = []byte{1, 0, 0, 2, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// plainProgram is one that every service may read, says nothing and ends well.
const plainProgram = "/usr/bin/true"

// makeFiles makes what is executed and what is attacked.
func (b *box) makeFiles(context.Context) error {
	for _, f := range []struct {
		name, from string
		mode       os.FileMode
	}{
		{"pghardend", selfPath, 0o755}, {"setuid-id", "/usr/bin/id", 0o755 | os.ModeSetuid},
		{"capable-cat", "/usr/bin/cat", 0o755}, {"program", plainProgram, 0o755},
	} {
		data, err := os.ReadFile(f.from)
		if err == nil {
			err = writeFile(b.file(f.name), data, f.mode)
		}
		if err != nil {
			return fmt.Errorf("cannot make the program %s: %w", f.name, err)
		}
	}
	if err := unix.Setxattr(b.file("capable-cat"), "security.capability", capSysAdmin, 0); err != nil {
		return fmt.Errorf("cannot give a program capabilities: %w", err)
	}
	etc := filepath.Join(b.Inside.Root, "etc")
	own := filepath.Join(etc, "pg_hba.conf")
	err := errors.Join(writeFile(filepath.Join(etc, "pghardend.yaml"), []byte("version: 1\n"), 0o644),
		writeFile(filepath.Join(etc, "drill.service"), []byte("[Service]\n"), 0o644), writeFile(own, []byte("local all all reject\n"), 0o640))
	if err != nil {
		return err
	}
	if err := os.Chown(own, b.UID, b.UID); err != nil {
		return err
	}
	b.loader, err = interpreterOf(plainProgram)
	return err
}

// interpreterOf is the dynamic loader that a program names, elf(5).
func interpreterOf(program string) (string, error) {
	f, err := elf.Open(program)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // nothing was written
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			name, err := io.ReadAll(io.LimitReader(p.Open(), 4096))
			return strings.TrimRight(string(name), "\x00"), err
		}
	}
	return "", fmt.Errorf("%s has no dynamic loader", program)
}
