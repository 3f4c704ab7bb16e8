package drill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pghardend/pghardend/pkg/firewall"
)

// User is the drill's own user, who exists in its mount namespace only.
const User = "pghardend-drill"

// Inside is where things are, seen from within the namespaces.
type Inside struct{ Root string }

// Data is the scratch service's data directory, Socket that of its Unix socket.
func (i Inside) Data() string { return filepath.Join(i.Root, "data") }

// Socket is the directory of the scratch service's Unix socket.
func (i Inside) Socket() string { return filepath.Join(i.Root, "socket") }

// State has what stands in for runtime_dir and state_dir.
func (i Inside) State() string { return filepath.Join(i.Root, "state") }

// Run stands in for runtime_dir.
func (i Inside) Run() string { return filepath.Join(i.State(), "run") }

// Setup is what the agent knows of the service.
type Setup struct {
	Service string
	Area    string // on the host
	Inside  Inside
	UID     int
	Groups  []string          // of the service
	Server  string            // the program, if it is PostgreSQL
	Limits  map[string]string // hard limits asked for, as decimal numbers, by lower-case name
	Off     []LayerOn         // layers that the service does not have
	Rules   firewall.Ruleset  // for a node with the addresses of Node
	Backend string
	Notes   []string // for the report
	NoGroup string   // why no control group can be made for the drill; "" if one can
	Rows    []string
	Ablate  bool
	// Stage is the command line of this program that becomes argv with some layers.
	Stage func(layers []string, argv []string) []string
}

// box is the drill seen from inside.
type box struct {
	Setup
	log       io.Writer
	on        []Layer // what the service has
	data      string
	loader    string
	bystander string
	outside   *outside
	fw        *firewall.Firewall
	rulesOn   bool
	cluster   *cluster
}

func (b *box) file(name string) string        { return filepath.Join(b.Inside.Root, "bin", name) }
func (b *box) limit(resource string) string   { return b.Limits[resource] }
func (b *box) say(format string, args ...any) { fmt.Fprintf(b.log, format+"\n", args...) }

// Box is the first process of the drill's namespaces. It writes the Report to out
// as JSON, and what it is doing to log.
func Box(ctx context.Context, setup Setup, out, log io.Writer) error {
	if os.Getpid() != 1 {
		return errors.New("cannot drill here: this is not the first process of a namespace; use `pghardend drill`")
	}
	b := &box{Setup: setup, log: log, data: setup.Inside.Data()}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	defer b.outside.close()
	stop, err := b.startBystander(ctx)
	if err != nil {
		return err
	}
	defer stop()
	trials, err := b.run(ctx, chosen(b.Rows))
	if err != nil {
		return err
	}
	report := Report{Service: b.Service, Notes: b.Notes, Layers: b.layers(), Ablated: b.Ablate, Attempts: []Result{}}
	for _, t := range trials {
		report.Attempts = append(report.Attempts, t.result(b.on))
	}
	report.finish()
	return json.NewEncoder(out).Encode(report)
}

func (b *box) prepare(ctx context.Context) error {
	b.say("preparing a scratch area with a network of its own")
	for _, step := range []func(context.Context) error{b.makeMounts, b.makeFiles, b.makeNetwork, b.openRules, b.makeCluster} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	for _, l := range askedIn {
		if !slices.ContainsFunc(b.Off, func(o LayerOn) bool { return o.Layer == l }) {
			b.on = append(b.on, l)
		}
	}
	return nil
}

// layers says what the service has.
func (b *box) layers() []LayerOn {
	list := []LayerOn{}
	for _, l := range askedIn {
		entry := LayerOn{Layer: l, On: slices.Contains(b.on, l)}
		if i := slices.IndexFunc(b.Off, func(o LayerOn) bool { return o.Layer == l }); i >= 0 {
			entry.Why = b.Off[i].Why
		}
		list = append(list, entry)
	}
	return list
}

// run does all trials: controls, the whole, and single layers as far as needed.
func (b *box) run(ctx context.Context, attempts []attempt) ([]*trial, error) {
	var all []*trial
	for _, a := range attempts {
		all = append(all, &trial{attempt: a, alone: map[Layer]outcome{}})
	}
	b.say("controls: without the layers")
	if err := b.runAll(ctx, all, func(t *trial) []Layer { return with(t.attempt.base) }, func(t *trial, o outcome) { t.control = o }); err != nil {
		return nil, err
	}
	works := slices.DeleteFunc(slices.Clone(all), func(t *trial) bool { return !t.control.Reached })
	b.say("all layers: %s", joinLayers(b.on))
	if err := b.runAll(ctx, works, func(*trial) []Layer { return b.on }, func(t *trial, o outcome) { t.whole = o }); err != nil {
		return nil, err
	}
	for _, l := range b.on {
		open := slices.DeleteFunc(slices.Clone(works), func(t *trial) bool {
			return !b.Ablate && t.settled() || slices.Contains(t.attempt.base, l) || l == Netfilter && !t.attempt.packets || l == Cgroup && !t.attempt.bounded
		})
		if len(open) == 0 {
			continue
		}
		b.say("%s alone", l)
		if err := b.runAll(ctx, open, func(t *trial) []Layer { return with(t.attempt.base, l) }, func(t *trial, o outcome) { t.alone[l] = o }); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// runAll runs trials, those with the same layers together.
func (b *box) runAll(ctx context.Context, trials []*trial, layers func(*trial) []Layer, take func(*trial, outcome)) error {
	groups := map[string][]*trial{}
	var order []string
	for _, t := range trials {
		key := joinLayers(layers(t))
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], t)
	}
	for _, key := range order {
		if err := b.runGroup(ctx, layers(groups[key][0]), groups[key], take); err != nil {
			return err
		}
	}
	return nil
}

func (b *box) runGroup(ctx context.Context, layers []Layer, group []*trial, take func(*trial, outcome)) error {
	if err := b.setRules(ctx, slices.Contains(layers, Netfilter)); err != nil {
		return err
	}
	started := false
	for _, t := range group {
		if err := ctx.Err(); err != nil {
			return err
		}
		if t.attempt.sql == nil {
			o, err := b.try(ctx, layers, t.attempt)
			if err != nil {
				return err
			}
			take(t, o)
			continue
		}
		if b.cluster == nil {
			take(t, absent("the service is not PostgreSQL"))
			continue
		}
		if !started {
			if err := b.cluster.start(ctx, b, layers); err != nil {
				return fmt.Errorf("with the layers %s: %w", joinLayers(layers), err)
			}
			started = true
			defer b.cluster.stop()
		}
		take(t, t.attempt.sql(ctx, b))
	}
	return nil
}

func joinLayers(list []Layer) string {
	if len(list) == 0 {
		return "none"
	}
	var names []string
	for _, l := range list {
		names = append(names, string(l))
	}
	return strings.Join(names, ", ")
}
