package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Shells are those that WriteCompletion knows.
var shells = map[string]func(*cobra.Command, io.Writer) error{
	"bash": func(c *cobra.Command, w io.Writer) error { return c.GenBashCompletionV2(w, true) },
	"zsh":  func(c *cobra.Command, w io.Writer) error { return c.GenZshCompletion(w) },
	"fish": func(c *cobra.Command, w io.Writer) error { return c.GenFishCompletion(w, true) },
}

// WriteCompletion writes the completion script for a shell: bash, zsh or fish.
func WriteCompletion(w io.Writer, shell string) error {
	write, known := shells[shell]
	if !known {
		return fmt.Errorf("cannot write a completion for %q: use bash, zsh or fish", shell)
	}
	if err := write(newRoot(&options{out: w, errOut: w}), w); err != nil {
		return fmt.Errorf("cannot write the completion for %s: %w", shell, err)
	}
	return nil
}

// WriteManual writes every command and option as Markdown for go-md2man, as they
// are parsed, so that the manual page cannot say anything else.
func WriteManual(w io.Writer) error {
	var b strings.Builder
	root := newRoot(&options{out: w, errOut: w})
	b.WriteString("# COMMANDS\n\n")
	describe(&b, root.Commands())
	b.WriteString("# GLOBAL OPTIONS\n\n")
	describeFlags(&b, root.PersistentFlags())
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("cannot write the manual: %w", err)
	}
	return nil
}

func describe(b *strings.Builder, commands []*cobra.Command) {
	for _, c := range commands {
		if c.Hidden || c.Deprecated != "" {
			continue
		}
		if c.Runnable() {
			fmt.Fprintf(b, "## %s\n\n", literal(strings.TrimPrefix(c.UseLine(), c.Root().Name()+" ")))
			fmt.Fprintf(b, "%s\n\n", literal(orShort(c)))
			describeFlags(b, c.LocalNonPersistentFlags())
		}
		describe(b, c.Commands())
	}
}

func orShort(c *cobra.Command) string {
	if c.Long != "" {
		return c.Long
	}
	return c.Short + "."
}

func describeFlags(b *strings.Builder, flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		fmt.Fprintf(b, "**--%s**", f.Name)
		if value != "" {
			fmt.Fprintf(b, " *%s*", value)
		}
		fmt.Fprintf(b, "\n:   %s", literal(strings.ReplaceAll(usage, "\n", " ")))
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" && f.DefValue != "0" && f.DefValue != "0s" && f.DefValue != "-1" {
			fmt.Fprintf(b, " (default %s)", literal(f.DefValue))
		}
		b.WriteString("\n\n")
	})
}

// literal keeps Markdown from seeing marks in what is plain text.
func literal(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `_`, `\_`, `[`, `\[`, `]`, `\]`, `<`, `\<`, `>`, `\>`, "`", "").Replace(s)
}
