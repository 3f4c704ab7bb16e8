// Package policies holds the policy files that ship inside the binary: one
// seccomp profile per kind of service and the matrix of network flows. It is
// data only; pkg/sandbox and pkg/firewall give it meaning.
package policies

import "embed"

// FS has seccomp/NAME.json (OCI runtime-spec "linux.seccomp" objects) and
// network/flows.yaml. It is read-only and safe for concurrent use.
//
//go:embed seccomp/*.json network/flows.yaml
var FS embed.FS
