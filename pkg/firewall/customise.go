package firewall

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// FlowOverride is what a configuration says about one row of the matrix. A
// field that is nil or empty leaves the row as it is.
type FlowOverride struct {
	Enabled      *bool
	Proto        string
	Ports        []uint16
	From, To     []string
	Rate         *int
	Connections  *int
	NewPerSecond *int
}

// Customise returns the rows in force: those of base in their order, without
// what is switched off, then the new rows in the order of their names. Every
// node of the instance must get the same overrides, since both ends of a row
// are compiled from it. All problems are reported, each with row and key.
func Customise(base []Flow, over map[string]FlowOverride) ([]Flow, error) {
	var flows []Flow
	var errs []error
	for _, f := range base {
		o, ok := over[f.Name]
		if !ok && f.OptIn {
			continue
		}
		row, on, err := o.change(f)
		if err != nil {
			errs = append(errs, fmt.Errorf("flows.%s: %w", f.Name, err))
		} else if on {
			flows = append(flows, row)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(over)) {
		if slices.ContainsFunc(base, func(f Flow) bool { return f.Name == name }) {
			continue
		}
		row, err := over[name].add(name, base)
		if err != nil {
			errs = append(errs, fmt.Errorf("flows.%s: %w", name, err))
		} else if over[name].Enabled == nil || *over[name].Enabled {
			flows = append(flows, row)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return flows, nil
}

// change is a built-in row with the override's fields, and whether it is on.
func (o FlowOverride) change(f Flow) (Flow, bool, error) {
	on := !f.OptIn
	if o.Enabled != nil {
		on = *o.Enabled
	}
	if !on && o.Enabled == nil {
		return f, false, errors.New("the row is off; add enabled: true, or remove what is said about it")
	}
	f.OptIn = false // the rows that are returned are in force
	f = o.fill(f)
	return f, on, f.check()
}

// add is a row that base does not have.
func (o FlowOverride) add(name string, base []Flow) (Flow, error) {
	var missing []string
	for _, key := range []struct {
		name  string
		given bool
	}{
		{"proto", o.Proto != ""},
		{"ports", o.Ports != nil || o.Proto == ProtoEcho || o.Proto == ""},
		{"from", o.From != nil},
		{"to", o.To != nil},
		{"rate", o.Rate != nil || o.Proto != ProtoEcho},
	} {
		if !key.given {
			missing = append(missing, key.name)
		}
	}
	if len(missing) > 0 {
		return Flow{}, fmt.Errorf("there is no built-in row %s, and a new one also needs %s; built-in rows: %s",
			name, strings.Join(missing, ", "), rowNames(base))
	}
	f := o.fill(Flow{Name: name})
	return f, f.check()
}

func (o FlowOverride) fill(f Flow) Flow {
	if o.Proto != "" {
		f.Proto = o.Proto
	}
	if o.Ports != nil {
		f.Ports = slices.Clone(o.Ports)
	}
	if o.From != nil {
		f.From = slices.Clone(o.From)
	}
	if o.To != nil {
		f.To = slices.Clone(o.To)
	}
	for _, n := range []struct{ to, from *int }{{&f.Rate, o.Rate}, {&f.Connections, o.Connections}, {&f.NewPerSecond, o.NewPerSecond}} {
		if n.from != nil {
			*n.to = *n.from
		}
	}
	return f
}

func rowNames(flows []Flow) string {
	names := make([]string, len(flows))
	for i, f := range flows {
		names[i] = f.Name
	}
	return strings.Join(names, ", ")
}
