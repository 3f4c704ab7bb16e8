// Package firewall turns the instance's flow matrix into this node's netfilter
// rules and keeps the kernel at them.
//
// # API
//
// The pure half needs no root and does no I/O:
//
//	ParseFlows  flows.yaml            → []Flow
//	Render      Spec (role, flows, members) → Ruleset
//	ParseSave   iptables-save output  → ObservedTable
//	ParseSets   ipset save output     → map[string]ObservedSet
//	Diff        Ruleset, Observed     → Plan
//
// The other half talks to the kernel through iptables, ip6tables and ipset:
// Open, (*Firewall).Observe and (*Firewall).Apply.
//
// # Design
//
// Rules are the policy, sets are the people. A rule names a role or a network;
// its addresses live in an ipset of type hash:net, one per family (pgh4-NAME,
// pgh6-NAME). The rule list is a function of role and flows alone, and a change
// of membership is one atomic set swap.
//
// Four chains of the filter table are ours (PGHARDEND-IN, -OUT, -FWD, -ICMP)
// together with one jump at the top of INPUT, OUTPUT and FORWARD. Everything
// else is foreign and is neither changed nor counted as drift, save for one
// thing: a foreign rule above our jump that could accept a packet makes the
// jump move back on top of it.
//
// ICMP is decided before "established": an echo stream becomes ESTABLISHED
// with its first reply, and a redirect that quotes a live connection is
// RELATED, so a plain established-first rule would wave both through without
// a limit. The established rule therefore comes first but leaves ICMP out.
//
// The kernel is the truth: Diff compares whole normalised rules and whole set
// contents with what iptables-save and ipset save print, never with memory or
// with a comment's hash. iptables-save is read instead of go-iptables' List
// since it is one snapshot of the table; go-iptables probes the tools. ipset's
// text is read instead of its netlink dump since the netlink library drops
// entry flags, and a member marked "nomatch" is drift like any other.
//
// A Plan is applied in three steps: sets are created and swapped, each family
// gets one iptables-restore --noflush transaction, stale sets are destroyed.
// At no point between does a packet pass that neither the old nor the new
// state lets pass.
//
// # Thread safety
//
// Values are immutable once returned. A Firewall may be used by several
// goroutines for Observe; Apply must have a single caller at a time, which is
// the reconcile loop.
package firewall
