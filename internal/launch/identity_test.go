package launch

import (
	"context"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var postgres = Identity{User: "postgres", Home: "/var/lib/postgresql", UID: 101, GID: 104}

func TestF26_UserRefused(t *testing.T) {
	ctx := context.Background()
	cases := []struct {
		name, user string
		words      []string
	}{
		{"missing name", "nosuchuser", []string{`"nosuchuser" does not exist`, "useradd --system", "services.pg.user"}},
		{"missing number", "4000000001", []string{"4000000001 has no entry", "useradd"}},
		{"root", "root", []string{"uid 0"}},
		{"root by number", "0", []string{"uid 0"}},
		{"root by another spelling", "000", []string{"uid 0"}},
		{"minus one", "4294967295", []string{"4294967295"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := resolveUser(ctx, Spec{Service: "pg", User: c.user})
			wantError(t, err, c.words...)
		})
	}
	for _, user := range []string{"nobody", "65534"} {
		id, err := resolveUser(ctx, Spec{Service: "pg", User: user})
		wantNone(t, err)
		if id.User != "nobody" || id.UID != 65534 || id.GID != 65534 || id.Home == "" {
			t.Errorf("%s is %+v", user, id)
		}
	}
}

func TestF26_ReservedIDs(t *testing.T) {
	for name, change := range map[string]func(*Identity){
		"uid 0":      func(id *Identity) { id.UID = 0 },
		"gid 0":      func(id *Identity) { id.GID = 0 },
		"uid -1":     func(id *Identity) { id.UID = nobodyID },
		"gid -1":     func(id *Identity) { id.GID = nobodyID },
		"no trouble": func(*Identity) {},
	} {
		id := postgres
		change(&id)
		if err := userFault(id); (err == nil) != (name == "no trouble") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestF26_Groups(t *testing.T) {
	primary, ssl, backup := group{"postgres", 104}, group{"ssl-cert", 103}, group{"backup", 34}
	sudo, docker, root := group{"sudo", 27}, group{"docker", 999}, group{"toor", 0}
	cases := []struct {
		name           string
		member, listed []group
		words          []string // none: allowed
	}{
		{"only its own", []group{primary}, nil, nil},
		{"listed", []group{primary, ssl}, []group{ssl}, nil},
		{"primary listed", []group{primary}, []group{primary}, nil},
		{"stray", []group{primary, ssl}, nil, []string{"ssl-cert", "groups: [ssl-cert]", "gpasswd -d postgres ssl-cert"}},
		{"two strays are both named", []group{primary, ssl, backup}, nil, []string{"ssl-cert", "backup"}},
		{"one of two listed", []group{primary, ssl, backup}, []group{ssl}, []string{"backup"}},
		{"listed, not a member", []group{primary}, []group{ssl}, []string{"not in", "gpasswd -a postgres ssl-cert"}},
		{"privileged and listed", []group{primary, docker}, []group{docker}, []string{"docker", "root", "take it out of groups", "gpasswd -d postgres docker"}},
		{"privileged and stray", []group{primary, sudo}, nil, []string{"sudo", "gpasswd -d postgres sudo"}},
		{"root's by another name", []group{primary, root}, []group{root}, []string{"toor"}},
		{"privileged primary", []group{{"disk", 104}}, nil, []string{"disk", "usermod -g"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := groupFault(postgres, c.member, c.listed)
			if len(c.words) == 0 {
				wantNone(t, err)
				return
			}
			wantError(t, err, c.words...)
		})
	}
}

// An operator who follows a message must not end up with a privileged service.
func TestF26_PrivilegedGroupIsNeverAdvised(t *testing.T) {
	err := groupFault(postgres, []group{{"postgres", 104}}, []group{{"sudo", 27}})
	wantError(t, err, "take it out of groups")
	if strings.Contains(err.Error(), "gpasswd -a") {
		t.Errorf("advises to join sudo: %v", err)
	}
}

func TestSupplementary(t *testing.T) {
	got := supplementary(postgres, []group{{"z", 300}, {"postgres", 104}, {"a", 20}, {"also-z", 300}})
	if !slices.Equal(got, []uint32{20, 300}) {
		t.Errorf("got %v", got)
	}
}

func TestF26_ListedGroupMissing(t *testing.T) {
	_, err := resolveGroups(context.Background(), Spec{Service: "pg", Groups: []string{"nosuchgroup"}}, postgres)
	wantError(t, err, "nosuchgroup", "services.pg.groups", "groupadd")
}

// The lookup itself, with a user every system has and who is in nothing else.
func TestMemberGroups(t *testing.T) {
	nobody := Identity{User: "nobody", UID: 65534, GID: 65534}
	member, err := memberGroups(nobody)
	wantNone(t, err)
	if !hasGroup(member, 65534) {
		t.Errorf("no primary group in %v", member)
	}
	gids, err := resolveGroups(context.Background(), Spec{}, nobody)
	wantNone(t, err)
	if len(gids) != 0 {
		t.Errorf("supplementary groups %v", gids)
	}
}

func TestShellQuote(t *testing.T) {
	for in, want := range map[string]string{
		"/var/lib/pg": "/var/lib/pg",
		"":            "''",
		"a b":         "'a b'",
		"it's; rm":    `'it'\''s; rm'`,
		"$(id)":       "'$(id)'",
	} {
		if got := shellQuote(in); got != want {
			t.Errorf("%q became %s, want %s", in, got, want)
		}
	}
}

func TestRunsAs(t *testing.T) {
	// Never root, and never this process, whoever runs the tests.
	for _, user := range []string{"nobody", "root", "no-such-user"} {
		if err := RunsAs(t.Context(), Spec{User: user}, os.Getpid()); err == nil && os.Getuid() == 0 {
			t.Errorf("this process of root runs as %s", user)
		}
	}
	if err := RunsAs(t.Context(), Spec{User: strconv.Itoa(os.Getuid())}, os.Getpid()); (err == nil) != (os.Getuid() != 0) {
		t.Errorf("uid %d: %v", os.Getuid(), err)
	}
}
