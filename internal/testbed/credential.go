package testbed

import (
	"fmt"
	"os/user"
	"strconv"
	"syscall"
)

// ids returns the numeric ids of a user.
func ids(u *user.User) (uid, gid int, err error) {
	if uid, err = strconv.Atoi(u.Uid); err == nil {
		gid, err = strconv.Atoi(u.Gid)
	}
	if err != nil {
		err = fmt.Errorf("cannot read the ids of user %s: %w", u.Username, err)
	}
	return uid, gid, err
}

// credential is the user with all groups it is in, as a login has them.
func credential(u *user.User) (*syscall.Credential, error) {
	uid, gid, err := ids(u)
	if err != nil {
		return nil, err
	}
	list, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("cannot list the groups of user %s: %w", u.Username, err)
	}
	c := &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	for _, text := range list {
		g, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("cannot read group %s of user %s: %w", text, u.Username, err)
		}
		c.Groups = append(c.Groups, uint32(g))
	}
	return c, nil
}

// SupplementaryGroups names the groups that a user is in besides its primary one: Debian puts postgres into ssl-cert.
func SupplementaryGroups(u *user.User) ([]string, error) {
	list, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("cannot list the groups of user %s: %w", u.Username, err)
	}
	var names []string
	for _, gid := range list {
		if gid == u.Gid {
			continue
		}
		g, err := user.LookupGroupId(gid)
		if err != nil {
			return nil, fmt.Errorf("cannot name a group of user %s: %w", u.Username, err)
		}
		names = append(names, g.Name)
	}
	return names, nil
}
