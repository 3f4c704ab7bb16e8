// Package policies holds the policy files that ship inside the binary: one
// seccomp profile (and features for it) and one Landlock policy per kind of service, the mounts of all of them, the matrix of network
// flows and the network sysctls. It is data only; pkg/sandbox, pkg/mac, pkg/mounts, pkg/firewall and pkg/sysctl
// give it meaning.
package policies

import "embed"

// FS has seccomp/NAME.json (OCI runtime-spec "linux.seccomp" objects with reasons), what can be added to them in
// seccomp/features/NAME.json, what a drill adds in seccomp/drill, landlock/NAME.yaml, mounts/system.yaml, network/flows.yaml and sysctl/network.conf
// (sysctl.d(5)). It is read-only and safe for concurrent use.
//
//go:embed seccomp/*.json seccomp/features/*.json seccomp/drill/*.json landlock/*.yaml mounts/system.yaml network/flows.yaml sysctl/network.conf
var FS embed.FS
