package testbed

import (
	"context"
	"fmt"
	"maps"
	"os"
	"strings"
	"time"
)

// instanceWait bounds AwaitReady and Failover, unless ctx ends sooner: pgpool's watchdog alone takes some ten seconds.
const instanceWait = 90 * time.Second

// makeServices makes the clusters of the primary and its standby, and the pgpools' files.
func (in *Instance) makeServices(ctx context.Context) error {
	settings := maps.Clone(replicationSettings)
	maps.Copy(settings, in.spec.Settings)
	primary, err := in.Bed.NewCluster(ctx, ClusterSpec{Settings: settings})
	if err != nil {
		return err
	}
	if in.groups, err = SupplementaryGroups(primary.User); err != nil {
		return err
	}
	nodes := in.PgNodes()
	if err := primary.slots(ctx, slotName(nodes[0].name), slotName(nodes[1].name)); err != nil {
		return fmt.Errorf("cannot make the replication slots: %w", err)
	}
	standby, err := primary.clone(ctx)
	if err == nil {
		err = standby.follow(nodes[0].V4(), primary.Port, nodes[1].name)
	}
	if err != nil {
		return fmt.Errorf("cannot make the standby: %w", err)
	}
	in.Postgres = []*Cluster{primary, standby}
	for i := range poolCount {
		p, err := in.newPgpool(i)
		if err != nil {
			return fmt.Errorf("cannot make the pgpool of %s: %w", in.PoolNodes()[i].name, err)
		}
		in.Pools = append(in.Pools, p)
	}
	return nil
}

// startServices starts everything without agents.
func (in *Instance) startServices(ctx context.Context) error {
	for i, c := range in.Postgres {
		if err := c.Start(ctx, in.PgNodes()[i]); err != nil {
			return err
		}
	}
	for _, p := range in.Pools {
		if err := p.Start(ctx); err != nil {
			return err
		}
	}
	return nil
}

// PgpoolConninfo is the libpq connection string for the application's role by way of a pool node, over IPv4; see
// Pgpool.Conninfo for another address.
func (in *Instance) PgpoolConninfo(pool string) string {
	for _, p := range in.Pools {
		if p.Host.name == pool {
			return p.Conninfo(p.Host.V4())
		}
	}
	return ""
}

// AwaitReady waits until all agents are ok and, if there are services, replication streams and every pgpool sees both
// backends, the same primary, and a watchdog with a leader and a quorum. Without a deadline in ctx it waits 90 s.
func (in *Instance) AwaitReady(ctx context.Context) error {
	ctx, cancel := withWait(ctx, instanceWait)
	defer cancel()
	if !in.spec.Unprotected {
		if err := in.AwaitAgents(ctx); err != nil {
			return err
		}
	}
	if in.Postgres == nil {
		return nil
	}
	return in.awaitServices(ctx, func(states []string) bool { return strings.Join(states, " ") == "up up" })
}

// AwaitAgents waits until every agent says that its state is ok, and fails at once if one has ended.
func (in *Instance) AwaitAgents(ctx context.Context) error {
	ctx, cancel := withWait(ctx, instanceWait)
	defer cancel()
	for _, a := range in.Agents() { // one after the other: asking all at once would take the processors from those who are asked
		if err := a.Await(ctx, "status ok", a.OK); err != nil {
			return err
		}
	}
	return nil
}

// OK returns nil if the agent's status is ok and all of its services are ready.
func (a *Agent) OK(ctx context.Context) error {
	s, err := a.Status(ctx)
	if err != nil {
		return err
	}
	if s.State != "ok" {
		return fmt.Errorf("state %s: %s", s.State, strings.Join(s.Reasons, "; "))
	}
	for _, svc := range s.Services {
		if svc.State != "ready" {
			return fmt.Errorf("service %s is %s", svc.Name, svc.State)
		}
	}
	return nil
}

// awaitServices waits until the standby, if it should be up, streams, and every pgpool sees the backends as wanted.
func (in *Instance) awaitServices(ctx context.Context, want func(states []string) bool) error {
	both := want([]string{"up", "up"})
	return in.await(ctx, "replication and pgpool", func(ctx context.Context) error {
		if both {
			state, err := in.ReplicationState(ctx)
			if err == nil && state != "streaming" {
				err = fmt.Errorf("replication is %q, not streaming", state)
			}
			if err != nil {
				return err
			}
		}
		for _, p := range in.Pools {
			if err := in.poolOK(ctx, p, want); err != nil {
				return err
			}
		}
		return nil
	})
}

// await is Await with the logs of those who may know why it failed.
func (in *Instance) await(ctx context.Context, what string, check func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := Await(ctx, what, func(ctx context.Context) error {
		for _, p := range in.Pools {
			if d := p.daemon(); d != nil && !d.running() {
				cancel()
				return fmt.Errorf("pgpool on %s has ended", p.Host.name)
			}
		}
		return check(ctx)
	})
	if err == nil {
		return nil
	}
	for _, a := range in.Agents() {
		if a.PID() != 0 {
			err = fmt.Errorf("%w\nlast lines of the agent's log on %s:\n%s", err, a.host.name, a.Log())
		}
	}
	for _, p := range in.Pools {
		if _, statErr := os.Stat(p.log); statErr == nil {
			err = fmt.Errorf("%w\nlast lines of pgpool's log on %s:\n%s", err, p.Host.name, p.Log())
		}
	}
	return err
}

// ReplicationState asks the primary how its standby is: "streaming" if all is well, "" if there is none.
func (in *Instance) ReplicationState(ctx context.Context) (string, error) {
	c, h := in.Primary()
	return c.PsqlSocket(ctx, h, "SELECT state FROM pg_stat_replication WHERE NOT pg_is_in_recovery()")
}

// poolOK returns nil if a pgpool sees the backends as wanted, the instance's primary as theirs, and a quorum.
func (in *Instance) poolOK(ctx context.Context, p *Pgpool, want func(states []string) bool) error {
	out, err := p.PsqlSocket(ctx, "SHOW pool_nodes")
	if err != nil {
		return err
	}
	backends, err := parsePoolNodes(out)
	if err != nil {
		return err
	}
	_, primary := in.Primary()
	states := make([]string, 0, len(backends))
	found := false
	for _, b := range backends {
		states = append(states, b.status)
		found = found || b.role == "primary" && b.status == "up" && b.address == primary.V4()
	}
	if !found || !want(states) {
		return fmt.Errorf("pgpool on %s sees %+v; the primary is %s", p.Host.name, backends, primary.V4())
	}
	info, err := output(p.PCP(ctx, "pcp_watchdog_info", "-v"))
	if err != nil {
		return err
	}
	w, err := parseWatchdog(info)
	if err == nil && (!w.quorum || w.leader == "" || w.alive != poolCount-1) {
		err = fmt.Errorf("the watchdog of %s has no quorum of all: %+v", p.Host.name, w)
	}
	return err
}
