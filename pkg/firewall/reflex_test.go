package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// nftRulesFile is what Linux 6.18 has sent for the chains INPUT, PGHARDEND-IN
// (the first six rules) and PGHARDEND-META of a node with iptables-nft 1.8.9.
const nftRulesFile = "testdata/nft-rules.bin"

// recordedRules are the recorded chains.
func recordedRules(t testing.TB) map[string][]nftRule {
	t.Helper()
	chains := map[string][]nftRule{}
	for data := read(t, nftRulesFile); len(data) > 0; {
		m, rest, err := parseNftMessage(data)
		if err != nil {
			t.Fatal(err)
		}
		chain, r := parseNftRule(m.body)
		chains[string(chain)] = append(chains[string(chain)], r)
		data = rest
	}
	if len(chains["INPUT"]) != 6 || len(chains[ChainIn]) != 6 || len(chains[ChainMetadata]) != 6 {
		t.Fatalf("the file has other rules: %d, %d, %d", len(chains["INPUT"]), len(chains[ChainIn]), len(chains[ChainMetadata]))
	}
	return chains
}

func TestNftRuleIsRead(t *testing.T) {
	chains := recordedRules(t)
	type read struct {
		Proto    uint8
		Not      bool
		Sets     int
		LeadsTo  string
		Harmless bool
	}
	want := map[string][]read{
		"INPUT": {
			{Harmless: true},           // -j LOG
			{Proto: 6, Harmless: true}, // -p tcp -j REJECT
			{Harmless: true},           // -s 192.0.2.1 -j DROP
			{LeadsTo: ChainIn},
			{},         // -s 192.0.2.2 -j ACCEPT
			{Proto: 6}, // tcp dport vmap { 22 : accept }
		},
		ChainIn: {
			{Proto: 1, Not: true},
			{}, // -i lo
			{Proto: 1, Sets: 1},
			{Proto: 1, Sets: 1},
			{Proto: 1, Sets: 1},
			{Proto: 1, LeadsTo: ChainICMP},
		},
		ChainMetadata: {{Proto: 1, Not: true}, {Proto: 17}, {Proto: 6}, {Proto: 17}, {Proto: 6}, {Harmless: true}},
	}
	for chain, rules := range chains {
		for i, r := range rules {
			var got read
			got.Proto, got.Not = r.protocol()
			got.Sets, got.LeadsTo = len(r.setIndexes()), string(r.leadsTo())
			got.Harmless, _ = r.harmless(0, func(string) ([]nftRule, error) { return nil, nil })
			if d := cmp.Diff(want[chain][i], got); d != "" {
				t.Errorf("%s rule %d (-want +got):\n%s", chain, i, d)
			}
		}
	}
}

// Counters may differ between a rule and its image, and nothing else.
func TestImageRuleIs(t *testing.T) {
	for chain, rules := range recordedRules(t) {
		for i, r := range rules {
			im := newImageRule(r, "")
			if counters := map[bool]int{true: 0, false: 2}[chain == "INPUT" && i == 5]; len(im.counters) != counters {
				t.Fatalf("%s rule %d: counters at %d", chain, i, im.counters)
			}
			for at := range r.exprs {
				changed := nftRule{exprs: slices.Clone(r.exprs), user: r.user}
				changed.exprs[at] ^= 1
				counted := slices.ContainsFunc(im.counters, func(c int) bool { return at >= c && at < c+counterSize })
				if im.is(changed) != counted {
					t.Fatalf("%s rule %d, byte %d of a counter: %v, but equal: %v", chain, i, at, counted, !counted)
				}
			}
			if im.is(nftRule{exprs: r.exprs, user: []byte("x")}) || im.is(nftRule{exprs: r.exprs[:len(r.exprs)-4], user: r.user}) {
				t.Errorf("%s rule %d equals one with another comment or end", chain, i)
			}
		}
	}
}

// verdictRule is a native rule with a verdict.
func verdictRule(code uint32, chain string) nftRule {
	var w nftWriter
	elem := w.nested(unix.NFTA_LIST_ELEM)
	w.text(unix.NFTA_EXPR_NAME, "immediate")
	data := w.nested(unix.NFTA_EXPR_DATA)
	w.number32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
	imm := w.nested(unix.NFTA_IMMEDIATE_DATA)
	verdict := w.nested(unix.NFTA_DATA_VERDICT)
	w.number32(unix.NFTA_VERDICT_CODE, code)
	if chain != "" {
		w.text(unix.NFTA_VERDICT_CHAIN, chain)
	}
	for _, start := range []int{verdict, imm, data, elem} {
		w.endAttr(start)
	}
	return nftRule{exprs: w.data}
}

// The rules of harmless are those of the ordinary Diff.
func TestF03_NftHarmless(t *testing.T) {
	const accept = 1
	jump := func(to string) nftRule { return verdictRule(nftJumpCode, to) }
	chains := map[string][]nftRule{
		"bans":    {verdictRule(nftDropCode, ""), verdictRule(nftReturnCode, "")},
		"empty":   nil,
		"accepts": {verdictRule(accept, "")},
		"deep":    {jump("deeper")},
		"deeper":  {jump("deepest")},
		"deepest": {jump("bans")},
		"loop":    {jump("loop")},
		"away":    {verdictRule(nftGotoCode, "bans")},
	}
	for name, tc := range map[string]struct {
		rule nftRule
		want bool
	}{
		"drop":               {verdictRule(nftDropCode, ""), true},
		"accept":             {verdictRule(accept, ""), false},
		"return":             {verdictRule(nftReturnCode, ""), false},
		"nothing":            {nftRule{}, false},
		"bans":               {jump("bans"), true},
		"empty chain":        {jump("empty"), true},
		"chain that accepts": {jump("accepts"), false},
		"goto":               {verdictRule(nftGotoCode, "bans"), false},
		"chain with goto":    {jump("away"), false},
		"three deep":         {jump("deeper"), true},
		"four deep":          {jump("deep"), false},
		"loop":               {jump("loop"), false},
		"one of ours":        {jump(ChainIn), false},
		"drop, then accept":  {nftRule{exprs: slices.Concat(verdictRule(nftDropCode, "").exprs, verdictRule(accept, "").exprs)}, false},
		"expression unheard of": {nftRule{exprs: slices.Concat(
			[]byte("\x14\x00\x01\x80\x08\x00\x01\x00fwd\x00\x08\x00\x02\x80\x00\x00\x00\x00"), verdictRule(nftDropCode, "").exprs)}, false},
	} {
		got, err := tc.rule.harmless(0, func(chain string) ([]nftRule, error) { return chains[chain], nil })
		if got != tc.want || err != nil {
			t.Errorf("%s: harmless %v, error %v", name, got, err)
		}
	}
	if _, err := jump("x").harmless(0, func(string) ([]nftRule, error) { return nil, errNftAgain }); !errors.Is(err, errNftAgain) {
		t.Errorf("a chain that cannot be read: %v", err)
	}
}

// reflexBed is an image of one table, and what the kernel has.
type reflexBed struct {
	image *image
	found [3]nftTable
}

func newReflexBed(t testing.TB) *reflexBed {
	t.Helper()
	chains := recordedRules(t)
	table := &imageTable{id: FilterIPv4}
	found := nftTable{exists: true}
	for _, name := range []string{ChainIn, ChainMetadata} {
		c := imageChain{name: name}
		for i, r := range chains[name] {
			c.rules = append(c.rules, newImageRule(r, fmt.Sprintf("%s rule %d", name, i)))
		}
		table.chains = append(table.chains, c)
		found.chains = append(found.chains, nftChain{name: name, rules: chains[name]})
	}
	hook := nftHook{number: 1, kind: "filter"}
	table.bases = []imageBase{{name: "INPUT", hook: hook, jump: newImageRule(chains["INPUT"][3], "the jump")}}
	found.chains = append(found.chains, nftChain{name: "INPUT", hook: hook, rules: chains["INPUT"]})
	b := &reflexBed{image: &image{}}
	b.image.tables[FilterIPv4], b.found[FilterIPv4] = table, found
	return b
}

// compare returns the plan and the batch, a line for each message.
func (b *reflexBed) compare(t testing.TB) (Plan, []string, error) {
	t.Helper()
	var w nftWriter
	e := edits{batch: &w, chain: func(TableID, string, uint32) ([]nftRule, error) { return nil, nil }}
	if err := e.compare(b.image.tables[FilterIPv4], &b.found[FilterIPv4], 7); err != nil {
		return Plan{}, nil, err
	}
	if e.plan.Empty() {
		return e.plan, nil, nil // and nothing is sent
	}
	var list []string
	names := map[uint16]string{nftBatchBegin: "begin", nftBatchEnd: "end", nftSubsystem<<8 | unix.NFT_MSG_NEWTABLE: "table",
		nftSubsystem<<8 | unix.NFT_MSG_NEWCHAIN: "chain", nftSubsystem<<8 | unix.NFT_MSG_NEWRULE: "rule", nftSubsystem<<8 | unix.NFT_MSG_DELRULE: "remove"}
	for data := w.data; len(data) > 0; {
		m, rest, err := parseNftMessage(data)
		if err != nil {
			t.Fatal(err)
		}
		line := names[m.kind]
		switch line {
		case "chain":
			line += " " + string(nftName(nftAttr(m.body, unix.NFTA_CHAIN_NAME))) + " " + parseNftHook(m.body).kind
		case "rule", "remove":
			chain, r := parseNftRule(m.body)
			line += " " + string(chain) + " " + b.textOf(r)
			if before := nftAttr(m.body, unix.NFTA_RULE_POSITION); before != nil {
				line += fmt.Sprintf(" before %d", binary.BigEndian.Uint64(before))
			}
			if r.handle != 0 {
				line += fmt.Sprint(r.handle)
			}
		}
		if m.flags&unix.NLM_F_ACK != 0 {
			line += " ack"
		}
		list, data = append(list, line), rest
	}
	if list[0] != "begin" || list[len(list)-1] != "end" || nftNumber(nftAttr(w.data[unix.NLMSG_HDRLEN+nfgenSize:], nftBatchGenID)) != 7 {
		t.Fatalf("no batch for the generation: %q", list)
	}
	return e.plan, list[1 : len(list)-1], nil
}

func (b *reflexBed) textOf(r nftRule) string {
	for _, table := range b.image.tables {
		if table != nil {
			if text, ok := table.textOf(r); ok {
				return text
			}
			if table.bases[0].jump.is(r) {
				return table.bases[0].jump.text
			}
		}
	}
	return ""
}

func TestReflexEdits(t *testing.T) {
	rule := func(n int) string { return fmt.Sprintf("rule %s %[1]s rule %d", ChainMetadata, n) }
	for _, tc := range []struct {
		name   string
		change func(table *nftTable, meta, input *nftChain)
		batch  []string
		plan   []string
	}{
		{"nothing", func(*nftTable, *nftChain, *nftChain) {}, nil, nil},
		{"counted", func(_ *nftTable, meta, _ *nftChain) {
			meta.rules[0].exprs = slices.Clone(meta.rules[0].exprs)
			fillCounters(meta.rules[0].exprs, 9)
		}, nil, nil},
		{"removed", func(_ *nftTable, meta, _ *nftChain) { meta.rules = slices.Delete(meta.rules, 1, 3) },
			[]string{rule(1) + " before H3", rule(2) + " before H3 ack"}, []string{"ipv4 chain PGHARDEND-META: differs", "+ PGHARDEND-META rule 1", "+ PGHARDEND-META rule 2"}},
		{"the last one removed", func(_ *nftTable, meta, _ *nftChain) { meta.rules = meta.rules[:5] }, []string{rule(5) + " ack"}, []string{"+ PGHARDEND-META rule 5"}},
		{"flushed", func(_ *nftTable, meta, _ *nftChain) { meta.rules = nil },
			[]string{rule(0), rule(1), rule(2), rule(3), rule(4), rule(5) + " ack"}, []string{"+ PGHARDEND-META rule 0", "+ PGHARDEND-META rule 5"}},
		{"added", func(_ *nftTable, meta, input *nftChain) {
			r := verdictRule(1, "")
			r.handle = 99
			meta.rules = slices.Insert(slices.Clone(meta.rules), 0, r)
		}, []string{"remove PGHARDEND-META 99 ack"}, []string{"- a rule that is not ours (handle 99)"}},
		{"deleted", func(_ *nftTable, meta, _ *nftChain) { *meta = nftChain{name: meta.name, absent: true} },
			[]string{"chain PGHARDEND-META ", rule(0), rule(1), rule(2), rule(3), rule(4), rule(5) + " ack"}, []string{"ipv4 chain PGHARDEND-META: missing"}},
		{"jump removed", func(_ *nftTable, _, input *nftChain) { input.rules = slices.Delete(input.rules, 3, 4) },
			[]string{"rule INPUT the jump ack"}, []string{"ipv4 jump INPUT: missing", "+ -I INPUT 1 the jump"}},
		{"accept on top", func(_ *nftTable, _, input *nftChain) {
			input.rules = slices.Insert(slices.Delete(slices.Clone(input.rules), 4, 5), 0, input.rules[4])
		}, []string{"remove INPUT HJ", "rule INPUT the jump ack"}, []string{"ipv4 jump INPUT: not in first place", "foreign rule above our jump, kept: ipv4 -A INPUT (rule with handle "}},
		{"second jump", func(_ *nftTable, _, input *nftChain) { input.rules = append(slices.Clone(input.rules), input.rules[3]) },
			[]string{"remove INPUT HJ", "remove INPUT HJ", "rule INPUT the jump ack"}, []string{"there more than once"}},
		{"dormant", func(table *nftTable, _, _ *nftChain) { table.flags = unix.NFT_TABLE_F_DORMANT }, []string{"table ack"}, []string{"ipv4 table filter: dormant"}},
		{"built-in chain deleted", func(_ *nftTable, _, input *nftChain) { *input = nftChain{name: "INPUT", absent: true} },
			[]string{"chain INPUT filter", "rule INPUT the jump ack"}, []string{"ipv4 jump INPUT: missing"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newReflexBed(t)
			table := &b.found[FilterIPv4]
			handles := strings.NewReplacer("H3", fmt.Sprint(table.chains[1].rules[3].handle), "HJ", fmt.Sprint(table.chains[2].rules[3].handle))
			tc.change(table, &table.chains[1], &table.chains[2])
			p, batch, err := b.compare(t)
			if err != nil {
				t.Fatal(err)
			}
			want := slices.Clone(tc.batch)
			for i := range want {
				want[i] = handles.Replace(want[i])
			}
			if len(tc.batch) > 0 && !slices.Equal(batch, want) {
				t.Errorf("batch:\n got %q\nwant %q", batch, want)
			}
			if p.Empty() != (len(tc.plan) == 0) {
				t.Errorf("plan:\n%s", p)
			}
			for _, text := range tc.plan {
				if !strings.Contains(p.String(), text) {
					t.Errorf("the plan does not say %q:\n%s", text, p)
				}
			}
		})
	}
}

// After nft flush ruleset all is made anew: tables, then chains, then rules.
func TestF07_ReflexEditsWithoutTable(t *testing.T) {
	b := newReflexBed(t)
	b.found[FilterIPv4].exists = false
	for i := range b.found[FilterIPv4].chains {
		c := &b.found[FilterIPv4].chains[i]
		c.rules, c.hook, c.absent = nil, nftHook{}, true
	}
	p, batch, err := b.compare(t)
	if err != nil || len(batch) != 1+3+12+1 || !slices.Equal(batch[:4], []string{"table", "chain PGHARDEND-IN ", "chain PGHARDEND-META ", "chain INPUT filter"}) {
		t.Errorf("error %v, batch %q", err, batch)
	}
	if !strings.Contains(p.String(), "ipv4 table filter: missing") || !strings.Contains(p.String(), "ipv4 chain PGHARDEND-IN: missing") {
		t.Errorf("plan:\n%s", p)
	}
	b.found[FilterIPv4].chains[2] = nftChain{name: "INPUT", hook: nftHook{number: 1, priority: 300, kind: "filter"}}
	if _, _, err := b.compare(t); err == nil || !strings.Contains(err.Error(), "not hooked as iptables would") {
		t.Errorf("a built-in chain at another place: error %v", err)
	}
}

// The kernel's messages are not ours to trust: whatever they hold, what was read
// can be compared and written.
func FuzzNftMessages(f *testing.F) {
	data := read(f, nftRulesFile)
	for len(data) > 0 {
		m, rest, err := parseNftMessage(data)
		if err != nil {
			f.Fatal(err)
		}
		if size := len(data) - len(rest); size < 800 {
			f.Add(data[:size])
		}
		_, data = m, rest
	}
	f.Add([]byte("\x24\x00\x00\x00\x02\x00\x00\x03\x01\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\x10\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for len(data) > 0 {
			m, rest, err := parseNftMessage(data)
			if err != nil {
				return
			}
			if len(rest) >= len(data) {
				t.Fatal("no progress")
			}
			data = rest
			_, _ = m.answer()
			_, _ = generationOf(m)
			_ = parseNftHook(m.body)
			_, r := parseNftRule(m.body)
			im := newImageRule(r, "")
			if !im.is(r) {
				t.Error("a rule is not its own image")
			}
			_, _ = r.harmless(0, func(string) ([]nftRule, error) { return []nftRule{r}, nil })
		}
	})
}

// A foreign rule that was above our jump already may stay, unless it leads to a
// chain, which may hold other rules by now.
func TestF03_ImageKnows(t *testing.T) {
	accept, bans := verdictRule(1, ""), verdictRule(nftJumpCode, "bans")
	jump := recordedRules(t)["INPUT"][3]
	target := Rule{tokens: []string{"-j", ChainIn}}
	base, err := imageOfBase(Jump{From: "INPUT", Rule: target}, []nftRule{accept, bans, jump, verdictRule(nftReturnCode, "")})
	if err != nil {
		t.Fatal(err)
	}
	if !base.knows(accept) || base.knows(bans) || base.knows(verdictRule(nftReturnCode, "")) || !base.jump.is(jump) {
		t.Errorf("knows %v, %v, %v", base.knows(accept), base.knows(bans), base.knows(verdictRule(nftReturnCode, "")))
	}
	if _, err := imageOfBase(Jump{From: "INPUT", Rule: target}, []nftRule{accept}); err == nil {
		t.Error("an image without a jump")
	}
}
