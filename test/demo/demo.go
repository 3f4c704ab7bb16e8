package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/internal/testbed"
)

type demo struct {
	out   io.Writer
	wrong int

	bed                          *testbed.Bed
	node, peer, sibling, control *testbed.Host
	cluster                      *testbed.Cluster
	agent                        *testbed.Agent
}

func (d *demo) run(ctx context.Context) error {
	for _, scene := range []struct {
		title string
		play  func(context.Context) error
	}{
		{"A VM (pg-0), a peer (pool-0), a sibling tenant on the same subnet, the control plane", d.build},
		{"A real PostgreSQL cluster, without pghardend: the sibling walks in", d.unprotected},
		{"pghardend run", d.start},
		{"Who can do what now (each line probed, over IPv4 and IPv6)", d.reach},
		{"The postmaster's confinement, read from /proc", d.confinement},
		{"pghardend status", d.status},
		{"Somebody flushes the rules", d.flush},
	} {
		fmt.Fprintf(d.out, "\n== %s\n", scene.title)
		if err := scene.play(ctx); err != nil {
			return err
		}
	}
	if os.Getenv("KEEP") == "1" {
		d.keep(ctx)
	}
	return nil
}

func (d *demo) build(ctx context.Context) error {
	var err error
	d.bed, err = testbed.New(ctx, "demo", []testbed.HostSpec{
		{Name: "pg-0", Addresses: []string{"10.20.1.10/24", "fd00:20:1::10/64"}},
		{Name: "pool-0", Addresses: []string{"10.20.1.20/24", "fd00:20:1::20/64"}},
		{Name: "sibling", Addresses: []string{"10.20.1.66/24", "fd00:20:1::66/64"}},
		{Name: "control", Addresses: []string{"10.0.0.5/24", "fd00:10::5/64"}},
	})
	if err != nil {
		return err
	}
	d.node, d.peer, d.sibling, d.control = d.bed.Host("pg-0"), d.bed.Host("pool-0"), d.bed.Host("sibling"), d.bed.Host("control")
	for _, h := range []*testbed.Host{d.node, d.peer, d.sibling, d.control} {
		fmt.Fprintf(d.out, "   %-8s %-12v %v\n", h.Name(), h.V4(), h.V6())
	}
	fmt.Fprintln(d.out, "   initdb as the user postgres …")
	d.cluster, err = d.bed.NewCluster(ctx, testbed.ClusterSpec{})
	return err
}

func (d *demo) unprotected(ctx context.Context) error {
	if err := d.cluster.Start(ctx, d.node); err != nil {
		return err
	}
	for _, at := range []netip.Addr{d.node.V4(), d.node.V6()} {
		_, err := d.sql(ctx, d.sibling, at)
		d.observe("sibling", fmt.Sprintf("psql to %v", at), answer(err), "answered")
	}
	return d.cluster.Stop(ctx)
}

func (d *demo) start(ctx context.Context) error {
	service := testbed.ServiceOf(d.cluster)
	groups, err := supplementaryGroups(d.cluster.User)
	if err != nil {
		return err
	}
	service.Groups = groups
	service.Limits = map[string]any{"nofile": 4096, "core": 0}
	d.agent, err = testbed.StartAgent(ctx, d.node, testbed.AgentConfig{
		Services: map[string]testbed.Service{"postgres": service},
		Peers: testbed.Peers{
			Instance: "orders-prod",
			Nodes:    []testbed.Peer{testbed.PeerOf(d.node, "postgres"), testbed.PeerOf(d.peer, "pgpool")},
			Networks: map[string][]string{"control_plane": {"10.0.0.0/24", "fd00:10::/64"}},
		},
	})
	if err != nil {
		return err
	}
	began := time.Now()
	err = d.agent.Await(ctx, "rules in place and PostgreSQL ready", func(ctx context.Context) error {
		var s control.Status
		if _, err := d.agent.JSON(ctx, &s, "status"); err != nil {
			return err
		}
		if s.State != control.StateOK {
			return fmt.Errorf("%s: %s", s.State, strings.Join(s.Reasons, "; "))
		}
		return nil
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, "   rules in place and PostgreSQL ready after %v\n", time.Since(began).Round(10*time.Millisecond))
	return nil
}

// reach probes each pair; what stands on the right is what should be.
func (d *demo) reach(ctx context.Context) error {
	for i, at := range []netip.Addr{d.node.V4(), d.node.V6()} {
		_, err := d.sql(ctx, d.peer, at)
		d.observe("pool-0", fmt.Sprintf("psql to %v", at), answer(err), "answered")
		if err := d.siblingKnocks(ctx, at); err != nil {
			return err
		}
		o, err := d.sibling.Send(ctx, testbed.SYNScan(at, 1, 10000)...)
		if err != nil {
			return err
		}
		d.observe("sibling", fmt.Sprintf("SYNs to ports 1–10000 of %v", at), fmt.Sprintf("%d arrived, %d answered", o.Arrived, o.Answered), "10000 arrived, 0 answered")
		for _, from := range []struct {
			host *testbed.Host
			want string
		}{{d.peer, "3 of 3 replies"}, {d.control, "3 of 3 replies"}, {d.sibling, "0 of 3 replies"}} {
			e, err := from.host.Ping(ctx, at, 3)
			if err != nil {
				return err
			}
			d.observe(from.host.Name(), fmt.Sprintf("ping %v", at), fmt.Sprintf("%d of %d replies", e.Replies, e.Sent), from.want)
		}
		if err := d.outward(ctx, []netip.Addr{d.sibling.V4(), d.sibling.V6()}[i]); err != nil {
			return err
		}
	}
	return nil
}

// outward: the node may not open a connection to the sibling, which does listen.
func (d *demo) outward(ctx context.Context, sibling netip.Addr) error {
	server, err := d.sibling.ServeTCP(ctx, netip.AddrPortFrom(sibling, 5432))
	if err != nil {
		return err
	}
	_, err = d.node.Connect(ctx, netip.AddrPortFrom(sibling, 5432))
	if err := errors.Join(err, server.Close()); err != nil {
		return err
	}
	d.observe("pg-0", fmt.Sprintf("connect to port 5432 of %v", sibling), fmt.Sprintf("%d connections", server.Received()), "0 connections")
	return nil
}

func (d *demo) confinement(ctx context.Context) error {
	pid, err := d.cluster.PID()
	if err != nil {
		return err
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err
	}
	uid := strings.Join([]string{d.cluster.User.Uid, d.cluster.User.Uid, d.cluster.User.Uid, d.cluster.User.Uid}, " ")
	want := map[string]string{
		"Uid": uid, "NoNewPrivs": "1", "Seccomp": "2",
		"CapInh": noCaps, "CapPrm": noCaps, "CapEff": noCaps, "CapBnd": noCaps, "CapAmb": noCaps,
	}
	who := fmt.Sprintf("pid %d", pid)
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(line, ":")
		if w, ok := want[key]; ok {
			d.observe(who, key, strings.Join(strings.Fields(value), " "), w)
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(limits)) {
		if strings.HasPrefix(line, "Max open files") {
			d.observe(who, "Max open files", strings.Join(strings.Fields(line)[3:5], " "), "4096 4096")
		}
	}
	r, err := d.agent.CLI(ctx, "verify")
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(r.Stdout), "\n")
	d.observe("verify", lines[len(lines)-1], fmt.Sprintf("exit %d", r.Code), "exit 0")
	return nil
}

const noCaps = "0000000000000000"

func (d *demo) status(ctx context.Context) error {
	r, err := d.agent.CLI(ctx, "status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(r.Stdout) {
		fmt.Fprintf(d.out, "   %s", line)
	}
	return nil
}

const flushes = 5

// flush deletes all rules and measures, from outside, how long they are away. A
// moment's luck decides where in the loop's second it falls, hence several times.
func (d *demo) flush(ctx context.Context) error {
	const erase = "iptables -F; iptables -X; ip6tables -F; ip6tables -X"
	fmt.Fprintf(d.out, "   %s\n", erase)
	var away []time.Duration
	for range flushes {
		if _, err := d.node.Run(ctx, "sh", "-c", erase); err != nil {
			return err
		}
		began := time.Now()
		err := testbed.Await(ctx, "the rules' return", func(ctx context.Context) error {
			r, err := d.agent.CLI(ctx, "plan")
			if err == nil && r.Code != 0 {
				err = errors.New("the kernel still differs")
			}
			return err
		})
		if err != nil {
			return err
		}
		away = append(away, time.Since(began).Round(10*time.Millisecond))
	}
	fmt.Fprintf(d.out, "   %d times; all back after %v to %v (the loop looks once a second)\n", flushes, slices.Min(away), slices.Max(away))
	_, err := d.sql(ctx, d.peer, d.node.V4())
	d.observe("pool-0", fmt.Sprintf("psql to %v", d.node.V4()), answer(err), "answered")
	return d.siblingKnocks(ctx, d.node.V4())
}

// siblingKnocks: "no answer" is neither a refusal nor an error of the probe.
func (d *demo) siblingKnocks(ctx context.Context, at netip.Addr) error {
	v, err := d.sibling.Connect(ctx, netip.AddrPortFrom(at, uint16(d.cluster.Port)))
	if err != nil {
		return err
	}
	d.observe("sibling", fmt.Sprintf("connect to port %d of %v", d.cluster.Port, at), string(v), "no answer")
	return nil
}

func (d *demo) keep(ctx context.Context) {
	in := "ip netns exec "
	fmt.Fprintf(d.out, "\n== Everything stays until Ctrl-C. Look around:\n")
	for _, line := range []string{
		in + d.node.Netns() + " iptables -S",
		in + d.node.Netns() + " ipset list",
		in + d.node.Netns() + " " + d.agent.Binary + " --config " + d.agent.ConfigPath + " status",
		in + d.peer.Netns() + " psql '" + d.cluster.Conninfo(d.node.V4(), testbed.Superuser) + "'",
		in + d.sibling.Netns() + " ping " + d.node.V4().String(),
		"tail -f " + d.agent.LogPath,
	} {
		fmt.Fprintf(d.out, "   %s\n", line)
	}
	<-ctx.Done()
}

func (d *demo) sql(ctx context.Context, from *testbed.Host, to netip.Addr) (string, error) {
	return d.cluster.Psql(ctx, from, d.cluster.Conninfo(to, testbed.AppUser)+" connect_timeout=2", "SELECT 1")
}

func answer(err error) string {
	if err != nil {
		return "failed: " + strings.TrimSpace(err.Error())
	}
	return "answered"
}

func (d *demo) observe(who, what, got, want string) {
	mark := "ok"
	if got != want {
		mark = "WRONG, should be: " + want
		d.wrong++
	}
	fmt.Fprintf(d.out, "   %-9s %-42s %-28s %s\n", who, what, got, mark)
}

// supplementaryGroups are those of a user beyond its primary group; a service
// gets the ones that its configuration names.
func supplementaryGroups(u *user.User) ([]string, error) {
	gids, err := u.GroupIds()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, gid := range gids {
		if gid == u.Gid {
			continue
		}
		g, err := user.LookupGroupId(gid)
		if err != nil {
			return nil, err
		}
		names = append(names, g.Name)
	}
	return names, nil
}
