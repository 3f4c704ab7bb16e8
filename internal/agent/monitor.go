package agent

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
)

// monitorSlack is by how much the thread that watches over Go's scheduler may be
// late. Each time that the daemon wakes up, it would look around every 20 µs
// otherwise, which is most of the wake-ups of an idle daemon.
const monitorSlack = "5000000" // nanoseconds, proc_pid_timerslack_ns(5)

// calmMonitor makes it so. The monitor is the thread that Go starts before all
// others (main in runtime/proc.go), and no process is started from it, to which
// the slack would pass on. Should it be another one, that one is a bit late.
func calmMonitor(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	var threads []int
	for _, e := range entries {
		if id, err := strconv.Atoi(e.Name()); err == nil && id != os.Getpid() {
			threads = append(threads, id)
		}
	}
	if len(threads) == 0 {
		return nil
	}
	return os.WriteFile(fmt.Sprintf("/proc/%d/timerslack_ns", slices.Min(threads)), []byte(monitorSlack), 0)
}
