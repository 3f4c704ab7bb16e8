package learn

// Flags of a rule.
const (
	ruleArgs     = 1 << iota // arguments matter, or are looked at
	ruleIsZero               // of the first one only whether it is 0
	rulePrctl                // the second one matters with PR_CAP_AMBIENT only
	ruleLooksAt              // names a path, an address, or the end of the process
	prCapAmbient = 47        // PR_CAP_AMBIENT
)

// rule says which bits of the first three arguments of a call are recorded. None
// of the calls that PostgreSQL makes all the time has one.
type rule struct {
	mask  [3]uint64
	flags uint64
}

const (
	all     = ^uint64(0)
	word    = 1<<32 - 1
	protRWX = 7
	// SOCK_TYPE_MASK, without SOCK_CLOEXEC and SOCK_NONBLOCK.
	sockType = 15
	// Without the signal for the parent.
	cloneFlags = all &^ 0xff
)

// argumentRules by the name of the call: those by which profiles tell harmless
// from harmful, and no pointers.
var argumentRules = map[string]rule{
	"socket":        {[3]uint64{all, sockType, all}, ruleArgs},
	"socketpair":    {[3]uint64{all, sockType, all}, ruleArgs},
	"clone":         {[3]uint64{cloneFlags}, ruleArgs},
	"unshare":       {[3]uint64{all}, ruleArgs},
	"setns":         {[3]uint64{0, all}, ruleArgs},
	"prctl":         {[3]uint64{all, all}, ruleArgs | rulePrctl},
	"arch_prctl":    {[3]uint64{all}, ruleArgs},
	"ioctl":         {[3]uint64{0, word}, ruleArgs},
	"fcntl":         {[3]uint64{0, word}, ruleArgs},
	"mmap":          {[3]uint64{0, 0, protRWX}, ruleArgs},
	"mprotect":      {[3]uint64{0, 0, protRWX}, ruleArgs},
	"pkey_mprotect": {[3]uint64{0, 0, protRWX}, ruleArgs},
	"shmat":         {[3]uint64{0, 0, all}, ruleArgs},
	"personality":   {[3]uint64{word}, ruleArgs},
	"prlimit64":     {[3]uint64{all}, ruleArgs | ruleIsZero},
}

// pathArg is an argument that is a path, and the one it is relative to; -1 is
// the working directory.
type pathArg struct {
	path, dirFD int
	access      Access
	flags       int // the argument with the flags of open(2); 0: not opened; inStruct
}

const (
	// inStruct: the flags are in the structure that the third argument points to.
	inStruct = -1
	// moves is no access: the working directory changes.
	moves Access = "moves"
	// opens is whatever the flags say.
	opens Access = "opens"
)

// pathCalls are those that open files, change directories, or the working directory.
// Programs are seen when they are executed.
var pathCalls = map[string][]pathArg{
	"unlink":    {{0, -1, Write, 0}},
	"unlinkat":  {{1, 0, Write, 0}},
	"rmdir":     {{0, -1, Write, 0}},
	"mkdir":     {{0, -1, Write, 0}},
	"mkdirat":   {{1, 0, Write, 0}},
	"mknod":     {{0, -1, Write, 0}},
	"mknodat":   {{1, 0, Write, 0}},
	"truncate":  {{0, -1, Write, 0}},
	"rename":    {{0, -1, Write, 0}, {1, -1, Write, 0}},
	"renameat":  {{1, 0, Write, 0}, {3, 2, Write, 0}},
	"renameat2": {{1, 0, Write, 0}, {3, 2, Write, 0}},
	"link":      {{0, -1, Write, 0}, {1, -1, Write, 0}},
	"linkat":    {{1, 0, Write, 0}, {3, 2, Write, 0}},
	"symlink":   {{1, -1, Link, 0}},
	"symlinkat": {{2, 1, Link, 0}},
	"chdir":     {{0, -1, moves, 0}},
	"open":      {{0, -1, opens, 1}},
	"openat":    {{1, 0, opens, 2}},
	"openat2":   {{1, 0, opens, inStruct}},
	"creat":     {{0, -1, Write, 0}},
}
