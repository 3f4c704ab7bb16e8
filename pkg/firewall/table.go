package firewall

// TableID is a table of the kernel that holds rules of ours.
type TableID int

// The tables in the order of every [3]T in this package. Those of a filter table
// are the numbers of the families. IPv4 needs no raw table: it has the sysctl
// rp_filter, and IPv6 has none.
const (
	FilterIPv4 = TableID(IPv4)
	FilterIPv6 = TableID(IPv6)
	RawIPv6    = TableID(2)
)

var tableIDs = [...]TableID{FilterIPv4, FilterIPv6, RawIPv6}

func (id TableID) family() Family {
	if id == FilterIPv4 {
		return IPv4
	}
	return IPv6
}

// name is what iptables calls the table.
func (id TableID) name() string {
	if id == RawIPv6 {
		return "raw"
	}
	return "filter"
}

func (id TableID) String() string {
	if id == RawIPv6 {
		return id.family().String() + " raw"
	}
	return id.family().String()
}

// builtins are the table's chains that packets enter by.
func (id TableID) builtins() []string {
	if id == RawIPv6 {
		return []string{"PREROUTING", "OUTPUT"}
	}
	return []string{"INPUT", "OUTPUT", "FORWARD"}
}

// title is a chain's name for people: the filter table goes without saying.
func (id TableID) title(chain string) string {
	if id == RawIPv6 {
		return id.name() + " " + chain
	}
	return chain
}
