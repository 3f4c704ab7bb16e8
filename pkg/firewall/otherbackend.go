package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// OtherRules is what the backend that is not in use holds. A packet passes both,
// and what one of them drops stays dropped whatever the other says.
type OtherRules struct {
	Backend  string // that of these rules
	Families [2]OtherFamily
}

// OtherFamily is what one family has there, in all tables that iptables knows.
type OtherFamily struct {
	Rules  int
	Tables []string // those with rules
	Ours   bool     // chains of ours are among them, from a time with that backend
	Drops  bool     // the policy of INPUT or OUTPUT is DROP
}

// Empty says whether there is nothing that could decide about a packet.
func (o OtherRules) Empty() bool {
	return !slices.ContainsFunc(o.Families[:], func(f OtherFamily) bool { return f.Rules > 0 || f.Ours || f.Drops })
}

// Serious says whether the node may behave otherwise than our rules say: chains
// of ours that nobody keeps up to date, or a policy that drops what they accept.
func (o OtherRules) Serious() bool {
	return slices.ContainsFunc(o.Families[:], func(f OtherFamily) bool { return f.Ours || f.Drops })
}

// String says what it means and what to do; "" if there is nothing.
func (o OtherRules) String() string {
	if o.Empty() {
		return ""
	}
	var holds, saves, drops []string
	ours := false
	for _, fam := range Families {
		f, command := o.Families[fam], fam.command()+"-"+o.Backend
		if f.Rules > 0 {
			holds = append(holds, fmt.Sprintf("%d %s rules (%s)", f.Rules, fam, strings.Join(f.Tables, ", ")))
			saves = append(saves, "`"+command+"-save`")
		}
		if f.Drops {
			drops = append(drops, "`"+command+"`")
		}
		ours = ours || f.Ours
	}
	text := "the other backend of iptables, " + o.Backend + ", is in use as well"
	if len(holds) > 0 {
		text += ": it holds " + strings.Join(holds, " and ") + "; packets pass both, and what either drops is dropped; look with " +
			strings.Join(saves, " and ") + " and move what you need to one backend"
	}
	if ours {
		text += "; chains of ours are there from an earlier firewall.backend and are not kept: stop the daemon, remove them by `pghardend teardown` and start it again"
	}
	if len(drops) > 0 {
		text += "; its policy drops what our rules accept: set it by -P INPUT ACCEPT and -P OUTPUT ACCEPT of " + strings.Join(drops, " and ")
	}
	return text
}

// command is the family's iptables.
func (f Family) command() string {
	if f == IPv6 {
		return "ip6tables"
	}
	return "iptables"
}

// iptablesTables are all the tables that iptables has; in nf_tables those of
// other names are nft's own business.
var iptablesTables = []string{"filter", "nat", "mangle", "raw", "security"}

// nodeHooks are those whose policy decides about what a node itself gets and
// sends. FORWARD is left out: docker sets its policy to DROP.
var nodeHooks = []uint32{unix.NF_INET_LOCAL_IN, unix.NF_INET_LOCAL_OUT}

// OtherBackend looks for rules in the backend that is not in use. It takes no
// command, and a legacy table that is not there is not made by looking.
func (f *Firewall) OtherBackend(ctx context.Context) (OtherRules, error) {
	if err := ctx.Err(); err != nil {
		return OtherRules{}, err
	}
	o := OtherRules{Backend: BackendLegacy}
	look := lookLegacy
	if f.backend == BackendLegacy {
		o.Backend, look = BackendNFT, lookNft
	}
	var errs []error
	for _, fam := range Families {
		var err error
		if o.Families[fam], err = look(fam); err != nil {
			errs = append(errs, fmt.Errorf("cannot look for %s rules of the backend %s: %w", fam, o.Backend, err))
		}
	}
	return o, errors.Join(errs...)
}

func lookLegacy(fam Family) (o OtherFamily, err error) {
	s, err := openLegacy(fam)
	if s == nil || err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	names, err := s.tables()
	if err != nil {
		return o, err
	}
	for line := range bytes.Lines(names) {
		table := string(bytes.TrimSuffix(line, []byte("\n")))
		blob, err := s.read(table)
		if err != nil {
			return o, err
		}
		c, err := blob.content()
		if err != nil {
			return o, err
		}
		o.add(table, c.rules)
		o.Ours = o.Ours || slices.ContainsFunc(c.chains, isOurs)
		for _, hook := range nodeHooks {
			o.Drops = o.Drops || table == "filter" && c.drops[hook]
		}
	}
	return o, nil
}

func isOurs(chain string) bool { return strings.HasPrefix(chain, chainPrefix) }

func (o *OtherFamily) add(table string, rules int) {
	if rules > 0 {
		o.Rules += rules
		o.Tables = append(o.Tables, table)
	}
}

func lookNft(fam Family) (o OtherFamily, err error) {
	s, err := openNftSocket()
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	s.request(unix.NFT_MSG_GETCHAIN, fam.nfproto())
	err = s.dump(func(m nftMessage) error {
		name := string(nftName(nftAttr(m.body, unix.NFTA_CHAIN_NAME)))
		switch table := string(nftName(nftAttr(m.body, unix.NFTA_CHAIN_TABLE))); {
		case slices.Contains(iptablesTables, table) && isOurs(name):
			o.Ours = true
		case table == "filter" && nftDropsBy(m.body):
			o.Drops = true
		}
		return nil
	})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return OtherFamily{}, nil // a kernel without nf_tables
	}
	if err != nil {
		return o, err
	}
	rules := map[string]int{}
	s.forget()
	s.request(unix.NFT_MSG_GETRULE, fam.nfproto())
	err = s.dump(func(m nftMessage) error {
		rules[string(nftName(nftAttr(m.body, unix.NFTA_RULE_TABLE)))]++
		return nil
	})
	for _, table := range iptablesTables {
		o.add(table, rules[table])
	}
	return o, err
}

// nfproto is the family's number in netfilter.
func (f Family) nfproto() uint8 {
	if f == IPv6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

// nftDropsBy says whether a chain of that message is a base chain for the node's
// own packets whose policy is to drop.
func nftDropsBy(chain []byte) bool {
	hook := parseNftHook(chain)
	return hook.kind != "" && slices.Contains(nodeHooks, hook.number) && hook.policy == nftDropCode
}
