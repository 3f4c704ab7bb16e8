package launch

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/pghardend/pghardend/pkg/sandbox"
)

// group is one group of the system.
type group struct {
	name string
	gid  uint32
}

// privileged are groups whose members are root by another name, or see what is
// not theirs. None may be a service's.
var privileged = map[string]string{
	"root":            "owns system files",
	"sudo":            "its members become root",
	"wheel":           "its members become root",
	"admin":           "its members become root",
	"docker":          "its members become root through the container daemon",
	"lxd":             "its members become root through the container daemon",
	"incus-admin":     "its members become root through the container daemon",
	"libvirt":         "its members become root through virtual machines",
	"staff":           "writes to /usr/local, which is in root's PATH",
	"disk":            "reads and writes raw disks",
	"shadow":          "reads password hashes",
	"kmem":            "reads kernel memory",
	"adm":             "reads the logs of the whole system",
	"systemd-journal": "reads the logs of the whole system",
}

// nobodyID is (uid_t)-1, which setresuid(2) takes for "leave it": a service
// with it would stay root.
const nobodyID = math.MaxUint32

// resolveUser finds the user, without its groups.
func resolveUser(ctx context.Context, spec Spec) (Identity, error) {
	if err := ctx.Err(); err != nil {
		return Identity{}, err
	}
	u, err := lookupUser(spec.User)
	if err != nil {
		return Identity{}, userError(spec, err)
	}
	uid, err := parseID(u.Uid)
	if err != nil {
		return Identity{}, fmt.Errorf("user %s: uid: %w", u.Username, err)
	}
	gid, err := parseID(u.Gid)
	if err != nil {
		return Identity{}, fmt.Errorf("user %s: gid: %w", u.Username, err)
	}
	id := Identity{User: u.Username, Home: u.HomeDir, UID: uid, GID: gid}
	return id, userFault(id)
}

// lookupUser takes digits for a uid; such a name would not be a portable one.
func lookupUser(name string) (*user.User, error) {
	if _, err := parseID(name); err == nil {
		return user.LookupId(name)
	}
	return user.Lookup(name)
}

// userError tells "there is none" from "nobody could say".
func userError(spec Spec, err error) error {
	var noName user.UnknownUserError
	var noID user.UnknownUserIdError
	switch {
	case errors.As(err, &noName):
		return fmt.Errorf("user %q does not exist: create it (useradd --system --user-group --shell /usr/sbin/nologin %s) or correct services.%s.user",
			spec.User, shellQuote(spec.User), spec.Service)
	case errors.As(err, &noID):
		return fmt.Errorf("uid %s has no entry in passwd, so its group is not known: create it (useradd --system --user-group --uid %s NAME) or correct services.%s.user",
			spec.User, spec.User, spec.Service)
	}
	return fmt.Errorf("cannot look up user %q: %w", spec.User, err)
}

// userFault refuses identities that are no less than root.
func userFault(id Identity) error {
	switch {
	case id.UID == 0:
		return fmt.Errorf("user %s has uid 0: a service never runs as root: use a user of its own", id.User)
	case id.GID == 0:
		return fmt.Errorf("user %s has gid 0 as its primary group: a service never runs with root's group: change it (usermod -g GROUP %s)",
			id.User, shellQuote(id.User))
	case id.UID == nobodyID || id.GID == nobodyID:
		return fmt.Errorf("user %s has the reserved id %d: use another", id.User, uint32(nobodyID))
	}
	return nil
}

// resolveGroups finds the groups of the user and of the Spec and decides.
func resolveGroups(ctx context.Context, spec Spec, id Identity) ([]uint32, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	listed, err := listedGroups(spec)
	if err != nil {
		return nil, err
	}
	member, err := memberGroups(id)
	if err != nil {
		return nil, fmt.Errorf("cannot look up the groups of user %s: %w", id.User, err)
	}
	return supplementary(id, listed), groupFault(id, member, listed)
}

// listedGroups resolves spec.Groups.
func listedGroups(spec Spec) ([]group, error) {
	var listed []group
	for _, name := range spec.Groups {
		lookup := user.LookupGroup
		if _, err := parseID(name); err == nil {
			lookup = user.LookupGroupId
		}
		g, err := lookup(name)
		if err != nil {
			return nil, fmt.Errorf("group %q of services.%s.groups: %w: create it (groupadd --system) or take it out of groups", name, spec.Service, err)
		}
		gid, err := parseID(g.Gid)
		if err != nil {
			return nil, fmt.Errorf("group %s: gid: %w", g.Name, err)
		}
		listed = append(listed, group{g.Name, gid})
	}
	return listed, nil
}

// memberGroups has all groups the system puts the user in, the primary one too.
func memberGroups(id Identity) ([]group, error) {
	u := &user.User{Username: id.User, Gid: strconv.FormatUint(uint64(id.GID), 10)}
	ids, err := u.GroupIds()
	if err != nil {
		return nil, err
	}
	if !slices.Contains(ids, u.Gid) {
		ids = append(ids, u.Gid)
	}
	member := make([]group, 0, len(ids))
	for _, text := range ids {
		gid, err := parseID(text)
		if err != nil {
			return nil, err
		}
		name := text // a number without a name is a group all the same
		if g, err := user.LookupGroupId(text); err == nil {
			name = g.Name
		}
		member = append(member, group{name, gid})
	}
	return member, nil
}

// supplementary is what a process with these listed groups has: each once,
// sorted, without the primary group.
func supplementary(id Identity, listed []group) []uint32 {
	var gids []uint32
	for _, g := range listed {
		if g.gid != id.GID && !slices.Contains(gids, g.gid) {
			gids = append(gids, g.gid)
		}
	}
	slices.Sort(gids)
	return gids
}

// groupFault requires the user to be in the listed groups and, beside its
// primary one, in no others. What it is in but the service would not get is
// refused all the same: cron, sudo or a login would give it back to whoever owns
// the user.
func groupFault(id Identity, member, listed []group) error {
	var errs []error
	for _, g := range listed {
		if why := privilege(g); why != "" {
			errs = append(errs, fmt.Errorf("listed group %s %s: take it out of groups", g.name, why))
		} else if !hasGroup(member, g.gid) {
			errs = append(errs, fmt.Errorf("user %s is not in the listed group %s: add it (gpasswd -a %s %s) or take it out of groups",
				id.User, g.name, shellQuote(id.User), shellQuote(g.name)))
		}
	}
	for _, g := range member {
		if why := privilege(g); why != "" {
			errs = append(errs, fmt.Errorf("user %s is in group %s, which %s: take the user out of it (%s)", id.User, g.name, why, leave(id, g)))
		} else if g.gid != id.GID && !hasGroup(listed, g.gid) {
			errs = append(errs, fmt.Errorf("user %s is in group %s, which the service does not list: add it to its groups (groups: [%s]) or take the user out of it (%s)",
				id.User, g.name, g.name, leave(id, g)))
		}
	}
	return errors.Join(errs...)
}

// privilege says what is wrong with a group, if anything.
func privilege(g group) string {
	if g.gid == 0 {
		return privileged["root"]
	}
	return privileged[g.name]
}

// leave is the command that takes the user out of g.
func leave(id Identity, g group) string {
	if g.gid == id.GID {
		return "usermod -g GROUP " + shellQuote(id.User)
	}
	return "gpasswd -d " + shellQuote(id.User) + " " + shellQuote(g.name)
}

func hasGroup(groups []group, gid uint32) bool {
	return slices.ContainsFunc(groups, func(g group) bool { return g.gid == gid })
}

func parseID(text string) (uint32, error) {
	v, err := strconv.ParseUint(text, 10, 32)
	return uint32(v), err
}

// shellQuote makes text one word of a command line to copy.
func shellQuote(text string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@%", r)
	}
	if text != "" && !strings.ContainsFunc(text, func(r rune) bool { return !plain(r) }) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// RunsAs is an error if a process does not run as the service's user, or no more.
func RunsAs(ctx context.Context, spec Spec, pid int) error {
	id, err := resolveUser(ctx, spec)
	if err != nil {
		return err
	}
	status, err := sandbox.ReadStatus(ctx, pid)
	if err != nil {
		return err
	}
	for _, uid := range status.UIDs {
		if int(uid) != int(id.UID) || uid == 0 {
			return fmt.Errorf("process %d runs as uid %d and not as %s", pid, uid, spec.User)
		}
	}
	return nil
}
