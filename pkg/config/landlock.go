package config

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The modes of Landlock.
const (
	LandlockRequired  = "required"
	LandlockPreferred = "preferred"
	LandlockOff       = "off"
)

// Landlock is what a service needs of the machine beyond what its profile says.
type Landlock struct {
	Mode    string   // LandlockRequired, LandlockPreferred or LandlockOff; default required
	Read    []string // absolute paths: it may read them and what is below
	Write   []string // absolute paths of directories in which it may make and change what it likes
	Bind    []int    // TCP ports that it may listen on, beside those of its flows
	Connect []int    // TCP ports that it may connect to, beside those of its flows
}

func (r *configReader) landlock(key string, n *yaml.Node) {
	places := map[string]string{}
	mode := ""
	given := ""
	list := func(example string, visit func(key string, n *yaml.Node) string) func(string, *yaml.Node) {
		return func(key string, n *yaml.Node) {
			given = key
			r.unique(key, n, example, visit)
		}
	}
	r.mapping(key, n, []field{
		{"mode", false, "mode: " + LandlockRequired, func(key string, n *yaml.Node) {
			mode = r.oneOf(key, n, []string{LandlockRequired, LandlockPreferred, LandlockOff})
		}},
		{"read", false, "", list("/srv/ca", func(key string, n *yaml.Node) string { return r.place(key, n, places, "/srv/ca") })},
		{"write", false, "", list("/srv/tablespaces", func(key string, n *yaml.Node) string { return r.place(key, n, places, "/srv/tablespaces") })},
		{"bind", false, "", list("5433", r.servicePort)},
		{"connect", false, "", list("389", r.servicePort)},
	})
	if mode == LandlockOff && given != "" {
		r.report(given, "has no effect with mode: off", "remove it, or write mode: required")
	}
}

// place checks the path of a directory and that it is in one of the lists only.
func (r *configReader) place(key string, n *yaml.Node, places map[string]string, example string) string {
	path := r.path(key, n, example)
	if path == "" {
		return ""
	}
	if first, twice := places[path]; twice && !sameList(first, key) {
		r.report(key, quote(path)+" is in "+first+" as well", "keep it in write, which includes reading, or in read")
	}
	places[path] = key
	return path
}

// sameList says whether two keys such as x.read[0] are of one list, which unique
// looks after.
func sameList(a, b string) bool {
	return a[:strings.LastIndexByte(a, '[')] == b[:strings.LastIndexByte(b, '[')]
}

// maxServicePorts: more are a mistake of whatever writes the file.
const maxServicePorts = 64

// servicePort checks a TCP port.
func (r *configReader) servicePort(key string, n *yaml.Node) string {
	port, ok := r.whole(key, n, 1, 65535)
	if !ok {
		return ""
	}
	if index := key[strings.LastIndexByte(key, '[')+1:]; index == strconv.Itoa(maxServicePorts)+"]" {
		r.report(key, fmt.Sprintf("more than %d ports", maxServicePorts), "keep those that the service uses")
	}
	return strconv.Itoa(port)
}

func (raw rawLandlock) landlock() Landlock {
	l := Landlock{Mode: orElse(raw.Mode, LandlockRequired), Bind: raw.Bind, Connect: raw.Connect}
	for _, path := range raw.Read {
		l.Read = append(l.Read, filepath.Clean(path))
	}
	for _, path := range raw.Write {
		l.Write = append(l.Write, filepath.Clean(path))
	}
	return l
}

type rawLandlock struct {
	Mode    string   `mapstructure:"mode"`
	Read    []string `mapstructure:"read"`
	Write   []string `mapstructure:"write"`
	Bind    []int    `mapstructure:"bind"`
	Connect []int    `mapstructure:"connect"`
}
