package learn

// Access is what a file or directory was used for.
type Access string

// The kinds of access, in the words of Landlock policies (policies/landlock).
const (
	Read    Access = "read"
	Update  Access = "update" // written to, where it was
	Write   Access = "write"  // made, removed, renamed or truncated
	Link    Access = "link"
	Socket  Access = "socket"
	Execute Access = "execute"
)
