package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pghardend/pghardend/internal/testbed"
	"github.com/pghardend/pghardend/test/reach"
)

const matrixFile = "testdata/instance/matrix.txt"

// matrix probes every cell, and compares with what is written down and with what pghardend says.
func (d *demo) matrix(ctx context.Context) error {
	data, err := os.ReadFile(matrixFile)
	if err != nil {
		return fmt.Errorf("%w; run the demo in the repository's top directory", err)
	}
	want, err := reach.Parse(data)
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", matrixFile, err)
	}
	began := time.Now()
	got, err := reach.Measure(ctx, d.in.Bed, d.in.Hosts())
	if err != nil {
		return err
	}
	d.say("%d probes sent in %v: 12 kinds from each host to each, over IPv4 and IPv6. What got in:\n", len(got), time.Since(began).Round(100*time.Millisecond))
	fmt.Fprintln(d.out, indent(table(hostNames(d.in.Hosts()), got)))
	d.say("(a number is a TCP port, u a UDP one; all: every probe; ·: none)\n")
	if err := d.compare(matrixFile, len(want.Cells()), want.Compare(got)); err != nil {
		return err
	}
	began = time.Now()
	fmt.Fprint(d.out, "   pghardend explain is asked about each on the nodes")
	answers, err := reach.Explain(ctx, d.in.Bed, d.in.Agents(), got, func(done, all int) {
		if done*10/all != (done-1)*10/all {
			fmt.Fprintf(d.out, " … %d%%", done*100/all)
		}
	})
	fmt.Fprintln(d.out)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("what explain says, after %v", time.Since(began).Round(100*time.Millisecond))
	return d.compare(what, len(answers), reach.Disagree(got, answers))
}

// compare shows the first of many differences.
func (d *demo) compare(what string, cells int, wrong []string) error {
	const most = 10
	if cells == 0 {
		return errors.New("nothing was compared with " + what)
	}
	d.observe("probes", "against "+what, fmt.Sprintf("%d of %d cells differ", len(wrong), cells), fmt.Sprintf("0 of %d cells differ", cells))
	for _, w := range wrong[:min(len(wrong), most)] {
		d.say("          %s", w)
	}
	return nil
}

func hostNames(hosts []*testbed.Host) []string {
	names := make([]string, len(hosts))
	for i, h := range hosts {
		names[i] = h.Name()
	}
	return names
}

func indent(text string) string {
	text = strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n   ")
	return "   " + strings.ReplaceAll(text, "   \n", "\n") // an empty line stays empty
}

const noCaps = "0000000000000000"

// confinement reads what the kernel says about the main process of each service.
func (d *demo) confinement(ctx context.Context) error {
	for i, a := range d.in.Agents() {
		service, pidOf := "postgres", func() (int, error) { return d.in.Postgres[i].PID() }
		if pools := i - len(d.in.Postgres); pools >= 0 {
			service, pidOf = "pgpool", d.in.Pools[pools].PID
		}
		pid, err := pidOf()
		if err != nil {
			return err
		}
		got, err := confined(pid)
		if err != nil {
			return err
		}
		d.observe(a.Host().Name(), fmt.Sprintf("%s, process %d", service, pid), got, "uid "+d.in.Postgres[0].User.Uid+", no rights, filtered")
	}
	var codes []string
	for _, a := range d.in.Agents() {
		r, err := a.CLI(ctx, "verify")
		if err != nil {
			return err
		}
		codes = append(codes, strconv.Itoa(r.Code))
	}
	d.observe("all five", "pghardend verify", "exit codes "+strings.Join(codes, " "), "exit codes 0 0 0 0 0")
	d.say("no rights: no capabilities, also none to gain (bounding set, no_new_privs); filtered: seccomp")
	return nil
}

// confined says in a few words what /proc/PID/status says; whatever is unexpected is shown as it is.
func confined(pid int) (string, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return "", err
	}
	var uid string
	var rights, filter []string
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.Join(strings.Fields(value), " ")
		switch {
		case key == "Uid":
			ids := slices.Compact(strings.Fields(value))
			uid = "uid " + strings.Join(ids, "/")
		case strings.HasPrefix(key, "Cap") && value != noCaps, key == "NoNewPrivs" && value != "1":
			rights = append(rights, key+" "+value)
		case key == "Seccomp" && value != "2":
			filter = append(filter, key+" "+value)
		}
	}
	if rights == nil {
		rights = []string{"no rights"}
	}
	if filter == nil {
		filter = []string{"filtered"}
	}
	return strings.Join(slices.Concat([]string{uid}, rights, filter), ", "), nil
}

const flushes = 3

// flush deletes all rules and measures, from outside, how long it takes until all of them are back. What the daemon was
// at in that moment makes a difference, hence several times.
func (d *demo) flush(ctx context.Context) error {
	const erase = "iptables -F; ip6tables -F"
	_, h := d.in.Primary()
	a := d.in.Agent(h.Name())
	d.say("%s", erase)
	var away []time.Duration
	for range flushes {
		if _, err := h.Run(ctx, "sh", "-c", erase); err != nil {
			return err
		}
		began := time.Now()
		err := a.Await(ctx, "the rules' return", func(ctx context.Context) error {
			r, err := a.CLI(ctx, "plan")
			if err == nil && r.Code != 0 {
				err = errors.New("the kernel still differs")
			}
			return err
		})
		if err != nil {
			return err
		}
		away = append(away, time.Since(began).Round(10*time.Millisecond))
	}
	d.say("%d times; plan has nothing left to do after %v to %v; how soon each was closed is below, in status", flushes, slices.Min(away), slices.Max(away))
	if err := d.siblingQueries(ctx, "no answer"); err != nil {
		return err
	}
	d.observe("app", "psql through "+d.in.Pools[0].Host.Name(), d.sql(ctx, d.in.App(), d.in.PgpoolConninfo(d.in.Pools[0].Host.Name())), "answered")
	d.say("pghardend status on %s, without the details of each change:", h.Name())
	r, err := a.CLI(ctx, "status")
	if err != nil {
		return err
	}
	fmt.Fprintln(d.out, indent(indent(withoutDetails(r.Stdout))))
	return nil
}

// withoutDetails leaves out what each change consisted of, which status indents.
func withoutDetails(status string) string {
	var s strings.Builder
	for line := range strings.Lines(status) {
		if !strings.HasPrefix(line, " ") {
			s.WriteString(line)
		}
	}
	return s.String()
}
