package config

import (
	"net/netip"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// SalvageControlPlane returns what can still be read of networks.control_plane in a
// peer list that ParsePeers refuses. Entries that ParsePeers would refuse are left
// out. It is for a boot with nothing better, and for nothing else.
func SalvageControlPlane(data []byte) []netip.Prefix {
	var file struct {
		Networks map[string]yaml.Node `yaml:"networks"`
	}
	if err := yaml.Unmarshal(data, &file); err != nil {
		file.Networks = nil
		var snippet map[string]yaml.Node
		if yaml.Unmarshal([]byte(controlPlaneLines(string(data))), &snippet) == nil {
			file.Networks = snippet
		}
	}
	list := file.Networks[controlPlane]
	if list.Kind != yaml.SequenceNode {
		return nil
	}
	var found []netip.Prefix
	for _, entry := range list.Content {
		if p, problem, _ := parsePrefix(entry.Value); problem == "" && entry.Kind == yaml.ScalarNode {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, netip.Prefix.Compare)
	return slices.Compact(found)
}

// controlPlaneLines cuts the network out of a text that is no YAML as a whole: the
// line of the key, and those after it that are deeper or entries of a list.
func controlPlaneLines(text string) string {
	var cut strings.Builder
	indent := -1
	for line := range strings.Lines(text) {
		rest := strings.TrimLeft(line, " \t")
		depth := len(line) - len(rest)
		if indent < 0 {
			if strings.HasPrefix(rest, controlPlane+":") {
				indent = depth
				cut.WriteString(rest)
			}
			continue
		}
		if depth < indent || depth == indent && !strings.HasPrefix(rest, "-") {
			break
		}
		cut.WriteString(line[indent:])
	}
	return cut.String()
}
