// Package testbed makes small networks of "VMs" out of Linux namespaces, for tests and for the demo.
//
// # What a bed is
//
// New builds one switch namespace with a bridge per subnet and one set of namespaces per host, joined by veth pairs:
//
//	bed, err := testbed.New(ctx, "slice", []testbed.HostSpec{
//		{Name: "pg-0", Addresses: []string{"10.20.1.10/24", "fd00:20:1::10/64"}},
//		{Name: "sibling", Addresses: []string{"10.20.1.66/24", "fd00:20:1::66/64"}},   // same subnet: the threat
//		{Name: "control", Addresses: []string{"10.0.0.5/24", "fd00:10::5/64"}},        // behind the router
//	})
//	defer bed.Close()
//
// Hosts that share a subnet share a bridge, so nothing but their own netfilter stands between them. The switch namespace
// is also the router of every subnet: the first address of each (10.20.1.1, fd00:20:1::1) and the link-local fe80::1, which
// is the hosts' IPv6 gateway as it would be with router advertisements. The router filters nothing.
//
// A host has its own network, mount, IPC and UTS namespaces: its own interfaces, rules, ipsets and conntrack table, its own
// /run (hence its own xtables lock), /sys and System V shared memory, and its own host name. It shares process ids, users and
// the disk with the machine. The machine's own network namespace is never changed; the only traces outside are the names in
// /run/netns and two directories, all of them removed by Close.
//
// # How probes tell the truth
//
// "No answer" alone proves nothing: the packet may never have been sent, or the answer may have been lost. Host.Send
// therefore captures at both ends. Outcome.Arrived counts what reached the target's interface (before its netfilter sees
// it), Outcome.Answers is everything that came back to the sender's interface (before the sender's netfilter), and
// Outcome.Denied is what the sender's own kernel refused to send. Dropped by the target means: Arrived all, Answers none.
// A capture that lost packets is an error, not a smaller number. Host.Connect, Host.UDPEcho and Host.Ping use ordinary
// sockets and so say what a program on that host experiences, behind both firewalls.
// Hosts do not rate-limit their own ICMP errors (the kernel's default would look like a firewall).
//
// A server may keep silent. Outcome.Delivered, and Host.Deliveries for any protocol, count what got past the target's
// netfilter to where sockets are. Bed.SendAll tells the fate of thousands of probes between any hosts in seconds;
// Host.ConnectAll is Connect for many. Host.Flood sends at a bounded rate in the background and counts; Host.Stream
// shows whether anything of a peer was lost meanwhile.
//
// # An instance
//
// NewInstance makes a tenant's five VMs with a pghardend on each: a primary and its streaming standby, and three pgpools
// with watchdog, heartbeat and health checks, all started by their agents; beside them a sibling tenant on the same subnet,
// a client, the control plane and a metadata service:
//
//	in, err := testbed.NewInstance(ctx, testbed.InstanceSpec{Services: true, Backend: "nft"})
//	defer in.Close()
//	err = in.AwaitReady(ctx)
//
// The servers trust the superuser from everywhere in the bed, the sibling included: what keeps it out is netfilter alone,
// and InstanceSpec.Unprotected shows it, as the control of an experiment. Failover loses the primary's node and waits for
// the standby's promotion; Rejoin brings the lost one back as a standby.
//
// # A systemd
//
// Booted runs a script on an overlay of the machine's own Debian with a systemd of its own. Its kernel is the machine's, so units confine
// as they do anywhere, but for what needs BPF programs of control groups (IPAddressDeny=) or hardware.
//
// # Lifetime
//
// Everything a process makes carries its run id; a lock file under /run/pghardend-testbed is held with flock for as long as
// the process lives. Sweep, which the first New of a process calls, removes what runs without a holder left behind, and
// touches no live one. Main wraps a main function or TestMain so that Ctrl-C cleans up as well.
//
// # Thread safety
//
// All methods may be called from several goroutines. Functions run by Host.Do stay on one OS thread that is inside the
// host's network namespace; goroutines they start are not.
//
// Nearly everything here needs root; the tools used are ip (iproute2), nsenter and setpriv (util-linux), cp (coreutils) and,
// for the PostgreSQL fixture, PostgreSQL's server package.
package testbed
