package reach

import (
	"bufio"
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Protocols of a Probe.
const (
	TCP  = "tcp"
	UDP  = "udp"
	ICMP = "icmp" // an echo request
)

// Probe is one thing that is tried between two hosts.
type Probe struct {
	Proto string
	Port  uint16 // 0 for ICMP
}

func (p Probe) String() string {
	if p.Proto == ICMP {
		return ICMP
	}
	return fmt.Sprintf("%s/%d", p.Proto, p.Port)
}

// Probes are the columns of the matrix. 31337 stands for all the ports that nobody thought of.
var Probes = []Probe{
	{TCP, 22}, {TCP, 5432}, {TCP, 9999}, {TCP, 9898}, {TCP, 9000}, {TCP, 8008}, {TCP, 2379}, {TCP, 31337},
	{UDP, 53}, {UDP, 9694}, {UDP, 31337}, {ICMP, 0},
}

// Pair is who probes whom.
type Pair struct{ From, To string }

// Cell is one probe between two hosts in one family.
type Cell struct {
	Pair
	Probe Probe
	V6    bool
}

func (c Cell) String() string {
	family := "v4"
	if c.V6 {
		family = "v6"
	}
	return fmt.Sprintf("%s → %s %s %s", c.From, c.To, c.Probe, family)
}

// Matrix says for every pair which probes get through; it is the same for both families.
type Matrix map[Pair][]Probe

// Parse reads a matrix: a line for each ordered pair of hosts with the probes that get through, or all, or none. Every pair
// of the hosts that the text names must be there once.
func Parse(data []byte) (Matrix, error) {
	m := Matrix{}
	var hosts []string
	scanner := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; scanner.Scan(); n++ {
		line, _, _ := strings.Cut(scanner.Text(), "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if len(words) < 3 {
			return nil, fmt.Errorf("line %d: want FROM TO and what gets through, or none", n)
		}
		pair := Pair{words[0], words[1]}
		if _, twice := m[pair]; twice || pair.From == pair.To {
			return nil, fmt.Errorf("line %d: %s → %s is here twice or leads to itself", n, pair.From, pair.To)
		}
		probes, err := parseProbes(words[2:])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		m[pair] = probes
		hosts = append(hosts, pair.From, pair.To)
	}
	if err := scanner.Err(); err != nil {
		return nil, err
	}
	return m, m.complete(hosts)
}

func parseProbes(words []string) ([]Probe, error) {
	if len(words) == 1 && words[0] == "all" {
		return Probes, nil
	}
	if len(words) == 1 && words[0] == "none" {
		return nil, nil
	}
	var probes []Probe
	for _, w := range words {
		proto, port, _ := strings.Cut(w, "/")
		p := Probe{Proto: proto}
		if port != "" {
			n, err := strconv.ParseUint(port, 10, 16)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", w, err)
			}
			p.Port = uint16(n)
		}
		if !slices.Contains(Probes, p) {
			return nil, fmt.Errorf("%q is no probe of the matrix", w)
		}
		probes = append(probes, p)
	}
	return probes, nil
}

func (m Matrix) complete(hosts []string) error {
	slices.Sort(hosts)
	hosts = slices.Compact(hosts)
	for _, a := range hosts {
		for _, b := range hosts {
			if _, ok := m[Pair{a, b}]; !ok && a != b {
				return fmt.Errorf("the pair %s → %s is missing", a, b)
			}
		}
	}
	return nil
}

// Hosts lists the hosts of the matrix, sorted.
func (m Matrix) Hosts() []string {
	var hosts []string
	for p := range m {
		hosts = append(hosts, p.From)
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// Allowed says whether the cell should get through.
func (m Matrix) Allowed(c Cell) bool { return slices.Contains(m[c.Pair], c.Probe) }

// Cells lists every cell of the matrix in a fixed order.
func (m Matrix) Cells() []Cell { return cells(m.Hosts()) }

// cells lists every cell between the hosts, in their order.
func cells(hosts []string) []Cell {
	var list []Cell
	for _, a := range hosts {
		for _, b := range hosts {
			if a == b {
				continue
			}
			for _, p := range Probes {
				list = append(list, Cell{Pair{a, b}, p, false}, Cell{Pair{a, b}, p, true})
			}
		}
	}
	return list
}

// sorted lists the measured cells in a fixed order.
func sorted(got map[Cell]Outcome) []Cell {
	var hosts []string
	for c := range got {
		hosts = append(hosts, c.From)
	}
	slices.Sort(hosts)
	return slices.DeleteFunc(cells(slices.Compact(hosts)), func(c Cell) bool { _, ok := got[c]; return !ok })
}

// Compare lists the cells that were measured and are not as the matrix says, or were not measured.
func (m Matrix) Compare(got map[Cell]Outcome) []string {
	var wrong []string
	for _, c := range m.Cells() {
		o, measured := got[c]
		switch want := m.Allowed(c); {
		case !measured:
			wrong = append(wrong, c.String()+": not measured")
		case !want && o != Blocked:
			wrong = append(wrong, c.String()+": "+o.String()+" and must not")
		case want && o != Through:
			wrong = append(wrong, c.String()+": "+o.String()+" and must get through")
		}
	}
	return wrong
}
