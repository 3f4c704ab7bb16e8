package drill

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// commandAttempts: settings of A39 whose value is a shell command.
func commandAttempts() []attempt {
	const fix = "take shells out of helpers; landlock.mode: required"
	return []attempt{
		{row: "A39", name: "ssl_passphrase_command", does: "ALTER SYSTEM SET ssl_passphrase_command, with a key that has a passphrase, and reload", base: asUser, sql: passphraseCommand, fix: fix},
		{row: "A39", name: "restore_command", does: "ALTER SYSTEM SET restore_command, recovery.signal, and a crash", base: asUser, sql: restoreCommand, fix: fix},
	}
}

// alter sets settings in postgresql.auto.conf and has them read again; what it returns takes them back.
func (c *cluster) alter(ctx context.Context, settings [][2]string) (undo func(), err error) {
	undo = func() {
		for _, s := range settings {
			_, _ = c.query(ctx, "ALTER SYSTEM RESET "+s[0]) // the next start would use it
		}
		_, _ = c.query(ctx, "SELECT pg_reload_conf()")
	}
	for _, s := range settings {
		if _, err := c.query(ctx, "ALTER SYSTEM SET "+s[0]+" = '"+s[1]+"'"); err != nil {
			return undo, err
		}
	}
	_, err = c.query(ctx, "SELECT pg_reload_conf()")
	return undo, err
}

// seen waits until a file is there, which only the command makes, or the server's log says that it was not run.
func (b *box) seen(ctx context.Context, file, step string, blocked func(log string) bool) outcome {
	deadline := time.After(archiveTime)
	for {
		if _, err := os.Stat(file); err == nil {
			return reached
		}
		if blocked(b.cluster.log.String()) {
			return outcome{Step: "execve", Note: "the shell was not executed"}
		}
		select {
		case <-ctx.Done():
			return outcome{Absent: "interrupted"}
		case <-deadline:
			return outcome{Step: step, Errno: errnoName(unix.ETIMEDOUT)}
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// passphraseCommand has the postmaster itself run a shell.
func passphraseCommand(ctx context.Context, b *box) outcome {
	cert, key, err := b.lockedKey()
	if err != nil {
		return absent("no key with a passphrase can be made: %v", err)
	}
	w := word()
	owned := filepath.Join(b.data, w)
	undo, err := b.cluster.alter(ctx, [][2]string{
		{"ssl_cert_file", cert}, {"ssl_key_file", key}, {"ssl_passphrase_command_supports_reload", "on"},
		{"ssl_passphrase_command", "echo x > " + owned}, {"ssl", "on"},
	})
	defer undo()
	if err != nil {
		return sqlOutcome("set", err)
	}
	return b.seen(ctx, owned, "reload", func(log string) bool {
		// popen(3) fails, or the shell of an older C library's does, with 127.
		return strings.Contains(log, `could not execute command "echo x > `+owned) || strings.Contains(log, `command "echo x > `+owned+`" failed`)
	})
}

// lockedKey makes a certificate and a key that has a passphrase, the server's to read.
func (b *box) lockedKey() (certFile, keyFile string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return "", "", err
	}
	plain, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return "", "", err
	}
	locked, err := x509.EncryptPEMBlock(rand.Reader, "EC PRIVATE KEY", plain, []byte(word()), x509.PEMCipherAES256) //nolint:staticcheck // a throwaway; there is no other way in the library
	if err != nil {
		return "", "", err
	}
	certFile, keyFile = filepath.Join(b.data, "drill.crt"), filepath.Join(b.data, "drill.key")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert}, keyFile: locked} {
		if err := errors.Join(writeFile(file, pem.EncodeToMemory(block), 0o600), os.Chown(file, b.UID, b.UID)); err != nil {
			return "", "", err
		}
	}
	return certFile, keyFile, nil
}

// restoreCommand has the startup process run a shell, in a recovery that the attacker asks for and a
// crash brings about. A superuser can crash a backend; here one is ended.
func restoreCommand(ctx context.Context, b *box) outcome {
	owned, signal := filepath.Join(b.data, word()), filepath.Join(b.data, "recovery.signal")
	if _, err := b.cluster.query(ctx, "ALTER SYSTEM SET restore_command = 'echo x > "+owned+"'"); err != nil {
		return sqlOutcome("set", err)
	}
	// What it does not find ends the recovery, what it may not execute the server.
	o := b.recovery(ctx, owned, signal)
	if err := b.cluster.startOver(ctx, b, signal); err != nil {
		return absent("the scratch server does not come back: %v", err)
	}
	return o
}

func (b *box) recovery(ctx context.Context, owned, signal string) outcome {
	text, err := b.cluster.query(ctx, "SELECT pg_reload_conf();\nCOPY (SELECT 1) TO '"+signal+"';\nSELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
	if err != nil {
		return sqlOutcome("signal", err)
	}
	pid, err := strconv.Atoi(text[strings.LastIndex(text, "\n")+1:])
	if err != nil {
		return absent("there is no checkpointer: %q", text)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return absent("nothing can be crashed: %v", err)
	}
	return b.seen(ctx, owned, "recovery", func(log string) bool {
		return strings.Contains(log, "from archive: command not found") // the C library's system(3) says 127
	})
}

// startOver starts the server once more with the same layers, and without what asks for a recovery.
func (c *cluster) startOver(ctx context.Context, b *box, signal string) error {
	c.stop()
	if err := os.Remove(signal); err != nil && !errors.Is(err, os.ErrNotExist) { // the server removes it at the end
		return err
	}
	auto := filepath.Join(b.data, "postgresql.auto.conf")
	text, err := os.ReadFile(auto)
	if err != nil {
		return err
	}
	var rest strings.Builder
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "restore_command") {
			rest.WriteString(line)
		}
	}
	// Owner and mode stay.
	if err := os.WriteFile(auto, []byte(rest.String()), 0o600); err != nil {
		return err
	}
	return c.start(ctx, b, c.layers)
}
