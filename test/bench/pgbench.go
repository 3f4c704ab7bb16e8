package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/prometheus/procfs"

	"github.com/pghardend/pghardend/internal/testbed"
)

const (
	pairs    = 20         // of runs, one with and one without confinement
	pairTime = 3          // seconds of each run
	userHZ   = 100        // ticks a second in /proc/PID/stat, everywhere
	confined = "postgres" // name of the service
	rows     = "10"       // scale: 1,000,000 rows, all of them in memory
	clients  = "2"        // one for each core
)

// A workload is what pgbench is asked for.
type workload struct {
	name string
	args []string
}

var workloads = []workload{
	{"select-only, prepared", []string{"-S", "-M", "prepared"}},
	{"read-write", nil},
}

// A server is one of the two that are compared.
type server struct {
	cluster *testbed.Cluster
	host    *testbed.Host
	scores  []score // of the runs so far
}

// score is the outcome of one run.
type score struct {
	tps float64
	cpu float64 // microseconds of the server's processes for each transaction
}

// benchPgbench compares two clusters that differ in nothing but the confinement of their server.
func benchPgbench(ctx context.Context, out io.Writer, _ *testbed.Host) (err error) {
	bed, err := testbed.New(ctx, "bench-pg", []testbed.HostSpec{{Name: "pg-0", Addresses: []string{"10.20.1.10/24", "fd00:20:1::10/64"}}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bed.Close()) }() //nolint:contextcheck // removes even if ctx is done
	h := bed.Host("pg-0")
	// Without fsync the disk does not hide what the processor does.
	settings := map[string]string{"shared_buffers": "'256MB'", "fsync": "off", "max_wal_size": "'4GB'", "autovacuum": "off"}
	bare, err := bareServer(ctx, bed, h, settings)
	if err != nil {
		return err
	}
	hardened, err := hardenedServer(ctx, bed, h, settings)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "PostgreSQL confined / bare, %d pairs of %d s\ttransactions a second\tmiddle half\tCPU for each\tmiddle half\t\n", pairs, pairTime)
	for _, l := range workloads {
		if err := compare(ctx, bare, hardened, l); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		tps := ratios(hardened.scores, bare.scores, func(s score) float64 { return s.tps })
		cpu := ratios(hardened.scores, bare.scores, func(s score) float64 { return s.cpu })
		fmt.Fprintf(w, "%s\t%.3f\t%s\t%.3f\t%s\t\n", l.name, medianOf(tps), spread(tps), medianOf(cpu), spread(cpu))
	}
	return w.Flush()
}

func bareServer(ctx context.Context, bed *testbed.Bed, h *testbed.Host, settings map[string]string) (*server, error) {
	c, err := bed.NewCluster(ctx, testbed.ClusterSpec{Port: 5433, Settings: settings})
	if err != nil {
		return nil, err
	}
	if err := c.Start(ctx, h); err != nil {
		return nil, err
	}
	return filled(ctx, c, h)
}

func hardenedServer(ctx context.Context, bed *testbed.Bed, h *testbed.Host, settings map[string]string) (*server, error) {
	c, err := bed.NewCluster(ctx, testbed.ClusterSpec{Settings: settings})
	if err != nil {
		return nil, err
	}
	s := testbed.ServiceOf(c)
	s.Groups, err = testbed.SupplementaryGroups(c.User)
	if err != nil {
		return nil, err
	}
	a, err := testbed.StartAgent(ctx, h, testbed.AgentConfig{
		Peers: testbed.Peers{Instance: "bench", Nodes: []testbed.Peer{testbed.PeerOf(h, "postgres")},
			Networks: map[string][]string{"control_plane": {"10.0.0.0/24"}}},
		Services: map[string]testbed.Service{confined: s},
	})
	if err != nil {
		return nil, err
	}
	err = a.Await(ctx, "a confined server", func(ctx context.Context) error {
		r, err := a.CLI(ctx, "status") // verify would find the bare server, and say so
		if err == nil && r.Code != 0 {
			err = errors.New(r.Stdout + r.Stderr)
		}
		return errors.Join(err, c.Ready())
	})
	if err != nil {
		return nil, err
	}
	return filled(ctx, c, h)
}

func filled(ctx context.Context, c *testbed.Cluster, h *testbed.Host) (*server, error) {
	_, err := c.PgbenchSocket(ctx, h, "-i", "-q", "-s", rows)
	return &server{cluster: c, host: h}, err
}

// compare runs the pairs; who comes first changes from pair to pair.
func compare(ctx context.Context, bare, hardened *server, l workload) error {
	bare.scores, hardened.scores = nil, nil
	for i := range pairs + 1 {
		order := []*server{bare, hardened}
		if i%2 == 1 {
			slices.Reverse(order)
		}
		for _, s := range order {
			if err := s.measure(ctx, l); err != nil {
				return err
			}
		}
	}
	bare.scores, hardened.scores = bare.scores[1:], hardened.scores[1:] // the first pair warms up
	return nil
}

func (s *server) measure(ctx context.Context, l workload) error {
	before, err := s.cpu()
	if err != nil {
		return err
	}
	args := slices.Concat([]string{"-n", "-c", clients, "-T", strconv.Itoa(pairTime)}, l.args)
	r, err := s.cluster.PgbenchSocket(ctx, s.host, args...)
	if err != nil {
		return err
	}
	if r.Processed == 0 || r.Failed != 0 {
		return fmt.Errorf("pgbench: %d transactions, %d failed", r.Processed, r.Failed)
	}
	after, err := s.settledCPU(ctx)
	if err != nil {
		return err
	}
	s.scores = append(s.scores, score{r.TPS, float64((after - before).Microseconds()) / float64(r.Processed)})
	return nil
}

// settledCPU is cpu once the backends of the run have ended, whose time counts as their parent's then.
func (s *server) settledCPU(ctx context.Context) (cpu time.Duration, err error) {
	err = testbed.Await(ctx, "the end of all backends", func(ctx context.Context) error {
		n, err := s.cluster.PsqlSocket(ctx, s.host, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'")
		if err == nil && n != "0" {
			err = fmt.Errorf("%s backends", n)
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	return s.cpu()
}

// cpu is what the server's processes have used, those that have ended included.
func (s *server) cpu() (time.Duration, error) {
	pid, err := s.cluster.PID()
	if err != nil {
		return 0, err
	}
	all, err := procfs.AllProcs()
	if err != nil {
		return 0, err
	}
	var ticks int
	for _, p := range all {
		stat, err := p.Stat()
		if err != nil || stat.PID != pid && stat.PPID != pid {
			continue // it has ended, or is another's
		}
		ticks += int(stat.UTime + stat.STime) //nolint:gosec // fits for centuries
		if stat.PID == pid {
			ticks += stat.CUTime + stat.CSTime
		}
	}
	return time.Duration(ticks) * time.Second / userHZ, nil
}

// ratios divides pair by pair.
func ratios(hardened, bare []score, of func(score) float64) []float64 {
	var all []float64
	for i := range hardened {
		all = append(all, of(hardened[i])/of(bare[i]))
	}
	slices.Sort(all)
	return all
}

// spread is from the first to the third quartile of sorted values.
func spread(sorted []float64) string {
	n := len(sorted)
	return fmt.Sprintf("%.3f to %.3f", sorted[n/4], sorted[n-1-n/4])
}
