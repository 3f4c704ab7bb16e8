// Package reconcile is the loop that keeps the kernel at the desired state:
// observe, diff, apply, observe again.
//
// # API
//
// A Source yields the desired state as a list of Resources. A Resource knows
// how to compare itself with the kernel (Plan) and how to put it right (Apply).
// New makes a Loop, Run drives it, Trigger and Request ask for a pass, Snapshot
// says how things stand.
//
// # Design
//
// Everything that may call for a pass is a Trigger: the timer, a signal, a
// request from the control socket; kernel events join them the same way.
// Triggers that arrive during a pass are served by one further pass, since a
// pass always starts from a fresh observation. A Source whose input is in flux
// asks to be called again soon (Desired.Recheck).
//
// A pass trusts nothing remembered but the times in its events. A resource
// whose plan is not empty is applied and planned again; what still differs then
// is an error, which is reported and tried again later with a growing delay. It
// is never a loop of its own, so another tool that fights us cannot keep the
// daemon busy.
//
// When Run is told to end amid a pass, a write that has begun is finished and
// read back, and nothing is published of the rest.
//
// # Thread safety
//
// Run's goroutine is the only one that calls Source and Resource, and so the
// only writer to the kernel. All other methods may be called from anywhere.
package reconcile
