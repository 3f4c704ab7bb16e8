package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/pghardend/pghardend/internal/testbed"
)

type demo struct {
	out   io.Writer
	began time.Time
	wrong int

	in *testbed.Instance
}

func newDemo(out io.Writer) *demo { return &demo{out: out, began: time.Now()} }

func (d *demo) run(ctx context.Context) error {
	scenes := []struct {
		title string
		play  func(context.Context) error
	}{
		{"A tenant's five VMs, and who else is around", d.build},
		{"pghardend run, on each of the five", d.protect},
		{"Who reaches whom", d.matrix},
		{"A reverse shell out of the database", d.reverseShell},
		{"The cloud's metadata service, which gives credentials to whoever asks", d.metadata},
		{"The same without the layer netfilter: pghardend stopped and torn down on pg-0", d.unprotected},
		{"How the services are confined, read from /proc", d.confinement},
		{"Somebody flushes the rules of pg-0", d.flush},
	}
	for i, scene := range scenes {
		fmt.Fprintf(d.out, "\n== %d/%d %s  [%ds]\n", i+1, len(scenes), scene.title, int(time.Since(d.began).Seconds()))
		if err := scene.play(ctx); err != nil {
			return err
		}
	}
	verdict := "all observations are as they should be"
	if d.wrong > 0 {
		verdict = fmt.Sprintf("%d observations are WRONG", d.wrong)
	}
	fmt.Fprintf(d.out, "\n== Done in %ds: %s\n", int(time.Since(d.began).Seconds()), verdict)
	if os.Getenv("KEEP") == "1" {
		d.keep(ctx)
	}
	return nil
}

func (d *demo) keep(ctx context.Context) {
	pg, h := d.in.Primary()
	a := d.in.Agent(h.Name())
	in := func(h *testbed.Host) string { return "ip netns exec " + h.Netns() + " " }
	vm := fmt.Sprintf("nsenter --target %d --net --uts --mount --ipc ", a.PID()) // its host name counts, too
	pghardend := func(verb, rest string) string {
		return strings.TrimSpace(vm + a.Binary + " " + verb + " --config " + a.ConfigPath + " " + rest)
	}
	fmt.Fprintf(d.out, "\n== Everything stays until Ctrl-C. Look around, as root:\n")
	for _, line := range []struct{ what, command string }{
		{"what " + h.Name() + " says of itself", pghardend("status", "")},
		{"why the sibling gets nowhere", pghardend("explain", "--from "+d.in.Sibling().V4().String()+" --to "+h.Name()+" --port 5432")},
		{"let it in for a minute", pghardend("open", "--from "+d.in.Sibling().V4().String()+" --port 5432 --for 1m --reason demo")},
		{"be the sibling", in(d.in.Sibling()) + "psql '" + pg.Conninfo(h.V4(), testbed.Superuser) + "'"},
		{"be the application (its password is " + testbed.AppPassword + ")", in(d.in.App()) + "psql '" + d.in.PgpoolConninfo(d.in.PoolNodes()[0].Name()) + "'"},
		{"the rules, and who is in the sets", in(h) + "iptables -S; " + in(h) + "ipset list"},
		{"the peer list; a change counts within a second", "editor " + a.PeersPath},
		{"the log", "tail -f " + a.LogPath},
	} {
		fmt.Fprintf(d.out, "   # %s\n   %s\n", line.what, line.command)
	}
	<-ctx.Done()
}

// sql asks for a row as the application's user, which needs the password.
func (d *demo) sql(ctx context.Context, from *testbed.Host, conninfo string) string {
	pg, _ := d.in.Primary()
	out, err := pg.Psql(ctx, from, conninfo, "SELECT 1")
	if err == nil && out != "1" {
		err = errors.New(out)
	}
	return answer(err)
}

func answer(err error) string {
	if err != nil {
		return "failed: " + strings.TrimSpace(err.Error())
	}
	return "answered"
}

// at is one line of an address for people.
func at(h *testbed.Host, v6 bool, port int) netip.AddrPort {
	if v6 {
		return netip.AddrPortFrom(h.V6(), uint16(port))
	}
	return netip.AddrPortFrom(h.V4(), uint16(port))
}

// say shows progress: what is under way, or what is worth knowing.
func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, "   "+format+"\n", args...) }

func (d *demo) observe(who, what, got, want string) {
	mark := "ok"
	if got != want {
		mark = "WRONG, should be: " + want
		d.wrong++
	}
	fmt.Fprintf(d.out, "   %-9s %-49s %-28s %s\n", who, what, got, mark)
}
