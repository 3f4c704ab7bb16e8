package testvm

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"
)

// ErrHung is in the error of a machine that stopped: no answer and no line on its console, a panic, an emergency shell.
var ErrHung = errors.New("the virtual machine hangs")

// stall is how long a machine may be silent. On a busy host one that starts a dozen services needs half a minute between two lines.
const stall = 2 * time.Minute

// dead are lines after which nothing more is to be expected.
var dead = regexp.MustCompile(`(?m)^.*(Kernel panic - not syncing|You are in emergency mode|You are in rescue mode|Give root password for maintenance|` +
	`\(initramfs\)|Cannot open access to console|System halted|Freezing execution).*$`)

// escapes are the colours and cursor movements of systemd's messages.
var escapes = regexp.MustCompile(`\x1b\[[0-9;?]*[A-Za-z]|\x1bc|\r`)

// console is the file that the emulator writes the serial console to, from a position on.
type console struct {
	path string

	mu   sync.Mutex
	from int64 // what is before is of an earlier boot

	seen  int64 // how long it was when it last grew
	grown time.Time
}

func newConsole(path string) *console { return &console{path: path, grown: time.Now()} }

// forget makes later looks start where the console is now.
func (c *console) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.grown = time.Now()
	if info, err := os.Stat(c.path); err == nil {
		c.from = info.Size()
	}
}

// alive says that there was another sign of life.
func (c *console) alive() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.grown = time.Now()
}

// text is what the console said since forget.
func (c *console) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.since()
}

func (c *console) since() string {
	data, err := os.ReadFile(c.path)
	if err != nil {
		return err.Error()
	}
	return escapes.ReplaceAllString(string(data[min(c.from, int64(len(data))):]), "")
}

// check returns an error that wraps ErrHung if the machine is dead or was silent for too long.
func (c *console) check(now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	info, err := os.Stat(c.path)
	if err != nil {
		return nil // not there yet
	}
	if info.Size() != c.seen {
		c.seen, c.grown = info.Size(), now
		if line := dead.FindString(c.since()); line != "" {
			return fmt.Errorf("%w: %s", ErrHung, strings.TrimSpace(line))
		}
	}
	if silent := now.Sub(c.grown); silent > stall {
		return fmt.Errorf("%w: no answer, and nothing on its console for %s", ErrHung, silent.Round(time.Second))
	}
	return nil
}

// tail is the end of the console, for errors.
func (c *console) tail() string {
	lines := strings.Split(strings.TrimSpace(c.text()), "\n")
	return fmt.Sprintf("the end of %s:\n\t%s", c.path, strings.Join(lines[max(0, len(lines)-25):], "\n\t"))
}
