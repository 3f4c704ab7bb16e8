package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pghardend/pghardend/internal/agent"
)

// exitDenied: explain found that it is not allowed.
const exitDenied = 4

func newExplain(o *options) *cobra.Command {
	var q agent.Question
	var user string
	c := o.jsonFlag(&cobra.Command{
		Use:   "explain --from A --to B --proto tcp --port P",
		Short: "Say which flow allows a connection, or what drops it (exit 4 if denied)",
		Long: "Say which flow allows a connection from A to B, or what drops it. A and B are each\n" +
			"a node, a network or an address; one of them is a node. The answer comes from this\n" +
			"node's files, also for the rules of other nodes, which have the same flows. It needs\n" +
			"neither root nor the daemon.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if q.From == "" || q.To == "" {
				return fmt.Errorf("say who with whom: --from A --to B; see `%s --help`", cmd.CommandPath())
			}
			if q.Proto == "icmp" {
				q.Proto = "icmp-echo"
			}
			q.Root = user == "root" || user == "0"
			e, err := agent.Explain(cmd.Context(), o.config, q)
			if err != nil {
				return err
			}
			if o.json {
				err = o.printJSON(e)
			} else {
				err = printExplanation(o.out, e)
			}
			if err == nil && !e.Allowed {
				err = &codeError{code: exitDenied}
			}
			return err
		},
	})
	c.Flags().StringVar(&q.From, "from", "", "who opens the connection: a node, a network or an address")
	c.Flags().StringVar(&q.To, "to", "", "to whom: a node, a network or an address")
	c.Flags().StringVar(&q.Proto, "proto", "tcp", "tcp, udp or icmp (echo requests)")
	c.Flags().Uint16Var(&q.Port, "port", 0, "destination port, with tcp and udp")
	c.Flags().StringVar(&user, "user", "", "who runs the sending process; root alone may use the metadata service")
	return c
}

func printExplanation(w io.Writer, e agent.Explanation) error {
	var b strings.Builder
	for _, p := range e.Paths {
		fmt.Fprintf(&b, "%s from %s to %s: %s\n", subject(e.Question), endpoint(p.From), endpoint(p.To), verdict(p.Allowed))
		for _, s := range p.Sides {
			preposition := "out of"
			if s.Direction == "in" {
				preposition = "into"
			}
			fmt.Fprintf(&b, "  %s %s: %s\n", preposition, s.Node, sideText(s))
		}
	}
	for _, n := range e.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func subject(q agent.Question) string {
	text := q.Proto
	if q.Port != 0 {
		text += fmt.Sprintf(" port %d", q.Port)
	}
	if q.Root {
		text += " by root"
	}
	return text
}

func endpoint(e agent.Endpoint) string {
	switch address := e.Address.String(); {
	case e.Network != "" && e.Of.IsSingleIP():
		return fmt.Sprintf("%s (%s)", e.Name, address)
	case e.Network != "":
		return fmt.Sprintf("%s (%s, one of %s)", e.Name, address, e.Of)
	case e.Node != "" && e.Node != e.Name:
		return fmt.Sprintf("%s (%s)", e.Node, address)
	case e.Name != address:
		return fmt.Sprintf("%s (%s)", e.Name, address)
	}
	return e.Name
}

func sideText(s agent.Side) string {
	text := fmt.Sprintf("%s by %s: %s", verdict(s.Allowed), s.By, s.Reason)
	if s.PassedOn {
		text = "not judged: " + s.Reason
	}
	if s.Limit != "" {
		text += "; " + s.Limit
	}
	return text
}

func verdict(allowed bool) string {
	if allowed {
		return "allowed"
	}
	return "denied"
}
