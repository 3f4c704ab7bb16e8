package testbed

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Conninfo is the libpq connection string for a role at an address of the server. AppPassword is in the environment of the
// clients, not in the string.
func (c *Cluster) Conninfo(at netip.Addr, role string) string {
	return fmt.Sprintf("host=%s port=%d user=%s dbname=%s connect_timeout=5", at, c.Port, role, AppDatabase)
}

// SocketConninfo is the same by the Unix socket, which root and the cluster's user can reach.
func (c *Cluster) SocketConninfo(role string) string {
	return fmt.Sprintf("host=%s port=%d user=%s dbname=%s", c.Socket, c.Port, role, AppDatabase)
}

// Client prepares one of PostgreSQL's client programs inside a host, as a user without any rights.
func (c *Cluster) Client(ctx context.Context, from *Host, program string, args ...string) (*exec.Cmd, error) {
	u, err := user.Lookup(clientUser)
	if err != nil {
		return nil, fmt.Errorf("cannot run %s: %w", program, err)
	}
	return c.client(ctx, from, u, program, args...), nil
}

func (c *Cluster) client(ctx context.Context, from *Host, u *user.User, program string, args ...string) *exec.Cmd {
	cmd := from.CommandAs(ctx, u, filepath.Join(c.BinDir, program), args...)
	cmd.Env = append(cmd.Env, "PGPASSWORD="+AppPassword, "PGAPPNAME=testbed")
	return cmd
}

// Psql runs SQL statements with psql inside a host, and returns the result: unaligned, tuples only, without the last
// newline. The first error ends it.
func (c *Cluster) Psql(ctx context.Context, from *Host, conninfo, sql string) (string, error) {
	cmd, err := c.Client(ctx, from, "psql", psqlArgs(conninfo)...)
	if err != nil {
		return "", err
	}
	return c.runPsql(cmd, sql)
}

// PsqlSocket is Psql as superuser by the server's Unix socket, as the cluster's own user: it works whatever the network does.
func (c *Cluster) PsqlSocket(ctx context.Context, on *Host, sql string) (string, error) {
	return c.runPsql(c.client(ctx, on, c.User, "psql", psqlArgs(c.SocketConninfo(Superuser))...), sql)
}

func psqlArgs(conninfo string) []string {
	return []string{"-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", conninfo, "-f", "-"}
}

func (c *Cluster) runPsql(cmd *exec.Cmd, sql string) (string, error) {
	cmd.Stdin = strings.NewReader(sql)
	out, err := output(cmd)
	return strings.TrimSuffix(out, "\n"), err
}

// PgbenchResult is what pgbench reports at its end.
type PgbenchResult struct {
	Processed int     // transactions
	Failed    int     // transactions
	TPS       float64 // without the time to connect
	Output    string  // all of it, both streams
}

// Pgbench runs pgbench inside a host. "-i" initialises. A run that was cut short or lost a connection is an error.
func (c *Cluster) Pgbench(ctx context.Context, from *Host, conninfo string, args ...string) (PgbenchResult, error) {
	cmd, err := c.Client(ctx, from, "pgbench", append(args, conninfo)...)
	if err != nil {
		return PgbenchResult{}, err
	}
	return runPgbench(cmd, args)
}

// PgbenchSocket is Pgbench as superuser by the server's Unix socket, as the cluster's own user.
func (c *Cluster) PgbenchSocket(ctx context.Context, on *Host, args ...string) (PgbenchResult, error) {
	return runPgbench(c.client(ctx, on, c.User, "pgbench", slices.Concat(args, []string{c.SocketConninfo(Superuser)})...), args)
}

func runPgbench(cmd *exec.Cmd, args []string) (PgbenchResult, error) {
	out, err := cmd.CombinedOutput()
	r := parsePgbench(string(out))
	if err != nil {
		return r, fmt.Errorf("cannot run pgbench %s: %w: %s", strings.Join(args, " "), err, lastLines(r.Output))
	}
	return r, nil
}

var (
	pgbenchProcessed = regexp.MustCompile(`(?m)^number of transactions actually processed: (\d+)`)
	pgbenchFailed    = regexp.MustCompile(`(?m)^number of failed transactions: (\d+)`)
	pgbenchTPS       = regexp.MustCompile(`(?m)^tps = ([0-9.]+)`)
)

// parsePgbench reads the report of pgbench 15 and later. Pure.
func parsePgbench(out string) PgbenchResult {
	r := PgbenchResult{Output: out}
	number := func(re *regexp.Regexp) string {
		if m := re.FindStringSubmatch(out); m != nil {
			return m[1]
		}
		return "0"
	}
	// What the expressions let through is a number; one too large stays 0.
	r.Processed, _ = strconv.Atoi(number(pgbenchProcessed))
	r.Failed, _ = strconv.Atoi(number(pgbenchFailed))
	r.TPS, _ = strconv.ParseFloat(number(pgbenchTPS), 64)
	return r
}
