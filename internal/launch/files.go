package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// writableByOthers are the bits that let anyone but the owner write; with a
// POSIX ACL the group bits hold its mask, so an entry for a user shows here too.
const writableByOthers = 0o022

// candidate is a file that is to be executed: the program of a service, one of
// its helpers, or the interpreter of a helper.
type candidate struct {
	what    string // for messages: program, helper, interpreter
	path    string
	setting string // where its path is to be corrected
}

// checkBinary refuses a program that anyone but root could replace, that is not
// what its path says, or that would bring privileges of its own (F27).
func checkBinary(ctx context.Context, spec Spec, id Identity) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c := candidate{"program", spec.Command[0], "services." + spec.Service + ".command"}
	if err := checkExecutable(c, id); err != nil {
		return err
	}
	_, script, err := readInterpreter(c)
	if err == nil && script {
		return fmt.Errorf("program %s is a script: put its interpreter first (command: [/path/of/interpreter, %s])", c.path, c.path)
	}
	return err
}

// checkExecutable applies the rules that hold for whatever is executed.
func checkExecutable(c candidate, id Identity) error {
	if !filepath.IsAbs(c.path) || filepath.Clean(c.path) != c.path {
		return fmt.Errorf("%s %q: use its absolute path, without . or .. in it", c.what, c.path)
	}
	target, err := filepath.EvalSymlinks(c.path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s %s does not exist: install its package or correct %s", c.what, c.path, c.setting)
	}
	if err != nil {
		return fmt.Errorf("cannot look at %s %s: %w", c.what, c.path, err)
	}
	if target != c.path {
		return fmt.Errorf("%s %s is a symbolic link or lies behind one: name %s in %s", c.what, c.path, target, c.setting)
	}
	if err := checkAncestors(c); err != nil {
		return err
	}
	return checkFile(c, id)
}

// checkFile judges the file itself, wherever it lies.
func checkFile(c candidate, id Identity) error {
	var st unix.Stat_t
	if err := unix.Lstat(c.path, &st); err != nil {
		return fmt.Errorf("cannot look at %s %s: %w", c.what, c.path, err)
	}
	if err := binaryFault(c, st, id); err != nil {
		return err
	}
	return checkFileCapabilities(c)
}

// checkAncestors looks at every directory on the way to the candidate.
func checkAncestors(c candidate) error {
	for dir := filepath.Dir(c.path); ; dir = filepath.Dir(dir) {
		var st unix.Stat_t
		if err := unix.Lstat(dir, &st); err != nil {
			return fmt.Errorf("cannot look at directory %s: %w", dir, err)
		}
		if err := ancestorFault(dir, st); err != nil {
			return fmt.Errorf("%s %s: %w", c.what, c.path, err)
		}
		if dir == "/" {
			return nil
		}
	}
}

// ancestorFault refuses a directory in which anyone but root can exchange an
// entry. The sticky bit is no excuse: a program has no business below /tmp.
func ancestorFault(dir string, st unix.Stat_t) error {
	if st.Uid != 0 {
		return fmt.Errorf("directory %s belongs to uid %d, who could replace the program: chown root: %s",
			dir, st.Uid, shellQuote(dir))
	}
	if st.Mode&writableByOthers != 0 {
		return fmt.Errorf("directory %s is writable by others (mode %#o), who could replace the program: chmod go-w %s, or install it elsewhere",
			dir, st.Mode&0o7777, shellQuote(dir))
	}
	return nil
}

// binaryFault judges the program file itself.
func binaryFault(c candidate, st unix.Stat_t, id Identity) error {
	name, quoted := c.what+" "+c.path, shellQuote(c.path)
	switch mode := st.Mode & 0o7777; {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return fmt.Errorf("%s is not a regular file", name)
	case st.Uid == id.UID:
		return fmt.Errorf("%s belongs to %s, the user it would run as, who could replace it: chown root: %s", name, id.User, quoted)
	case st.Uid != 0:
		return fmt.Errorf("%s belongs to uid %d, who could replace it: chown root: %s", name, st.Uid, quoted)
	case mode&writableByOthers != 0:
		return fmt.Errorf("%s is writable by others (mode %#o): chmod go-w %s", name, mode, quoted)
	case mode&(unix.S_ISUID|unix.S_ISGID) != 0:
		return fmt.Errorf("%s is setuid or setgid (mode %#o), which a confined service must not need: chmod ug-s %s", name, mode, quoted)
	case mode&0o111 == 0:
		return fmt.Errorf("%s is not executable (mode %#o): chmod a+x %s", name, mode, quoted)
	}
	return nil
}

// checkFileCapabilities refuses what setcap(8) leaves behind, capabilities(7).
func checkFileCapabilities(c candidate) error {
	_, err := unix.Lgetxattr(c.path, "security.capability", nil)
	return fileCapabilityFault(c, err)
}

func fileCapabilityFault(c candidate, err error) error {
	switch {
	case err == nil:
		return fmt.Errorf("%s %s has file capabilities, which a confined service must not need: setcap -r %s (and list what it does need in capabilities)",
			c.what, c.path, shellQuote(c.path))
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
		return nil
	}
	return fmt.Errorf("cannot read the file capabilities of %s: %w", c.path, err)
}

// checkDataDir refuses a data directory that is not the service's alone (F28).
// It never changes one: a wrong owner is a mistake to look at, not to hide.
func checkDataDir(ctx context.Context, dir string, id Identity) error {
	if err := ctx.Err(); err != nil || dir == "" {
		return err
	}
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("data directory %q: use its absolute path", dir)
	}
	var st unix.Stat_t
	err := unix.Stat(dir, &st)
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("data directory %s does not exist: create it (install -d -m 0700 -o %s -g %d %s) and initialise it",
			dir, shellQuote(id.User), id.GID, shellQuote(dir))
	}
	if err != nil {
		return fmt.Errorf("cannot look at data directory %s: %w", dir, err)
	}
	return dataDirFault(dir, st, id)
}

// dataDirFault applies PostgreSQL's own rule: the owner is the server's user and
// the mode is 0700 or 0750. A setgid bit, which only directories above hand
// down, does no harm.
func dataDirFault(dir string, st unix.Stat_t, id Identity) error {
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("data directory %s is not a directory: correct data_dir", dir)
	}
	var errs []error
	if st.Uid != id.UID {
		errs = append(errs, fmt.Errorf("data directory %s belongs to uid %d, not to %s (uid %d): if it is the right one: chown -R %s: %s",
			dir, st.Uid, id.User, id.UID, shellQuote(id.User), shellQuote(dir)))
	}
	if perm := st.Mode & 0o777; perm != 0o700 && perm != 0o750 {
		errs = append(errs, fmt.Errorf("data directory %s has mode %#o, not 0700 or 0750: chmod 0700 %s",
			dir, perm, shellQuote(dir)))
	}
	return errors.Join(errs...)
}
