package firewall

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fakeKernel is a small netfilter: filter tables that change as a whole or not
// at all, and sets that refuse to go while a rule names them. It checks what the
// real one checks, so that a plan in the wrong order fails here as well.
type fakeKernel struct {
	tables [3]map[string][][]string // chain → rules → words
	sets   map[string]*fakeSet
	absent []string // commands that are not installed
	calls  []string // "restore ipv4", "sets", "edit x" …

	// fail may refuse a call before it does anything, or break it off after a
	// number of lines.
	fail func(call string) (lines int, err error)
}

type fakeSet struct {
	create  string // type and options as ipset save prints them
	members []string
}

var errFake = errors.New("fault injected")

func newFakeKernel() *fakeKernel {
	k := &fakeKernel{sets: map[string]*fakeSet{}}
	for _, id := range tableIDs {
		k.tables[id] = map[string][][]string{}
		for _, chain := range id.builtins() {
			k.tables[id][chain] = nil
		}
	}
	return k
}

// firewall is one on top of the fake.
func (k *fakeKernel) firewall() *Firewall {
	return &Firewall{backend: BackendNFT, run: k, sets: fakeSets{k}, own: &ownCommits{}, tools: [2]tools{
		{save: "iptables-nft-save", restore: "iptables-nft-restore"}, {save: "ip6tables-nft-save", restore: "ip6tables-nft-restore"},
	}}
}

func (k *fakeKernel) find(name string) (string, error) {
	if slices.Contains(k.absent, name) {
		return "", errors.New("not found")
	}
	return name, nil
}

func (k *fakeKernel) run(ctx context.Context, stdin string, path string, args ...string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	name := filepath.Base(path)
	fam := IPv4
	if strings.HasPrefix(name, "ip6") {
		fam = IPv6
	}
	id := TableID(fam)
	if fam == IPv6 && (slices.Equal(args, []string{"-t", "raw"}) || strings.HasPrefix(stdin, "*raw\n")) {
		id = RawIPv6
	}
	call := strings.Join(append([]string{name}, args...), " ")
	switch {
	case strings.HasSuffix(name, "-save"):
		call = "save " + id.String()
	case strings.HasSuffix(name, "-restore"):
		call = "restore " + id.String()
	}
	lines, fault := k.note(call)
	if fault != nil && lines == 0 {
		return nil, fault
	}
	switch {
	case strings.HasPrefix(call, "save "):
		return k.save(id), nil
	case strings.HasPrefix(call, "restore "):
		if !slices.Equal(args, []string{"--noflush", "-w", "5"}) {
			return nil, fmt.Errorf("arguments %q", args)
		}
		return nil, k.restore(id, stdin, fault)
	}
	return nil, fmt.Errorf("unknown call %s", call)
}

// note keeps a call and says whether it is to fail, after how many lines.
func (k *fakeKernel) note(call string) (lines int, fault error) {
	k.calls = append(k.calls, call)
	if k.fail == nil {
		return -1, nil
	}
	return k.fail(call)
}

// start is run: what a command does it has done when it is started.
func (k *fakeKernel) start(ctx context.Context, stdin string, path string, args ...string) func() ([]byte, error) {
	out, err := k.run(ctx, stdin, path, args...)
	return func() ([]byte, error) { return out, err }
}

// fakeSets are the sets of the fake, without a command.
type fakeSets struct{ k *fakeKernel }

func (s fakeSets) open(context.Context) (setSession, error) { return s, nil }
func (s fakeSets) close()                                   {}

func (s fakeSets) list(ctx context.Context) (map[string]ObservedSet, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if _, err := s.k.note("sets"); err != nil {
		return nil, err
	}
	return ParseSets(s.k.saveSets())
}

func (s fakeSets) edit(_ context.Context, ops []setOp) error {
	call := "edit " + ops[0].set
	if ops[0].verb == verbDestroy && len(ops) == 1 {
		call = "destroy " + ops[0].set
	}
	lines, fault := s.k.note(call)
	return s.k.restoreSets(restoreText(ops), lines, fault)
}

func (k *fakeKernel) save(id TableID) []byte {
	var b strings.Builder
	b.WriteString("# Generated\n*" + id.name() + "\n")
	for _, c := range slices.Sorted(maps.Keys(k.tables[id])) {
		fmt.Fprintf(&b, ":%s - [0:0]\n", c)
	}
	for _, c := range slices.Sorted(maps.Keys(k.tables[id])) {
		for _, r := range k.tables[id][c] {
			fmt.Fprintf(&b, "-A %s %s\n", c, quoteWords(r))
		}
	}
	b.WriteString("COMMIT\n# Completed\n")
	return []byte(b.String())
}

// text is all there is.
func (k *fakeKernel) text() string {
	text := string(k.saveSets())
	for _, id := range tableIDs {
		text += string(k.save(id))
	}
	return text
}

// restore works on a copy, which counts only if every line is right.
func (k *fakeKernel) restore(id TableID, text string, fault error) error {
	table := map[string][][]string{}
	for c, rules := range k.tables[id] {
		table[c] = slices.Clone(rules)
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if lines[0] != "*"+id.name() || lines[len(lines)-1] != "COMMIT" {
		return fmt.Errorf("no transaction: %q", text)
	}
	for n, line := range lines[1 : len(lines)-1] {
		if err := k.tableLine(table, line); err != nil {
			return fmt.Errorf("line %d: %q: %w", n+2, line, err)
		}
	}
	if fault != nil {
		return fault
	}
	k.tables[id] = table
	return nil
}

func (k *fakeKernel) tableLine(table map[string][][]string, line string) error {
	if name, ok := strings.CutPrefix(line, ":"); ok {
		table[strings.Fields(name)[0]] = nil // with --noflush: made, or emptied
		return nil
	}
	words, _ := scanWords(line, true)
	op, chain, rule := words[0], words[1], words[2:]
	rules, ok := table[chain]
	if !ok {
		return errors.New("no such chain")
	}
	if op == "-I" {
		if rule[0] != "1" {
			return errors.New("position")
		}
		rule = rule[1:]
	}
	if op == "-A" || op == "-I" {
		if err := k.checkRule(table, rule); err != nil {
			return err
		}
	}
	switch op {
	case "-A":
		table[chain] = append(rules, rule)
	case "-I":
		table[chain] = slices.Insert(rules, 0, rule)
	case "-D":
		i := slices.IndexFunc(rules, func(r []string) bool { return slices.Equal(r, rule) })
		if i < 0 {
			return errors.New("no such rule")
		}
		table[chain] = slices.Delete(rules, i, i+1)
	case "-X":
		if len(rules) > 0 || used(table, chain) {
			return errors.New("chain in use")
		}
		delete(table, chain)
	default:
		return errors.New("unknown operation")
	}
	return nil
}

func (k *fakeKernel) checkRule(table map[string][][]string, rule []string) error {
	if i := slices.Index(rule, "--match-set"); i >= 0 && k.sets[rule[i+1]] == nil {
		return errors.New("no such set")
	}
	if target, _ := newRule(rule...).target(); target != "" && strings.ToUpper(target) == target && strings.Contains(target, "-") {
		if _, ok := table[target]; !ok {
			return errors.New("no such target")
		}
	}
	return nil
}

func used(table map[string][][]string, word string) bool {
	for _, rules := range table {
		for _, r := range rules {
			if slices.Contains(r, word) {
				return true
			}
		}
	}
	return false
}

func (k *fakeKernel) saveSets() []byte {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(k.sets)) {
		fmt.Fprintf(&b, "create %s %s\n", name, k.sets[name].create)
		for _, m := range k.sets[name].members {
			fmt.Fprintf(&b, "add %s %s\n", name, m)
		}
	}
	return []byte(b.String())
}

func (k *fakeKernel) restoreSets(text string, lines int, fault error) error {
	for n, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if fault != nil && n == lines {
			return fault
		}
		if err := k.setLine(strings.Fields(line)); err != nil {
			return fmt.Errorf("line %d: %q: %w", n+1, line, err)
		}
	}
	return nil
}

func (k *fakeKernel) setLine(words []string) error {
	name := words[1]
	set, exists := k.sets[name]
	if exists == (words[0] == "create") {
		return fmt.Errorf("set %s: exists is %v", name, exists)
	}
	switch words[0] {
	case "create":
		if len(name) > 31 {
			return errors.New("name too long")
		}
		k.sets[name] = &fakeSet{create: strings.Join(words[2:], " ")}
	case "add", "del":
		host := strings.TrimSuffix(strings.TrimSuffix(words[2], "/32"), "/128")
		set.members = slices.DeleteFunc(set.members, func(m string) bool { return strings.Fields(m)[0] == host })
		if words = slices.DeleteFunc(words, func(w string) bool { return w == "-exist" }); words[0] == "add" {
			set.members = append(set.members, strings.Join(append([]string{host}, words[3:]...), " "))
		}
	case "swap":
		other := k.sets[words[2]]
		if other == nil || !strings.HasPrefix(other.create, strings.Join(strings.Fields(set.create)[:3], " ")) {
			return errors.New("types differ")
		}
		k.sets[name], k.sets[words[2]] = other, set
	case "destroy":
		if used(k.tables[IPv4], name) || used(k.tables[IPv6], name) {
			return errors.New("set in use")
		}
		delete(k.sets, name)
	default:
		return errors.New("unknown operation")
	}
	return nil
}

// settle applies what is to do and fails unless nothing is left.
func settle(t *testing.T, f *Firewall, rs Ruleset) {
	t.Helper()
	got, err := f.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := Diff(rs, got)
	if err := f.Apply(t.Context(), p); err != nil {
		t.Fatalf("%v\nplan:\n%s", err, p)
	}
	checkSettled(t, f, rs)
}

func checkSettled(t *testing.T, f *Firewall, rs Ruleset) {
	t.Helper()
	got, err := f.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if left := Diff(rs, got); !left.Empty() {
		t.Fatalf("left to do:\n%s", left)
	}
}
