package learn

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The format of a recording, and the versions that are read.
const (
	Format  = "pghardend-recording"
	Version = 1
)

// Call is a system call, with the arguments that matter in their places: nil
// where none does. They are numbers; no pointer and no text is kept.
type Call struct {
	Name string   `json:"name"`
	Args []uint64 `json:"args,omitempty"`
}

func (c Call) compare(o Call) int {
	return cmp.Or(strings.Compare(c.Name, o.Name), slices.Compare(c.Args, o.Args))
}

func (c Call) String() string {
	if len(c.Args) == 0 {
		return c.Name
	}
	var args []string
	for _, a := range c.Args {
		args = append(args, fmt.Sprintf("%#x", a))
	}
	return c.Name + "(" + strings.Join(args, ", ") + ")"
}

// Run is one session of recording. Lost is how many reports of the kernel did
// not arrive, at least, and Unresolved how many paths could not be told.
type Run struct {
	ID         string `json:"id"` // 16 hexadecimal digits, at random
	Started    string `json:"started"`
	Seconds    uint64 `json:"seconds"`
	Start      bool   `json:"start"` // the service was started meanwhile
	Lost       uint64 `json:"lost"`
	Unresolved uint64 `json:"unresolved"`
}

// Complete says whether nothing is known to be missing.
func (r Run) Complete() bool { return r.Lost == 0 && r.Unresolved == 0 }

// Use is what one type of process did. Lists are sorted and have no doubles. A
// path that ends in a slash is a directory and all below it.
type Use struct {
	Calls   []Call              `json:"calls"`
	Files   map[Access][]string `json:"files"`
	Bind    []uint16            `json:"bind"`
	Connect []uint16            `json:"connect"`
}

// Recording is what a service did while it was watched.
type Recording struct {
	Format       string         `json:"format"`
	Version      int            `json:"version"`
	Service      string         `json:"service"`
	Architecture string         `json:"architecture"` // GOARCH
	Runs         []Run          `json:"runs"`         // by id
	Processes    map[string]Use `json:"processes"`    // by type
}

// Complete says whether nothing is known to be missing in any run.
func (r Recording) Complete() bool {
	return len(r.Runs) > 0 && !slices.ContainsFunc(r.Runs, func(x Run) bool { return !x.Complete() })
}

// Lost sums up what is missing.
func (r Recording) Lost() (reports, paths uint64) {
	for _, x := range r.Runs {
		reports += x.Lost
		paths += x.Unresolved
	}
	return reports, paths
}

// All is what all types of processes did together.
func (r Recording) All() Use {
	var all Use
	for _, name := range slices.Sorted(maps.Keys(r.Processes)) {
		all = mergeUse(all, r.Processes[name])
	}
	return all
}

// Merge joins two recordings of one service on one architecture. The order does
// not matter, and neither does it to merge one twice.
func Merge(a, b Recording) (Recording, error) {
	if a.Service != b.Service || a.Architecture != b.Architecture {
		return Recording{}, fmt.Errorf("cannot merge recordings of %s on %s and of %s on %s: record the same service",
			a.Service, a.Architecture, b.Service, b.Architecture)
	}
	out := Recording{Format: Format, Version: Version, Service: a.Service, Architecture: a.Architecture, Processes: map[string]Use{}}
	runs := map[string]Run{}
	for _, x := range slices.Concat(a.Runs, b.Runs) {
		runs[x.ID] = laterRun(runs[x.ID], x)
	}
	out.Runs = slices.SortedFunc(maps.Values(runs), func(x, y Run) int { return strings.Compare(x.ID, y.ID) })
	for _, processes := range []map[string]Use{a.Processes, b.Processes} {
		for name, use := range processes {
			out.Processes[name] = mergeUse(out.Processes[name], use)
		}
	}
	return out, nil
}

// laterRun decides between two states of one run: the longer or worse value.
func laterRun(a, b Run) Run {
	return Run{
		ID: max(a.ID, b.ID), Started: max(a.Started, b.Started), Seconds: max(a.Seconds, b.Seconds), Start: a.Start || b.Start,
		Lost: max(a.Lost, b.Lost), Unresolved: max(a.Unresolved, b.Unresolved),
	}
}

func mergeUse(a, b Use) Use {
	out := Use{
		Calls:   sortedCalls(slices.Concat(a.Calls, b.Calls)),
		Files:   map[Access][]string{},
		Bind:    sortedPorts(slices.Concat(a.Bind, b.Bind)),
		Connect: sortedPorts(slices.Concat(a.Connect, b.Connect)),
	}
	for _, files := range []map[Access][]string{a.Files, b.Files} {
		for access, list := range files {
			out.Files[access] = append(out.Files[access], list...)
		}
	}
	for access, list := range out.Files {
		out.Files[access] = condense(list, access)
	}
	return out
}

func sortedCalls(list []Call) []Call {
	slices.SortFunc(list, Call.compare)
	return slices.CompactFunc(list, func(a, b Call) bool { return a.compare(b) == 0 })
}

func sortedPorts(list []uint16) []uint16 {
	slices.Sort(list)
	return slices.Compact(list)
}

// Render is the file: the same text for the same recording.
func (r Recording) Render() ([]byte, error) {
	same, err := Merge(r, r)
	if err != nil {
		return nil, err
	}
	if same.Runs == nil {
		same.Runs = []Run{}
	}
	for name, use := range same.Processes { // lists, never null
		use.Calls = append([]Call{}, use.Calls...)
		use.Bind = append([]uint16{}, use.Bind...)
		use.Connect = append([]uint16{}, use.Connect...)
		same.Processes[name] = use
	}
	text, err := json.MarshalIndent(same, "", " ")
	if err != nil {
		return nil, fmt.Errorf("cannot write a recording: %w", err)
	}
	return append(text, '\n'), nil
}
