// Package config reads the two files of pghardend, strictly: pghardend.yaml
// (what this node runs) and peers.yaml (who the instance's nodes are).
//
// # API
//
// [ReadFile] reads a file and refuses one that somebody other than its owner
// could have written, or could have put a symlink to in its place. [ParseConfig]
// and [ParsePeers] turn its bytes into a [Config] or a [Peers]; [Validate] checks
// the two against each other and [CheckChange] a new peer list against the one in
// force, if there is one. Everything but ReadFile is pure: no I/O, no log, no
// clock.
//
// # Design
//
// Both files are walked as a tree of YAML nodes, which knows the line of every
// value and has not lost duplicate keys, upper case or types. The walk does all
// the refusing, and goes on after a problem, so that one look at the error is
// enough to mend the file. A configuration that passed is decoded by viper; a
// peer list is built by the walk itself, because viper folds the case of keys
// and splits them at dots.
//
// A refusal is an [*Error] with file, line, key, problem and fix; several are
// joined by errors.Join in the order of their lines. Nothing is guessed or
// repaired: a CIDR with host bits is an error that says the masked CIDR. No name
// is resolved.
//
// Flows are checked here for their form and for the names in them; whether a row
// makes sense (which keys a new one needs, which protocol a built-in one has) is
// known where the matrix is.
//
// Anchors, aliases, merge keys and tags of YAML are refused, hence a file is
// never larger in memory than its text makes it look.
//
// # Thread safety
//
// The functions may be called at the same time. Config and Peers are values to
// read; whoever changes the maps or slices in one must own it.
package config
