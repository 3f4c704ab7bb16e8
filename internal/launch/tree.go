package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Tree lists a process and all its descendants, itself first, the others sorted.
// Processes that come and go meanwhile may or may not be there; a descendant
// whose parent has ended is init's child and no longer found. The error is
// ErrVanished if root is not there.
func Tree(ctx context.Context, root int) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("cannot list processes: %w", err)
	}
	parents := make(map[int]int, len(entries))
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("cannot list processes: %w", err)
		}
		data, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return nil, fmt.Errorf("cannot list processes: %w", err)
		}
		parent, err := parseParent(string(data))
		if err != nil {
			return nil, fmt.Errorf("cannot read /proc/%d/stat: %w", pid, err)
		}
		parents[pid] = parent
	}
	if _, ok := parents[root]; !ok {
		return nil, fmt.Errorf("cannot list the descendants of process %d: %w", root, ErrVanished)
	}
	return descendants(parents, root), nil
}

// descendants walks down from root. Numbers read at different moments may form
// a ring, so each process is taken once.
func descendants(parents map[int]int, root int) []int {
	children := make(map[int][]int, len(parents))
	for pid, parent := range parents {
		children[parent] = append(children[parent], pid)
	}
	seen := map[int]bool{root: true}
	var found []int
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		for _, child := range children[queue[0]] {
			if !seen[child] {
				seen[child] = true
				found = append(found, child)
				queue = append(queue, child)
			}
		}
	}
	slices.Sort(found)
	return append([]int{root}, found...)
}

// parseParent takes the parent's pid from the text of /proc/PID/stat, proc(5):
// "pid (name) state ppid …". The name is the process's own choice and may hold
// spaces, parentheses and line breaks; what follows it may not.
func parseParent(stat string) (int, error) {
	end := strings.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, errors.New("no name in parentheses")
	}
	fields := strings.Fields(stat[end+1:])
	if len(fields) < 2 {
		return 0, errors.New("no parent after the name")
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil || parent < 0 {
		return 0, fmt.Errorf("%q is not a process id", fields[1])
	}
	return parent, nil
}
