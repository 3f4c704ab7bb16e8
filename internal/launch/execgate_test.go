package launch

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/sandbox"
)

func TestGateFault(t *testing.T) {
	raw := capability(unix.CAP_SYS_RAWIO)
	long := "/" + strings.Repeat("x", 4080)
	for name, c := range map[string]struct {
		limit, lowest uint64
		have, keep    sandbox.CapSet
		program, want string
	}{
		"as it should be":      {4096, 4096, raw, 0, "/x", ""},
		"default of Debian":    {4096, 65536, raw, 0, "/x", ""},
		"everybody's page":     {4096, 0, raw, 0, "/x", "vm.mmap_min_addr is 0"},
		"less than a page":     {4096, 4095, raw, 0, "/x", "vm.mmap_min_addr is 4095"},
		"not privileged":       {4096, 65536, ^raw, 0, "/x", "CAP_SYS_RAWIO: add it to what starts this process (systemd: CapabilityBoundingSet=)"},
		"given to the service": {4096, 65536, raw, raw, "/x", "take it out of capabilities"},
		"beyond the page":      {65536, 65536, raw, 0, "/x", "use 4096"},
		"below the path":       {16, 65536, raw, 0, "/x", "use 4096"},
		"path too long":        {4096, 65536, raw, 0, long, "use a shorter one"},
		"path just fits":       {4096, 65536, raw, 0, long[:4079], ""},
	} {
		err := gateFault(Spec{Command: []string{c.program}, Capabilities: c.keep}, c.limit, c.lowest, c.have)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestMapHint(t *testing.T) {
	if got := mapHint(unix.EACCES); !strings.Contains(got, "SELinux") || !strings.Contains(got, "mmap_zero") {
		t.Error(got)
	}
	if got := mapHint(unix.EPERM); !strings.Contains(got, "first user namespace") {
		t.Error(got)
	}
}
