package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// interpreterLine is how much of a file the kernel looks at for the
	// interpreter (BINPRM_BUF_SIZE). It refuses a longer path since Linux 5.0 and
	// cuts it off before: neither is what the script means.
	interpreterLine = 256

	// maxLinks is where the kernel gives up as well, path_resolution(7).
	maxLinks = 40
)

// checkHelpers applies the rules of checkBinary to every helper. A helper may be
// a script; what counts for a program then counts for its interpreter, except that
// it may be named through links of root's, as /bin/sh is on every system.
func checkHelpers(ctx context.Context, spec Spec, id Identity) error {
	var errs []error
	for _, helper := range spec.Helpers {
		if err := ctx.Err(); err != nil {
			return err
		}
		c := candidate{"helper", helper, "services." + spec.Service + ".helpers"}
		if err := checkHelper(c, id); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func checkHelper(c candidate, id Identity) error {
	if err := checkExecutable(c, id); err != nil {
		return err
	}
	name, script, err := readInterpreter(c)
	if err != nil || !script {
		return err
	}
	if err := checkInterpreter(c, name, id); err != nil {
		return fmt.Errorf("helper %s: %w", c.path, err)
	}
	return nil
}

// checkInterpreter follows the links to the interpreter of a helper and judges
// what is there.
func checkInterpreter(script candidate, name string, id Identity) error {
	switch {
	case !path.IsAbs(name):
		return fmt.Errorf("its first line names no absolute path: start it with #!/bin/sh or the like")
	case path.Base(name) == "env":
		return fmt.Errorf("its interpreter is %s, which runs whatever PATH leads to: name the interpreter itself in the first line", name)
	}
	target, err := followLinks(name)
	if err != nil {
		return fmt.Errorf("interpreter %s: %w", name, err)
	}
	c := candidate{"interpreter", target, "the first line of " + script.path}
	if err := checkFile(c, id); err != nil {
		return err
	}
	_, again, err := readInterpreter(c)
	if err == nil && again {
		return fmt.Errorf("interpreter %s is a script itself: name a program in the first line", target)
	}
	return err
}

// followLinks resolves a path component by component. Each directory on the way
// and each link must be root's alone, which ends in what filepath.EvalSymlinks
// says without leaving out who else could have said something different.
func followLinks(name string) (string, error) {
	at, rest := "/", strings.Split(name, "/")
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		if part == "" || part == "." {
			continue
		}
		if err := checkDirectory(at); err != nil {
			return "", err
		}
		next := filepath.Join(at, part)
		var st unix.Stat_t
		if err := unix.Lstat(next, &st); err != nil {
			return "", fmt.Errorf("cannot look at %s: %w: install its package or correct the first line", next, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("more than %d symbolic links: correct them", maxLinks)
		}
		if st.Uid != 0 {
			return "", fmt.Errorf("symbolic link %s belongs to uid %d, who could change it: chown -h root: %s", next, st.Uid, shellQuote(next))
		}
		target, err := os.Readlink(next)
		if err != nil {
			return "", fmt.Errorf("cannot read symbolic link %s: %w", next, err)
		}
		if path.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at, nil
}

// checkDirectory applies the rule for ancestors to one directory.
func checkDirectory(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("cannot look at directory %s: %w", dir, err)
	}
	return ancestorFault(dir, st)
}

// readInterpreter returns what the first line of a script names, execve(2), and
// whether the file is a script at all.
func readInterpreter(c candidate) (name string, script bool, err error) {
	f, err := os.Open(c.path)
	if err != nil {
		return "", false, fmt.Errorf("cannot look into %s %s: %w", c.what, c.path, err)
	}
	defer f.Close()
	start := make([]byte, interpreterLine)
	n, err := io.ReadFull(f, start)
	if n < 2 || err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", false, fmt.Errorf("cannot look into %s %s: %w", c.what, c.path, err)
	}
	name, script, err = interpreter(start[:n])
	if err != nil {
		return "", false, fmt.Errorf("%s %s: %w", c.what, c.path, err)
	}
	return name, script, nil
}

// interpreter reads the start of a file as the kernel does (fs/binfmt_script.c):
// blanks, the path, and then a blank or the end of the line.
func interpreter(start []byte) (name string, script bool, err error) {
	text, script := strings.CutPrefix(string(start), "#!")
	if !script {
		return "", false, nil
	}
	line, _, whole := strings.Cut(text, "\n")
	name, _, more := strings.Cut(strings.TrimLeft(line, " \t"), " ")
	name, _, tab := strings.Cut(name, "\t")
	switch {
	case !whole && !more && !tab && len(start) == interpreterLine:
		return "", true, fmt.Errorf("its first line has more than %d bytes: shorten it", interpreterLine)
	case name == "":
		return "", true, errors.New("its first line names no interpreter: start it with #!/bin/sh or the like")
	case strings.ContainsAny(name, "\x00\r"):
		return "", true, fmt.Errorf("the interpreter %q in its first line cannot be right: take out NUL bytes and carriage returns (DOS line ends)", name)
	}
	return name, true, nil
}
