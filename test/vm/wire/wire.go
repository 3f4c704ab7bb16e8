// Package wire has what the host and the runner inside a virtual machine send each other over a virtio port: JSON objects, one a line.
// It is part of the machine's image: a change of it builds new images.
package wire

import "time"

// Port is the name of the virtio port, and Device its place in the machine.
const (
	Port   = "runner"
	Device = "/dev/virtio-ports/" + Port
)

// Request is a script for bash with its standard input, and after how long it is killed; 0 is never. One without a script
// asks for the boot only.
type Request struct {
	ID      string
	Script  string        `json:",omitempty"`
	Stdin   []byte        `json:",omitempty"`
	Timeout time.Duration `json:",omitempty"`
}

// Answer is what became of a request. Error says why there is no exit status; Boot is the kernel's id of this boot.
type Answer struct {
	ID     string
	Boot   string
	Exit   int
	Stdout []byte `json:",omitempty"`
	Stderr []byte `json:",omitempty"`
	Error  string `json:",omitempty"`
}
