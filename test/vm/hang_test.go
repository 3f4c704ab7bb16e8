package vm

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/pghardend/pghardend/test/vm/testvm"
)

// A machine that dies under a command is told at once, with what its console said.
func TestPanicIsTold(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	m, err := testvm.Boot(ctx, testvm.Options{Image: testvm.Debian12, SELinux: "enforcing", Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if mode, err := m.Output(ctx, "getenforce; id -Z"); err != nil || !strings.HasPrefix(mode, "Enforcing\nunconfined_u:unconfined_r:unconfined_t:") {
		t.Errorf("SELinux is %s, %v", mode, err)
	}
	_, err = m.Run(ctx, "echo c >/proc/sysrq-trigger", nil)
	if !errors.Is(err, testvm.ErrHung) || !strings.Contains(err.Error(), "Kernel panic") {
		t.Fatalf("the command says %v", err)
	}
}
