package launch

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func regular(uid, mode uint32) unix.Stat_t {
	return unix.Stat_t{Uid: uid, Mode: unix.S_IFREG | mode}
}

func directory(uid, mode uint32) unix.Stat_t {
	return unix.Stat_t{Uid: uid, Mode: unix.S_IFDIR | mode}
}

func TestF27_BinaryMode(t *testing.T) {
	cases := []struct {
		name string
		st   unix.Stat_t
		word string // "": allowed
	}{
		{"as packaged", regular(0, 0o755), ""},
		{"for one group", regular(0, 0o750), ""},
		{"read by nobody", regular(0, 0o711), ""},
		{"writable by all", regular(0, 0o757), "chmod go-w"},
		{"writable by its group", regular(0, 0o775), "chmod go-w"},
		{"setuid", regular(0, 0o4755), "setuid"},
		{"setgid", regular(0, 0o2755), "setuid or setgid"},
		{"not executable", regular(0, 0o644), "not executable"},
		{"the service's own", regular(postgres.UID, 0o755), "the user it would run as"},
		{"somebody's", regular(1000, 0o755), "uid 1000"},
		{"directory", directory(0, 0o755), "not a regular file"},
		{"device", unix.Stat_t{Mode: unix.S_IFCHR | 0o755}, "not a regular file"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := binaryFault(candidate{what: "program", path: "/opt/x"}, c.st, postgres)
			if c.word == "" {
				wantNone(t, err)
				return
			}
			wantError(t, err, c.word, "/opt/x")
		})
	}
}

func TestF27_Ancestors(t *testing.T) {
	wantNone(t, ancestorFault("/usr", directory(0, 0o755)))
	wantNone(t, ancestorFault("/usr", directory(0, 0o711)))
	wantError(t, ancestorFault("/opt", directory(0, 0o777)), "/opt", "chmod go-w")
	wantError(t, ancestorFault("/opt", directory(0, 0o775)), "/opt", "chmod go-w")
	wantError(t, ancestorFault("/tmp", directory(0, 0o1777)), "/tmp")
	wantError(t, ancestorFault("/var/lib/postgresql", directory(101, 0o755)), "uid 101", "chown root:")
}

func TestF27_FileCapabilities(t *testing.T) {
	wantNone(t, fileCapabilityFault(candidate{what: "program", path: "/x"}, unix.ENODATA))
	wantNone(t, fileCapabilityFault(candidate{what: "program", path: "/x"}, unix.ENOTSUP))
	wantError(t, fileCapabilityFault(candidate{what: "program", path: "/x"}, nil), "setcap -r /x")
	wantError(t, fileCapabilityFault(candidate{what: "program", path: "/x"}, unix.EIO), "cannot read")
}

func TestF27_BinaryPath(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "cat")
	target := realPath(t, "cat")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	dangling := filepath.Join(dir, "dangling")
	if err := os.Symlink(filepath.Join(dir, "gone"), dangling); err != nil {
		t.Fatal(err)
	}
	check := func(path string) error {
		return checkBinary(context.Background(), Spec{Service: "pg", Command: []string{path}}, postgres)
	}
	wantNone(t, check(target))
	wantError(t, check("cat"), "absolute")
	wantError(t, check("/usr/bin/../bin/cat"), "absolute")
	wantError(t, check(filepath.Join(dir, "missing")), "does not exist", "services.pg.command")
	wantError(t, check(dangling), "does not exist")
	wantError(t, check(link), "symbolic link", "name "+target)
}

func TestF28_DataDirMode(t *testing.T) {
	for _, mode := range []uint32{0o700, 0o750, 0o2750} {
		wantNone(t, dataDirFault("/data", directory(postgres.UID, mode), postgres))
	}
	for _, mode := range []uint32{0o755, 0o770, 0o701, 0o500, 0o777, 0o740, 0} {
		wantError(t, dataDirFault("/data", directory(postgres.UID, mode), postgres), "/data", "0700 or 0750", "chmod 0700 /data")
	}
	wantError(t, dataDirFault("/data", directory(0, 0o700), postgres), "uid 0", "chown -R postgres: /data")
	wantError(t, dataDirFault("/data", directory(0, 0o755), postgres), "chown", "chmod")
	wantError(t, dataDirFault("/data", regular(postgres.UID, 0o700), postgres), "not a directory")
}

func TestF28_DataDir(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	self := Identity{User: "tester", UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	wantNone(t, checkDataDir(ctx, "", self))
	wantNone(t, checkDataDir(ctx, dir, self))
	wantError(t, checkDataDir(ctx, "main", self), "absolute")
	wantError(t, checkDataDir(ctx, filepath.Join(dir, "a b"), self), "does not exist", "install -d -m 0700 -o tester", "a b'")
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	wantError(t, checkDataDir(ctx, dir, self), "chmod 0700")
	st, err := os.Stat(dir)
	if err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("the check changed the mode to %v: %v", st.Mode(), err)
	}
}
