package mac

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// labelAttribute holds the label of a file, selinux(8).
const labelAttribute = "security.selinux"

// maxLabel is more than any label has.
const maxLabel = 4096

// readFileLabel does not follow a link.
func readFileLabel(path string) (string, error) {
	buf := make([]byte, maxLabel)
	n, err := unix.Lgetxattr(path, labelAttribute, buf)
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(buf[:n]), "\x00"), nil
}

// ErrNoLabel means that a file has no label, or lies where there are none.
var ErrNoLabel = errors.New("it has no SELinux label")

// FileLabel is the label of a file; of a link, its own. It is ErrNoLabel if there is
// none.
func FileLabel(ctx context.Context, path string) (Context, error) {
	if err := ctx.Err(); err != nil {
		return Context{}, err
	}
	text, err := readFileLabel(path)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return Context{}, ErrNoLabel
	}
	if err != nil {
		return Context{}, &os.PathError{Op: "lgetxattr", Path: path, Err: err}
	}
	return ParseContext(text)
}

// ErrNotOurs is the error for a file that somebody may have put there in order to
// have another one relabelled.
var ErrNotOurs = errors.New("it is a link, has several names, or is neither a file nor a directory")

// Relabel gives a file or directory a label. It is opened by its path without
// following a link at the end, and must have that one name if it is a file: who may
// write to the directory could have moved anything there. Needs the permissions
// relabelfrom and relabelto, and /proc; none to read it, which a label that is wrong
// may well not give.
func Relabel(ctx context.Context, path string, label Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot label %s: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }() // the attribute is written
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("cannot label %s: %w", path, err)
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && (kind != unix.S_IFREG || st.Nlink != 1) {
		return fmt.Errorf("cannot label %s: %w", path, ErrNotOurs)
	}
	// The descriptor of O_PATH by its name, since fsetxattr(2) takes none.
	if err := unix.Setxattr(fmt.Sprintf("/proc/self/fd/%d", fd), labelAttribute, []byte(label.String()+"\x00"), 0); err != nil {
		return fmt.Errorf("cannot label %s as %s: %w%s", path, label, err, deniedHint(err, "relabelfrom or relabelto"))
	}
	return nil
}

// HasLabel says whether a file has a label. It is quick, and for files that are known
// to be there: an error is a no.
func HasLabel(ctx context.Context, path, label string) bool {
	if ctx.Err() != nil {
		return false
	}
	var buf [256]byte
	n, err := unix.Lgetxattr(path, labelAttribute, buf[:])
	return err == nil && n > 0 && strings.TrimSuffix(string(buf[:n]), "\x00") == label
}
