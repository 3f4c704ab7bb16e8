package vm

import (
	"context"
	"testing"

	"github.com/pghardend/pghardend/internal/control"
	"github.com/pghardend/pghardend/test/vm/testvm"
)

// TestF15_RulesBeforeTheFirstPacket has three hosts knock all the time while a machine with the package reboots. Nobody who is not to be answered is, not
// even once: with good files, with bad ones and the last good ones, with none at all. The control is the same reboot without the package.
func TestF15_RulesBeforeTheFirstPacket(t *testing.T) {
	t.Parallel()
	lan := newLAN(t.Context(), t)
	p := bootPackaged(t.Context(), t, testvm.Options{Image: testvm.Debian13, Network: lan.network, Addresses: []string{"10.20.1.10/24"}})
	p.lan = lan
	p.run(t, []check{
		{"GoodFiles", p.bootWithGoodFiles},
		{"LastGoodFiles", p.bootWithLastGoodFiles},
		{"ControlPlaneAlone", p.bootWithNothing},
		{"Control", p.bootWithoutPackage},
	})
}

// reboot counts the answers that each host got from before the reboot until after it: at sshd's port, where nothing listens and a closed port refuses, and
// for the peer at the server's.
func (p *packaged) reboot(ctx context.Context, t *testing.T) map[string]int64 {
	t.Helper()
	at := map[string]string{stranger: "10.20.1.10:22", operator: "10.20.1.10:22", peer: "10.20.1.10:5432"}
	all := map[string]*knocks{}
	for host, address := range at {
		all[host] = p.lan.knock(t, host, address)
	}
	if err := p.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	// A host that is not there yet is silent as well: its network may come after all that a boot waits for.
	p.lan.want(ctx, t, map[string]bool{operator: true}, "10.20.1.10:22")
	answers := map[string]int64{}
	for host, k := range all {
		answers[host] = k.stop(t)
	}
	t.Logf("answers: %v", answers)
	return answers
}

func (p *packaged) bootWithGoodFiles(ctx context.Context, t *testing.T) {
	p.write(ctx, t, "/root/deploy/pghardend.yaml", p.external(p.debianProgram(), ""))
	for n := range p.readme {
		p.command(ctx, t, n)
	}
	p.confinedBy(ctx, t, "pghardend@postgres.service")
	if answers := p.reboot(ctx, t); answers[stranger] > 0 {
		t.Errorf("%d answers to the stranger while the machine booted", answers[stranger])
	}
	p.confinedBy(ctx, t, "pghardend@postgres.service")
	p.guarded(ctx, t)
}

// guarded is who is answered with the rules of the files in force.
func (p *packaged) guarded(ctx context.Context, t *testing.T) {
	t.Helper()
	p.lan.want(ctx, t, map[string]bool{stranger: false, peer: true, operator: false}, "10.20.1.10:5432")
	p.lan.want(ctx, t, map[string]bool{stranger: false, peer: false, operator: true}, "10.20.1.10:22")
}

// Both files are broken: the last good ones count, for the rules, the server and the peers.
func (p *packaged) bootWithLastGoodFiles(ctx context.Context, t *testing.T) {
	p.output(ctx, t, "echo 'services: [' >>/etc/pghardend/pghardend.yaml; echo '  - {name: pg-9, role' >>/etc/pghardend/peers.yaml")
	if answers := p.reboot(ctx, t); answers[stranger] > 0 {
		t.Errorf("%d answers to the stranger while the machine booted", answers[stranger])
	}
	p.awaitStatus(ctx, t, "the agent says that the files are broken", func(s control.Status) bool {
		return s.State == control.StateDegraded && len(s.Services) == 1 && s.Services[0].State == "ready"
	})
	p.guarded(ctx, t)
}

// Nothing good is left: the control plane is let in, and nobody else. Mended files bring the rest back.
func (p *packaged) bootWithNothing(ctx context.Context, t *testing.T) {
	// Until the machine goes down the rules of before would let the peer in: only what comes after counts.
	p.output(ctx, t, "systemctl stop pghardend; rm -r /var/lib/pghardend/last-good; iptables -I INPUT -p tcp --dport 5432 -j DROP")
	answers := p.reboot(ctx, t)
	if answers[stranger] > 0 || answers[peer] > 0 {
		t.Errorf("answers while the machine booted: %v", answers)
	}
	p.lan.want(ctx, t, map[string]bool{stranger: false, peer: false, operator: true}, "10.20.1.10:22")
	p.lan.want(ctx, t, map[string]bool{stranger: false, peer: false, operator: false}, "10.20.1.10:5432")
	p.output(ctx, t, "journalctl -b -u pghardend-boot | grep -q 'only the control plane 10.20.1.32/28 is let in'")
	p.output(ctx, t, "cd /root/deploy && cp pghardend.yaml peers.yaml /etc/pghardend/ && systemctl restart pghardend && systemctl restart pghardend@postgres")
	p.confinedBy(ctx, t, "pghardend@postgres.service")
	p.guarded(ctx, t)
}

// The control, and what the removal says of the next boot: without the package the stranger is answered.
func (p *packaged) bootWithoutPackage(ctx context.Context, t *testing.T) {
	p.output(ctx, t, "dpkg -P pghardend 2>&1")
	p.reboot(ctx, t)
	p.lan.want(ctx, t, map[string]bool{stranger: true, peer: true}, "10.20.1.10:22")
}
