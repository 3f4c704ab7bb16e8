package testbed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Crash kills every process on a node at once, the agent and its services included, as if the VM had lost its power. The
// kernel goes on: rules, sets and connection tracking stay, and answers come from there.
func (in *Instance) Crash(ctx context.Context, node string) error {
	h := in.Host(node)
	var st unix.Stat_t
	if err := unix.Fstat(int(h.netns.Fd()), &st); err != nil {
		return fmt.Errorf("cannot crash %s: %w", node, err)
	}
	if err := killAll(map[uint64]bool{st.Ino: true}); err != nil {
		return fmt.Errorf("cannot crash %s: %w", node, err)
	}
	for _, d := range in.daemons(h) { // until they are reaped they count as running
		select {
		case <-d.exited:
		case <-ctx.Done():
			return fmt.Errorf("cannot crash %s: %w", node, ctx.Err())
		}
	}
	return nil
}

// daemons lists what this process started on a node.
func (in *Instance) daemons(h *Host) []*daemon {
	list := []*daemon{}
	if a := in.agents[h.name]; a != nil {
		list = append(list, a.daemon())
	}
	for i, c := range in.Postgres {
		if in.PgNodes()[i] == h {
			list = append(list, c.daemon())
		}
	}
	for _, p := range in.Pools {
		if p.Host == h {
			list = append(list, p.daemon())
		}
	}
	return slices.DeleteFunc(list, func(d *daemon) bool { return d == nil })
}

// Failover crashes the primary's node and waits until the standby is promoted and every pgpool follows. From then on
// Primary is the other one; the crashed node stays as it is until Rejoin. Without a deadline in ctx it waits 90 s.
func (in *Instance) Failover(ctx context.Context) error {
	if in.Postgres == nil {
		return errors.New("cannot fail over: the instance has no services")
	}
	ctx, cancel := withWait(ctx, instanceWait)
	defer cancel()
	_, h := in.Primary()
	if err := in.Crash(ctx, h.name); err != nil {
		return err
	}
	in.mu.Lock()
	lost := in.primary
	in.primary = 1 - in.primary
	in.mu.Unlock()
	return in.awaitServices(ctx, func(states []string) bool {
		return len(states) == pgCount && states[lost] == "down" && states[1-lost] == "up"
	})
}

// Rejoin makes the crashed former primary a standby of the present one, with pg_rewind, starts its agent and tells pgpool,
// and waits until all is ready again.
func (in *Instance) Rejoin(ctx context.Context) error {
	ctx, cancel := withWait(ctx, instanceWait)
	defer cancel()
	if err := in.rejoin(ctx); err != nil {
		_, h := in.Standby()
		return fmt.Errorf("cannot make %s a standby: %w", h.name, err)
	}
	return in.AwaitReady(ctx)
}

func (in *Instance) rejoin(ctx context.Context) error {
	primary, at := in.Primary()
	c, h := in.Standby()
	// Until its first checkpoint a promoted server's control file has the old timeline, and pg_rewind would find nothing to
	// do; see the notes of pg_rewind's manual page.
	if _, err := primary.PsqlSocket(ctx, at, "CHECKPOINT"); err != nil {
		return err
	}
	source := fmt.Sprintf("host=%s port=%d user=%s dbname=postgres connect_timeout=5", at.V4(), primary.Port, Superuser)
	if _, err := output(c.client(ctx, h, c.User, "pg_rewind", "-D", c.Data, "--source-server", source)); err != nil {
		return err
	}
	// pg_rewind has copied the other one's postgresql.conf.
	if err := c.set(map[string]string{"unix_socket_directories": "'" + c.Socket + "'"}); err != nil {
		return err
	}
	if err := c.follow(at.V4(), primary.Port, h.name); err != nil {
		return err
	}
	if err := in.startPostgres(ctx, c, h); err != nil {
		return err
	}
	if err := in.AwaitReplay(ctx); err != nil {
		return err
	}
	// pg_rewind has left the slots out.
	slot := slotName(at.name)
	_, err := c.PsqlSocket(ctx, h, fmt.Sprintf("SELECT pg_create_physical_replication_slot('%s') WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '%[1]s')", slot))
	if err != nil {
		return err
	}
	id := slices.Index(in.Postgres, c)
	_, err = output(in.Pools[0].PCP(ctx, "pcp_attach_node", "-n", strconv.Itoa(id)))
	return err
}

// AwaitReplay waits until the standby has replayed what the primary has written until now: what is not there yet is lost in
// a failover, because replication is asynchronous.
func (in *Instance) AwaitReplay(ctx context.Context) error {
	primary, at := in.Primary()
	standby, on := in.Standby()
	lsn, err := primary.PsqlSocket(ctx, at, "SELECT pg_current_wal_lsn()")
	if err != nil {
		return err
	}
	return Await(ctx, "the replay of "+lsn+" on "+on.name, func(ctx context.Context) error {
		got, err := standby.PsqlSocket(ctx, on, fmt.Sprintf("SELECT pg_last_wal_replay_lsn() >= '%s', pg_last_wal_replay_lsn()", lsn))
		if err == nil && !strings.HasPrefix(got, "t|") {
			err = fmt.Errorf("it is at %s", got)
		}
		return err
	})
}

// startPostgres starts a server by its agent, or without it if the instance is unprotected, and returns when it is ready.
func (in *Instance) startPostgres(ctx context.Context, c *Cluster, h *Host) error {
	if in.spec.Unprotected {
		return c.Start(ctx, h)
	}
	a := in.agents[h.name]
	if !a.daemon().running() {
		if err := a.Start(); err != nil { //nolint:contextcheck // the daemon outlives ctx
			return err
		}
	}
	return a.Await(ctx, "PostgreSQL on "+h.name, func(context.Context) error { return c.Ready() })
}
