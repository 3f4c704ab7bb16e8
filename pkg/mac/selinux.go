package mac

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"
)

// SELinux asks the kernel by way of selinuxfs, and the host's configuration. It has
// no state, and is safe for concurrent use.
type SELinux struct {
	dir       string // of selinuxfs
	unmounted func() (bool, error)
	ask       func(file, request string) (reply string, err error) // a transaction
	self      func() (string, error)                               // label of the calling thread
	label     func(path string) (string, error)
}

// selinuxfs is where everybody mounts it since Linux 3.0.
const selinuxfs = "/sys/fs/selinux"

// HostSELinux is that of this host.
func HostSELinux() *SELinux {
	return &SELinux{
		dir: selinuxfs,
		unmounted: func() (bool, error) {
			var st unix.Statfs_t
			err := unix.Statfs(selinuxfs, &st)
			if errors.Is(err, os.ErrPermission) {
				return false, err
			}
			return err != nil || st.Type != unix.SELINUX_MAGIC, nil //nolint:nilerr // there is none
		},
		ask: transaction, self: selinux.CurrentLabel, label: readFileLabel,
	}
}

// transaction writes a request and reads the kernel's answer from the same open
// file, simple_transaction_get in fs/libfs.c.
func transaction(file, request string) (string, error) {
	fd, err := unix.Open(file, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }() // all was said
	if _, err := unix.Write(fd, []byte(request)); err != nil {
		return "", err
	}
	reply := make([]byte, 4096) // SIMPLE_TRANSACTION_LIMIT
	n, err := unix.Read(fd, reply)
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(reply[:n]), "\x00\n"), nil
}

// Mode is the state of SELinux as a whole.
type Mode struct {
	Enabled   bool   // there is a policy in force, be it enforcing or not
	Enforcing bool   // what is not allowed is denied
	Loads     uint32 // counts the loads of policies and changes of booleans since boot
}

// Mode reads the mode. An error that is os.ErrPermission means that SELinux is in force and lets this process not even ask: its own domain may be gone
// from the policy.
func (s *SELinux) Mode(ctx context.Context) (Mode, error) {
	if err := ctx.Err(); err != nil {
		return Mode{}, err
	}
	none, err := s.unmounted()
	if none {
		return Mode{}, nil
	}
	if err != nil {
		return Mode{}, fmt.Errorf("cannot ask for the mode of SELinux: %w", err)
	}
	page, err := os.ReadFile(filepath.Join(s.dir, "status"))
	if err != nil {
		return Mode{}, fmt.Errorf("cannot read the mode of SELinux: %w", err)
	}
	return ParseStatus(page)
}

// StatusSize is how much of selinuxfs's file status ParseStatus needs.
const StatusSize = 20

// ParseStatus reads struct selinux_kernel_status (security/selinux/include/security.h):
// version, sequence, enforcing, policyload, deny_unknown, each 32 bits in the host's order.
func ParseStatus(page []byte) (Mode, error) {
	if len(page) < StatusSize {
		return Mode{}, fmt.Errorf("the status of SELinux has %d bytes, not %d", len(page), StatusSize)
	}
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(page[4*i:]) }
	if word(0) != 1 {
		return Mode{}, fmt.Errorf("the status of SELinux is of version %d, which this program does not know", word(0))
	}
	return Mode{Enabled: true, Enforcing: word(2) != 0, Loads: word(3)}, nil
}

// StatusFile is the file that ParseStatus reads. The kernel changes it in place.
func (s *SELinux) StatusFile() string { return filepath.Join(s.dir, "status") }

// HostEnforces says whether the host's own configuration asks for enforcing mode
// (/etc/selinux/config).
func HostEnforces(ctx context.Context) bool {
	return ctx.Err() == nil && selinux.DefaultEnforceMode() == selinux.Enforcing
}

// Enforce switches to enforcing mode. Needs the permission setenforce.
func (s *SELinux) Enforce(ctx context.Context) error {
	err := ctx.Err()
	if err == nil {
		err = os.WriteFile(filepath.Join(s.dir, "enforce"), []byte("1"), 0)
	}
	if err != nil {
		return fmt.Errorf("cannot make SELinux enforcing: %w%s", err, deniedHint(err, "security setenforce"))
	}
	return nil
}

func deniedHint(err error, permission string) string {
	if errors.Is(err, os.ErrPermission) {
		return ": the policy does not give this process the permission " + permission + ", see `ausearch -m avc`"
	}
	return ""
}

// Known says whether the policy knows a context: its user, role, type and level, and
// that they go together.
func (s *SELinux) Known(ctx context.Context, c Context) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	_, err := s.ask(filepath.Join(s.dir, "context"), c.String())
	if errors.Is(err, unix.EINVAL) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot ask SELinux about %s: %w%s", c, err, deniedHint(err, "security check_context"))
	}
	return true, nil
}

// Decision is what the policy lets a source do to a target.
type Decision struct {
	Missing    []string // of the permissions that were asked about
	Permissive bool     // the source's domain is: nothing is denied to it, whatever is missing
}

// flagPermissive is AVD_FLAGS_PERMISSIVE, security/selinux/include/security.h.
const flagPermissive = 1

// Decide asks the policy. The answer takes constraints into account, and leaves out
// that the whole may be permissive.
func (s *SELinux) Decide(ctx context.Context, source, target Context, class string, permissions ...string) (Decision, error) {
	if err := ctx.Err(); err != nil {
		return Decision{}, err
	}
	index, err := s.number("class", class, "index")
	if err != nil {
		return Decision{}, err
	}
	reply, err := s.ask(filepath.Join(s.dir, "access"), fmt.Sprintf("%s %s %d", source, target, index))
	if err != nil {
		return Decision{}, fmt.Errorf("cannot ask SELinux what %s may do to %s: %w%s", source, target, err, deniedHint(err, "security compute_av"))
	}
	allowed, flags, err := parseVector(reply)
	if err != nil {
		return Decision{}, err
	}
	a := Decision{Permissive: flags&flagPermissive != 0}
	for _, name := range permissions {
		bit, err := s.number("class", class, "perms", name)
		if err != nil {
			return Decision{}, err
		}
		if bit < 1 || bit > 32 || allowed&(1<<(bit-1)) == 0 {
			a.Missing = append(a.Missing, name)
		}
	}
	return a, nil
}

// parseVector reads the answer of the file access: allowed, decided, auditallow,
// auditdeny in hex, a sequence number, flags in hex (sel_write_access).
func parseVector(reply string) (allowed, flags uint64, err error) {
	words := strings.Fields(reply)
	if len(words) != 6 {
		return 0, 0, fmt.Errorf("SELinux answers %q, which are not 6 numbers", reply)
	}
	if allowed, err = strconv.ParseUint(words[0], 16, 32); err == nil {
		flags, err = strconv.ParseUint(words[5], 16, 32)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("SELinux answers %q: %w", reply, err)
	}
	return allowed, flags, nil
}

// number reads a file of selinuxfs that holds one.
func (s *SELinux) number(path ...string) (int, error) {
	file := filepath.Join(append([]string{s.dir}, path...)...)
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("the SELinux policy knows nothing of %s: install a newer one", strings.Join(path, " "))
	}
	if err != nil {
		return 0, fmt.Errorf("cannot read the SELinux policy's %s: %w", strings.Join(path, " "), err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	return n, nil
}

// Boolean is the value in force of a boolean of the policy.
func (s *SELinux) Boolean(ctx context.Context, name string) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	data, err := os.ReadFile(filepath.Join(s.dir, "booleans", name))
	if errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("the SELinux policy has no boolean %s: %w", name, os.ErrNotExist)
	}
	if err != nil {
		return false, fmt.Errorf("cannot read the SELinux boolean %s: %w", name, err)
	}
	return strings.HasPrefix(string(data), "1"), nil // in force, then pending
}

// SetBooleans puts booleans in force until the next boot. Needs the permission setbool.
func (s *SELinux) SetBooleans(ctx context.Context, values map[string]bool) error {
	for name, on := range values {
		if err := s.write(ctx, filepath.Join("booleans", name), on); err != nil {
			return fmt.Errorf("cannot set the SELinux boolean %s: %w%s", name, err, deniedHint(err, "security setbool"))
		}
	}
	if err := s.write(ctx, "commit_pending_bools", true); err != nil {
		return fmt.Errorf("cannot put SELinux booleans in force: %w%s", err, deniedHint(err, "security setbool"))
	}
	return nil
}

func (s *SELinux) write(ctx context.Context, file string, on bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	text := "0"
	if on {
		text = "1"
	}
	return os.WriteFile(filepath.Join(s.dir, file), []byte(text), 0)
}
