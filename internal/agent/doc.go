// Package agent wires the parts together: files → desired state → the loop, the
// supervisors and the control socket.
//
// # API
//
// Build is the pure core: (config, peers) → Desired. Load reads both files.
// Run is the daemon; Plan, Apply, Verify and Teardown are the one-shot jobs
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
// One errgroup joins all goroutines: the loop, the control server, the
// notifier and one supervisor per service. Supervisors wait for the loop's
// first clean pass before they start anything.
//
// A lock on runtime_dir/lock makes sure that one process at a time writes to the kernel:
// the daemon for as long as it lives, or a one-shot command while none does.
//
// # Thread safety
//
// Run's parts share only atomics and channels. The one-shot functions may be
// called from one goroutine at a time.
package agent
