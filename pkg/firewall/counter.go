package firewall

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Counter is what the rules of one chain with one comment of ours have seen,
// of those that decide about a packet. It begins at nothing whenever the chain
// is written.
type Counter struct {
	Family    Family
	Flow      string // the row's name, or the reason: what follows "pghardend:"
	Direction string // in, out, fwd, icmp, meta or rpf: the chain
	Verdict   string // VerdictAccept or VerdictDrop
	Packets   uint64
	Bytes     uint64
}

// The verdicts of a Counter.
const (
	VerdictAccept = "accept"
	VerdictDrop   = "drop"
)

var verdicts = map[string]string{"ACCEPT": VerdictAccept, "DROP": VerdictDrop}

// directions are the names of our chains for people.
var directions = map[string]string{
	ChainIn: "in", ChainOut: "out", ChainFwd: "fwd", ChainICMP: "icmp", ChainMetadata: "meta", ChainRPF: "rpf",
}

// maxCounters bounds what somebody with rules of his own in our chains can make
// us count; a matrix has some dozens.
const maxCounters = 512

// Counters reads what our rules have counted. On an error the tables that could
// be read are still returned.
func (f *Firewall) Counters(ctx context.Context) ([]Counter, error) {
	var waits [3]func() ([]byte, error)
	for _, id := range tableIDs {
		if fam := id.family(); !f.unused[id] && f.missing[fam] == nil { // Observe says why
			waits[id] = f.run.start(ctx, "", f.tools[fam].save, "-c", "-t", id.name())
		}
	}
	var all []Counter
	var errs []error
	for _, id := range tableIDs {
		if waits[id] == nil {
			continue
		}
		var counters []Counter
		out, err := waits[id]()
		if err == nil {
			counters, err = parseCounters(id.family(), out)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot read the counters of %s: %w", id, err))
		}
		all = append(all, counters...)
	}
	return all, errors.Join(errs...)
}

// parseCounters sums up what iptables-save -c prints of our chains. Rules
// without a comment of ours are left out.
func parseCounters(fam Family, data []byte) ([]Counter, error) {
	var all []Counter
	inTable := false // its COMMIT is still to come
	for n, text := 1, string(data); text != ""; n++ {
		line, _, _ := strings.Cut(text, "\n")
		size := len(line)
		switch {
		case strings.HasPrefix(line, "#") && strings.HasSuffix(line, "' is incompatible, use 'nft' tool."):
			return nil, errUnreadable
		case strings.HasPrefix(line, "*"), line == "COMMIT":
			inTable = line != "COMMIT"
		case strings.HasPrefix(line, "["):
			words, used := scanWords(text, true)
			size = used
			c, ok, err := parseCounter(words)
			if err != nil {
				return nil, fmt.Errorf("entry %d: %.80q: %w", n, line, err)
			}
			if c.Family = fam; ok {
				all = addCounter(all, c)
			}
		case line != "" && line[0] != '#' && line[0] != ':':
			return nil, fmt.Errorf("entry %d: %.80q is not iptables-save output", n, line)
		}
		text = strings.TrimPrefix(text[size:], "\n")
	}
	if inTable {
		return nil, errors.New("the text was cut short")
	}
	return all, nil
}

// parseCounter reads "[packets:bytes] -A CHAIN rule". False: it is not one of
// ours that decides.
func parseCounter(words []string) (c Counter, ok bool, err error) {
	if n, err := fmt.Sscanf(words[0], "[%d:%d]", &c.Packets, &c.Bytes); n != 2 || err != nil || len(words) < 3 || words[1] != "-A" {
		return Counter{}, false, errors.New("this is not a rule with its counters")
	}
	target, _ := newRule(words[3:]...).target()
	c.Direction, c.Verdict = directions[words[2]], verdicts[target]
	for _, o := range splitOptions(words[3:]) {
		if tag, ours := strings.CutPrefix(o.words[len(o.words)-1], tagPrefix); ours && o.words[0] == "--comment" {
			c.Flow = tag
		}
	}
	return c, c.Direction != "" && c.Verdict != "" && flowName(c.Flow), nil
}

func addCounter(all []Counter, c Counter) []Counter {
	i := slices.IndexFunc(all, func(o Counter) bool {
		return o.Flow == c.Flow && o.Direction == c.Direction && o.Verdict == c.Verdict
	})
	switch {
	case i >= 0:
		all[i].Packets += c.Packets
		all[i].Bytes += c.Bytes
	case len(all) < maxCounters:
		all = append(all, c)
	}
	return all
}
