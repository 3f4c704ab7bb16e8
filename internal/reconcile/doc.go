// Package reconcile is the loop that keeps the kernel at the desired state:
// observe, diff, apply, observe again.
//
// # API
//
// A Source yields the desired state as a list of Resources. A Resource knows
// how to compare itself with the kernel (Plan) and how to put it right (Apply).
// One that is a Peeker can be looked at cheaply, one that is Reflexive can put
// back at once what an alarm announces, and a Plan that is Unrepairable names
// what only a restart can put right. New makes a Loop, Run drives it, Trigger and
// Request ask for a pass, Alarm announces a change, Snapshot says how things stand.
//
// # Design
//
// Drift is seen in three ways. An Alarm comes within a millisecond of a change,
// and is answered by Reflex; a look at that resource follows when the burst is
// over, and has to find nothing. A tick peeks at everything and visits what seems
// to differ. The full look, at jittered times, trusts neither. Everything else
// that may call for a pass is a Trigger: a signal, a request from the control
// socket, a file. Triggers that arrive during a pass are served by one further
// pass, since a pass always starts from a fresh observation. A Source whose input
// is in flux asks to be called again soon (Desired.Recheck).
//
// A pass trusts nothing remembered but the times in its events. A resource
// whose plan is not empty is applied and planned again; what still differs then
// is an error, which is reported and tried again later with a growing delay. It
// is never a loop of its own: where alarms say that somebody else wrote meanwhile,
// it is written three times at most.
//
// Who fights us is answered with a delay that grows up to a bound, and named in a
// Problem (ProblemConflict); it is never given up.
//
// When Run is told to end amid a pass, a write that has begun is finished and
// read back, and nothing is published of the rest.
//
// # Thread safety
//
// Run's goroutine is the only writer to the kernel that this package knows: it
// alone calls Apply and Reflex. A resource that puts something back by itself has
// to keep that apart from both, and to return it from Reflex. Two writers would each take the other's half for drift, and a lock
// between them would have an alarm wait for as long as a look takes. Looks are
// what takes long, so Plan and Load run in a goroutine of their own, one at a
// time, while Run's waits for it and for alarms. A reflex may thus run during a
// look, whose outcome is thrown away if the reflex put something back. During
// Apply alarms wait.
//
// With Options.Every, a tick comes from another goroutine. That one peeks, and only
// while Run's waits for something to do: a lock, which Run's holds whenever it
// does anything, keeps them apart. A pass is always made by Run's.
//
// A resource and its source must therefore bear Reflex beside Plan or Load; Peek,
// Apply and the functions in Options run beside nothing. All other methods of
// Loop may be called from anywhere.
package reconcile
