package agent

import "fmt"

// childrenDropIn is packaged beside the unit, which gives the daemon what it needs for
// services with units of their own and no more.
const childrenDropIn = "children.conf"

// startedByAgent is what to do where the daemon lacks the privileges to launch a service.
func startedByAgent(service string) string {
	return fmt.Sprintf("the agent's unit does not start services as it is: give the service a unit of its own, `start: external` in pghardend.yaml and "+
		"`systemctl enable --now pghardend@%[1]s`, or give the agent what it takes: `install -D -m 0644 /usr/share/pghardend/systemd/%[2]s "+
		"/etc/systemd/system/pghardend.service.d/%[2]s && systemctl daemon-reload && systemctl restart pghardend`", service, childrenDropIn)
}
