package cli

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pghardend/pghardend/internal/agent"
	"github.com/pghardend/pghardend/internal/control"
)

func newOpen(o *options) *cobra.Command {
	var from string
	var r control.OpenRequest
	c := o.jsonFlag(&cobra.Command{
		Use:   "open --from CIDR --port PORT --for TIME --reason TEXT",
		Short: "Let somebody in for a limited time",
		Long: "Let somebody connect to a port of this node for a limited time. The kernel closes\n" +
			"the opening, even if nobody is there to do it; `pghardend close` ends it early.\n" +
			"Openings survive a restart of the daemon, show in `pghardend status` and are recorded.\n\n" +
			"A part of the siblings' networks can only be opened address by address.",
		Example: "  pghardend open --from 192.0.2.7 --port 5432 --for 30m --reason 'restore, ticket 4711'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if r.From, err = parsePrefix(from); err != nil {
				return fmt.Errorf("cannot open: --from: %w", err)
			}
			client := control.NewClient(agent.RuntimeDir(cmd.Context(), o.config))
			opened, err := client.Open(cmd.Context(), r)
			if err != nil {
				return fmt.Errorf("cannot open: %w", withoutOpener(err))
			}
			if o.json {
				return o.printJSON(opened)
			}
			_, err = fmt.Fprintf(o.out, "open until %s: %s; `pghardend close --id %s` ends it early\n",
				opened.Until.Format(time.RFC3339), openingText(opened), opened.ID)
			return err
		},
	})
	c.Flags().StringVar(&from, "from", "", "an address or a network: 192.0.2.7, 192.0.2.0/24, 2001:db8::/64")
	c.Flags().Uint16Var(&r.Port, "port", 0, "the port on this node")
	c.Flags().StringVar(&r.Proto, "proto", "tcp", "tcp or udp")
	c.Flags().DurationVar(&r.For, "for", 0, "how long, 1m to 24h")
	c.Flags().StringVar(&r.Reason, "reason", "", "why, for those who find the opening")
	for _, name := range []string{"from", "port", "for", "reason"} {
		_ = c.MarkFlagRequired(name) // fails for a flag that is not there only
	}
	return c
}

// parsePrefix takes a single address as well.
func parsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is no address; give one, or a network such as 192.0.2.0/24", s)
		}
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is no network; give one such as 192.0.2.0/24, or an address", s)
	}
	return p, nil
}

func openingText(x control.Opening) string {
	from := x.From.String()
	if x.From.IsSingleIP() {
		from = x.From.Addr().String()
	}
	return fmt.Sprintf("%s to %s port %d", from, x.Proto, x.Port)
}

// withoutOpener says what to do where there is no daemon to ask.
func withoutOpener(err error) error {
	if errors.Is(err, control.ErrNoDaemon) {
		return fmt.Errorf("%w; start it (systemctl start pghardend); without it, a network in peers.yaml and `pghardend apply` let somebody in", err)
	}
	return err
}
