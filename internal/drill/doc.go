// Package drill attacks a scratch copy of a service from inside the service's own
// confinement, and reports what stopped each attempt.
//
// # API
//
// [Run] prepares a scratch area, starts this program again inside it and returns
// a [Report]. [Box] is that other side: the first process of its own process,
// mount, network, IPC and UTS namespaces, in which everything happens and with
// which everything ends. Package act runs behind the confinement, as the compromised
// program of the service. [Attempts] lists what is tried.
//
// # Design
//
// An attempt is run in several boxes, which differ by their layers alone:
//
//   - the control: what the attempt presupposes and nothing else. It must succeed,
//     or the attempt says nothing and is reported as not applicable;
//   - the whole: every layer of the service. This is the result;
//   - one layer at a time on top of the control, until one fails in the way the
//     whole failed: at the same step with the same error. It is named as the layer
//     that stopped the attempt. Where several do, the one that the kernel asks first
//     is named. To ablate is to go on through all layers, which shows those that would have
//     stopped it alone.
//
// So what is said of layers was observed in this run. Nothing is looked up in a table.
//
// What presupposes the service's user (to become root, to attack a process of the
// same user, everything in SQL) has the layer dac in its control too; all else is
// tried as root first.
//
// # Safety
//
// The drill has a user of its own, who exists in its mount namespace only, so that
// counts and permissions by user are not shared with the host's services. Its
// network namespace leads to a second one of its own and nowhere else. The files
// are below one directory, which only root and that user can enter. When the
// first process ends, for whatever reason, the kernel ends all others and removes
// the namespaces with their mounts, rules and shared memory; the directory is
// removed by Run, or by the next drill if Run was killed. Attempts that would do
// harm if they succeeded stop where permission is checked.
package drill
