package suites

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// Huge pages: with enough of them on the machine the confined server has its shared memory there; else it is refused by
// the kernel's lack of pages, as the unconfined one is, and by no layer. The machine's settings are not changed.
func TestHugePages(t *testing.T) {
	ctx, bed := newBed(t)
	settings := map[string]string{"huge_pages": "on", "shared_buffers": "'16MB'"}
	confined := newServer(ctx, t, bed, "pg-0", settings).confine(bed, nil)
	bare := newServer(ctx, t, bed, "pg-1", settings)
	if freeHugePages(t) >= 32 {
		confined.start()
		pid, err := confined.cluster.PID()
		must(t, err)
		maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
		must(t, err)
		if !strings.Contains(string(maps), "anon_hugepage") {
			t.Errorf("no mapping of huge pages")
		}
		confined.stop()
		summary.add(t, "huge_pages = on", "shared memory is in huge pages", "", unexpected(t, confined.failures(), nil))
		return
	}
	const want = "could not map anonymous shared memory: Cannot allocate memory"
	var exit *exec.ExitError
	argv := bare.cluster.Command()
	out, err := bare.host.CommandAs(ctx, bare.cluster.User, argv[0], argv[1:]...).CombinedOutput()
	if !errors.As(err, &exit) || !strings.Contains(string(out), want) {
		t.Fatalf("unconfined: %v\n%s", err, out)
	}
	out, err = confined.agent.Command(ctx, "exec", "--service", "postgres").CombinedOutput()
	if !errors.As(err, &exit) || !strings.Contains(string(out), want) {
		t.Fatalf("confined: %v\n%s", err, out)
	}
	summary.add(t, "huge_pages = on (the machine has none)", "the kernel has no pages", "the kernel has no pages", "none")
}

func freeHugePages(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	must(t, err)
	m := regexp.MustCompile(`(?m)^HugePages_Free: +(\d+)$`).FindSubmatch(text)
	if m == nil {
		return 0
	}
	return atoi(t, string(m[1]))
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	must(t, err)
	return n
}
