package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pghardend/pghardend/pkg/config"
)

// Facts is what this node's services say about themselves, by name. One that
// could not be asked is missing.
type Facts map[string]Capacity

// Capacity is how many connections a service takes at once.
type Capacity struct {
	Clients    int `json:"clients"`     // max_connections of postgres, num_init_children of pgpool
	WALSenders int `json:"wal_senders"` // max_wal_senders of postgres
}

// capacity is what the services of a role on this node take; false if nobody
// knows: a server that others start, or one that could not be asked. Of several
// the largest counts, since a limit that is too low keeps clients out.
func capacity(cfg config.Config, role string, facts Facts) (most Capacity, known bool) {
	for _, svc := range cfg.Services {
		if svc.Profile != role {
			continue
		}
		c, asked := facts[svc.Name]
		switch {
		case svc.MaxConnections != 0 && !asked:
			c = Capacity{Clients: svc.MaxConnections, WALSenders: defaultWALSenders}
		case svc.MaxConnections != 0:
			c.Clients = svc.MaxConnections
		case !asked:
			return Capacity{}, false
		}
		most.Clients, most.WALSenders = max(most.Clients, c.Clients), max(most.WALSenders, c.WALSenders)
	}
	return most, most.Clients != 0
}

// defaultWALSenders is PostgreSQL's max_wal_senders.
const defaultWALSenders = 10

const (
	// For one service. Postgres takes milliseconds, on an overloaded host seconds; without its answer a command
	// would compare the rules with limits that the daemon has not derived.
	askTimeout = 20 * time.Second
	askAgain   = time.Minute // after a failure
)

// factsFile in runtime_dir holds the answers, so that commands and a daemon
// that starts again know what a running server was started with.
const factsFile = "facts.json"

// A factReader asks the services, and again when an answer may have changed. It
// is used by one goroutine.
type factReader struct {
	log   *slog.Logger
	ask   func(ctx context.Context, svc config.Service, configFile string) (Capacity, error)
	known map[string]answer // by service; nil until the file was read
	keep  bool              // writes the file
}

type answer struct {
	Sign     string   `json:"sign"` // of what it was true for, see signOf
	Capacity Capacity `json:"capacity"`

	failed time.Time // zero if it did not
}

func newFactReader(log *slog.Logger) *factReader {
	return &factReader{log: log, ask: askCapacity, keep: true}
}

// read returns what the services of cfg say. configFile is where the launch
// stage finds the same configuration. Nothing is asked twice, unless the service
// has been restarted since: that is when its settings count.
func (r *factReader) read(ctx context.Context, cfg config.Config, configFile string) Facts {
	file := filepath.Join(cfg.RuntimeDir, factsFile)
	if r.known == nil {
		r.known = loadAnswers(ctx, file)
	}
	facts := Facts{}
	asked := false
	for _, svc := range cfg.Services {
		sign := signOf(ctx, svc)
		if sign == "" {
			continue
		}
		last, ok := r.known[svc.Name]
		if !ok || last.Sign != sign || !last.failed.IsZero() && time.Since(last.failed) >= askAgain {
			last = r.askOne(ctx, svc, configFile, sign, last)
			r.known[svc.Name] = last
			asked = true
		}
		if last.Capacity.Clients != 0 {
			facts[svc.Name] = last.Capacity
		}
	}
	if asked && r.keep {
		saveAnswers(ctx, file, r.known)
	}
	return facts
}

// loadAnswers: without the file, or with one that is not ours, all are asked again.
func loadAnswers(ctx context.Context, file string) map[string]answer {
	known := map[string]answer{}
	data, err := config.ReadFile(ctx, file)
	if err == nil {
		err = json.Unmarshal(data, &known)
	}
	if err != nil || known == nil {
		return map[string]answer{}
	}
	maps.DeleteFunc(known, func(_ string, a answer) bool { return checkCapacity(a.Capacity) != nil })
	return known
}

// saveAnswers: what cannot be kept is asked again by the next command.
func saveAnswers(ctx context.Context, file string, known map[string]answer) {
	good := maps.Clone(known)
	maps.DeleteFunc(good, func(_ string, a answer) bool { return !a.failed.IsZero() })
	if data, err := json.Marshal(good); err == nil {
		_ = replaceFile(ctx, file, data)
	}
}

// askOne keeps the former answer if there is no new one.
func (r *factReader) askOne(ctx context.Context, svc config.Service, configFile, sign string, old answer) answer {
	c, err := r.ask(ctx, svc, configFile)
	if err == nil {
		if c != old.Capacity {
			r.log.Info("connection limits are derived", "service", svc.Name, "max_connections", c.Clients, "max_wal_senders", c.WALSenders)
		}
		return answer{Sign: sign, Capacity: c}
	}
	if old.failed.IsZero() {
		r.log.Warn("cannot ask a service how many connections it takes; set services."+svc.Name+".max_connections if the default is wrong",
			"service", svc.Name, "error", err)
	}
	return answer{Sign: sign, Capacity: old.Capacity, failed: time.Now()}
}

// readFacts asks once, for commands, which write nothing; what cannot be asked is
// left out.
func readFacts(ctx context.Context, cfg config.Config, configFile string) Facts {
	r := newFactReader(slog.New(slog.DiscardHandler))
	r.keep = false
	w := factWatch{reader: r, patience: commandPatience}
	return w.read(ctx, cfg, configFile)
}

func (f Facts) equal(o Facts) bool { return maps.Equal(f, o) }

// canAsk says whether a service can be asked, and has to be.
func canAsk(svc config.Service) bool {
	return svc.MaxConnections == 0 && (isPostgres(svc) || svc.Profile == config.RolePgpool && pgpoolFile(svc.Command) != "")
}

func anyToAsk(cfg config.Config) bool { return slices.ContainsFunc(cfg.Services, canAsk) }

// signOf changes with what a service would answer; "" if it is not to be asked.
func signOf(ctx context.Context, svc config.Service) string {
	switch {
	case ctx.Err() != nil || !canAsk(svc):
		return ""
	case isPostgres(svc):
		return strings.Join(svc.Command, " ") + " " + startOf(ctx, svc.DataDir)
	}
	file := pgpoolFile(svc.Command)
	return file + " " + fileSign(file)
}

// isPostgres: only of postgres itself is it known that it answers and ends when
// it is given -C; a wrapper might start a server.
func isPostgres(svc config.Service) bool {
	base := filepath.Base(svc.Command[0])
	return svc.Profile == config.RolePostgres && (base == "postgres" || base == "postmaster")
}

// startOf tells one start of a server from the next by its process and time, the
// first and third line of postmaster.pid (src/include/utils/pidfile.h).
func startOf(ctx context.Context, dataDir string) string {
	data, err := readForeign(ctx, filepath.Join(dataDir, "postmaster.pid"), 4096)
	lines := strings.Split(string(data), "\n")
	if dataDir == "" || err != nil || len(lines) < 3 {
		return "not running"
	}
	return lines[0] + " " + lines[2]
}

func fileSign(path string) string {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "none"
	}
	return fmt.Sprint(st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec)
}

func askCapacity(ctx context.Context, svc config.Service, configFile string) (Capacity, error) {
	if svc.Profile == config.RolePgpool {
		return readPgpool(ctx, pgpoolFile(svc.Command))
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var c Capacity
	for _, s := range []struct {
		name string
		into *int
	}{{"max_connections", &c.Clients}, {"max_wal_senders", &c.WALSenders}} {
		var err error
		if *s.into, err = askPostgres(ctx, svc.Name, configFile, s.name); err != nil {
			return Capacity{}, err
		}
	}
	return c, checkCapacity(c)
}

// checkClients: more than PostgreSQL's MAX_BACKENDS is no answer.
func checkClients(n int) error {
	if n < 1 || n > 262143 {
		return fmt.Errorf("%d connections are not what a server takes", n)
	}
	return nil
}

func checkCapacity(c Capacity) error {
	if c.WALSenders < 0 || c.WALSenders > 262143 {
		return fmt.Errorf("%d WAL senders are not what a server takes", c.WALSenders)
	}
	return checkClients(c.Clients)
}

// askPostgres runs the service's program confined as the service is, since the
// files that it reads for the answer are the service user's.
func askPostgres(ctx context.Context, service, configFile, setting string) (int, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "exec", "--service", service, "--config", configFile, "--ask", setting)
	cmd.Args[0] = os.Args[0]
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = time.Second
	out, err := answerOf(cmd)
	if err != nil {
		return 0, fmt.Errorf("cannot ask service %s for %s: %w", service, setting, err)
	}
	n, err := strconv.Atoi(out)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("cannot ask service %s for %s: it answers %.64q", service, setting, out)
	}
	return n, nil
}

// maxAnswer is far above what a number or a reason needs, in bytes.
const maxAnswer = 1 << 10

// answerOf runs cmd and returns what it says, of which the service user may be the
// author, so that no more than maxAnswer is kept.
func answerOf(cmd *exec.Cmd) (string, error) {
	var out, reason beginning
	cmd.Stdout, cmd.Stderr = &out, &reason
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%w: %s", err, bytes.TrimSpace(reason.text))
	}
	return string(bytes.TrimSpace(out.text)), nil
}

// beginning keeps the first maxAnswer bytes that are written to it.
type beginning struct{ text []byte }

func (b *beginning) Write(p []byte) (int, error) {
	b.text = append(b.text, p[:min(len(p), maxAnswer-len(b.text))]...)
	return len(p), nil
}

// maxPgpoolFile is far above what a pgpool.conf has, in bytes.
const maxPgpoolFile = 1 << 20

func readPgpool(ctx context.Context, path string) (Capacity, error) {
	data, err := readForeign(ctx, path, maxPgpoolFile)
	if err != nil {
		return Capacity{}, err
	}
	clients, err := parseNumInitChildren(data)
	if err != nil {
		return Capacity{}, fmt.Errorf("%s: %w", path, err)
	}
	return Capacity{Clients: clients}, nil
}

// readForeign reads a file that may be a service user's, so nothing is known of
// it: a link could lead anywhere, and a pipe would hold us up.
func readForeign(ctx context.Context, path string, most int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes", path, most)
	}
	data, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return data, nil
}
