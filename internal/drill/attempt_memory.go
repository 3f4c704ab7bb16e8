package drill

import "strconv"

// A bounded attempt takes mostMemory; the group of the drill has groupMemory where the service has a bound
// of its own, so that nobody has to use up all that a service may have.
const (
	mostMemory  = 128 << 20
	GroupMemory = 48 << 20 // bytes
)

// memoryAttempts: memory of A51.
func memoryAttempts() []attempt {
	return []attempt{{
		row: "A51", name: "memory", does: "take memory without end (128 MiB at most)", base: asUser, bounded: true,
		fix: "set cgroup.memory_max of the service, and cgroup.mode to required", act: words("memory", strconv.Itoa(mostMemory)),
	}}
}
