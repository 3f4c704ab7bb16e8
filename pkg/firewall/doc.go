// Package firewall turns the instance's flow matrix into this node's netfilter
// rules and keeps the kernel at them.
//
// # API
//
// The pure half needs no root and does no I/O:
//
//	ParseFlows  flows.yaml            → []Flow
//	Customise   []Flow, overrides     → []Flow, the rows in force
//	Render      Spec (role, flows, members …) → Ruleset
//	ParseSave   iptables-save output  → ObservedTable
//	ParseSets   ipset save output     → map[string]ObservedSet
//	Diff        Ruleset, Observed     → Plan
//
// The other half talks to the kernel, through iptables and ip6tables for rules
// and by netlink for sets: Open, (*Firewall).Observe, (*Firewall).Apply and
// Teardown. (*Firewall).SetsPeek and OpenLegacyPeek tell cheaply whether a set or
// a legacy table has changed, WatchCommits and OpenSentry hear of who changes nf_tables,
// OpenReflex puts rules back at once, Counters and OtherBackend report.
//
// # Design
//
// Rules are the policy, sets are the people. A rule names a role or a network;
// its addresses live in an ipset of type hash:net, one per family (pgh4-NAME,
// pgh6-NAME). The rule list is a function of role and flows alone. A change of
// many members is one atomic set swap; a few are changed in place, those who
// come before those who go.
//
// Five chains of the filter table are ours (PGHARDEND-IN, -OUT, -FWD, -ICMP,
// -META) together with one jump at the top of INPUT, OUTPUT and FORWARD, and one
// of IPv6's raw table (PGHARDEND-RPF) with its jump in PREROUTING. Everything
// else is foreign and is neither changed nor counted as drift, save for one
// thing: a foreign rule above our jump that could accept a packet makes the
// jump move back on top of it. What can only drop or log stays above, also in
// a chain of its own, as fail2ban has it: below us its bans would not count.
//
// ICMP is decided before "established": an echo stream becomes ESTABLISHED
// with its first reply, and a redirect that quotes a live connection is
// RELATED, so a plain established-first rule would wave both through without
// a limit. The established rule therefore comes first but leaves ICMP out.
//
// Connections older than the rules are unknown to conntrack. The next segment
// of a client is a new connection's as far as it can tell, and flows let it
// pass; rules by source port, which no SYN matches, do the same for a server's,
// in both directions. They open nothing, but a peer that may be connected to
// can have its bare ACKs answered by a reset.
//
// In scope siblings the first rule returns what is not to or from a sibling to
// the host's own firewall; the rest of the chain is the same. Ahead of it stands
// the guard of the metadata service, which is for every packet to the service.
//
// What one source may use of a service is a limit inside the rule that accepts,
// behind its set: only members are counted, and what is too much falls through
// to the drop. The kernel counts the connections that came by the rule since it
// was written; those from before are not among them.
//
// Openings are members, with a time, of sets that are always there: the kernel
// closes a hole at its end though nobody is there to do it. A member without a
// time, or with another than what is left of the opening, is drift.
//
// The kernel is the truth: Diff compares whole normalised rules and whole set
// contents with what iptables-save and the sets' netlink dumps say, never with
// memory or with a comment's hash. iptables-save is read instead of go-iptables'
// List since it is one snapshot of the table; go-iptables probes the tools. Sets
// are read and written by netlink, without a library since that drops entry
// flags, and a member marked "nomatch" is drift like any other; where the kernel
// does not let us, the command ipset does the same. Commands' texts and dumps hold
// foreign names and comments, which may look like anything: they are read as the
// tools write them and not as a shell would, and shown escaped.
//
// iptables-save does not say whether a table is dormant or a built-in chain hangs
// at its hook, and shows some of nft's rules as if they were others. With the nft
// backend the kernel is asked for that as well: see hook.go and lossy.go.
//
// Commands that do not depend on each other run side by side, but are started one
// after the other by the calling thread: its network namespace is theirs. Sockets
// are opened by it as well.
//
// A Plan is applied in three steps: sets are created, swapped and edited, each
// table gets one iptables-restore --noflush transaction, stale sets are destroyed.
// If flows and members change at once, the old rules meet the new members for
// the moment between the first two steps: a node of the instance may be let in
// by a row that is about to go, but never anyone who is in no set.
//
// A set of the wrong type cannot be swapped. While it is replaced the family's
// rules let established connections go on and open no new ones. If it cannot be
// replaced, since a foreign rule names it, the rules that name it stay away.
//
// # Thread safety
//
// Values are immutable once returned. A Firewall may be used by several
// goroutines for Observe, SetsPeek, Counters and Own; Apply must have a single caller at a
// time, which is the reconcile loop.
package firewall
