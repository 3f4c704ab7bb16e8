// Package agent wires the parts together: files → desired state → the loop, the
// supervisors and the control socket.
//
// # API
//
// Build is the pure core: (config, peers, extra) → Desired, where Extra is what
// the services say of themselves and the openings. Load reads both files. Run is
// the daemon; Plan, Apply, Verify, Explain and Teardown are the one-shot jobs
// behind the commands of the same names. ServiceSpec is what `exec` needs, and
// RuntimeDir where the daemon is to be asked, also while its files are bad.
//
// # Design
//
// The daemon reads its files through a fileSource, which owns the question
// "which input counts": the newest good one. It keeps a copy in state_dir for
// the next boot and one in runtime_dir for the launch stage, so that a service
// can restart while the file on disk is broken.
//
// The loop keeps five resources, in this order: sysctls, rules and sets, the
// connections that the kernel tracks, and of services the limits of their processes
// and the modes of their files. Connections are not looked at in each pass, but
// when something may have changed what is allowed: a new desired state, rules
// that were put back, an opening that ended; and with each full look.
//
// What the loop asks in each tick runs no command and reads no file of a disk:
// ruleWatch compares nf_tables' generation or the legacy tables' blobs, and the sets;
// the fileSource compares what lstat says of all that its files' paths lead through
// (trail), unless inotify vouches for that (fileWatch). With nf_tables, alarms turns the kernel's notifications of foreign
// commits into alarms, which ruleWatch answers from its image of the rules. Where that
// is permitted, a firewall.Sentry has it answer at once, on the CPU of who made the
// commit, and the loop reports what came of it: a moment later the kernel would keep
// us waiting for some 10 ms. It is the one writer beside the loop's goroutine, and
// writes only what the image holds, of which there is none during Apply. With
// legacy tables audit records do that, if auditing is on. fileWatch hears of
// files by inotify. Each of these may fail, which costs at most one interval.
//
// How many connections a source may have is derived from what the service takes.
// PostgreSQL is asked once after each start, by its own program, confined like
// itself; pgpool's configuration file is read. A pass waits for that a second at
// most: the service's user has a say in how long it takes. The daemon keeps the
// answers in runtime_dir/facts.json, for the commands and for the next daemon.
//
// One errgroup joins all goroutines: the loop, the control server, the notifier,
// the journal, metrics, what listens for changes, and one supervisor per service.
// Supervisors start nothing before the first pass that left the host's own
// resources as desired.
//
// A lock on runtime_dir/lock makes sure that one process at a time writes to the kernel:
// the daemon for as long as it lives, or a one-shot command while none does.
//
// The packaged unit leaves the daemon less than its repairs take: what it may not do,
// repairs asks of another unit, which runs Repair (delegate.go, repair.go).
//
// # Thread safety
//
// Run's parts share atomics, channels, and what has a mutex and says so: the list
// of supervisors, openings, the journal, fileWatch, and what is put back while the
// same resource is being looked at (ruleWatch and looks). The one-shot functions
// may be called from one goroutine at a time.
package agent
