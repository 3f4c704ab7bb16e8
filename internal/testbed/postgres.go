package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Roles and database of every cluster.
const (
	Superuser   = "postgres"         // trusted from the bed's subnets and on the socket
	AppUser     = "app"              // needs AppPassword, scram-sha-256
	AppPassword = "testbed-password" // of a throw-away cluster without a way out
	AppDatabase = "app"              // owned by AppUser
)

const (
	defaultPort = 5432
	clientUser  = "nobody" // whom clients run as
)

// ClusterSpec describes a PostgreSQL cluster. The zero value is usable.
type ClusterSpec struct {
	User     string            // system user; default postgres
	Port     int               // default 5432
	Settings map[string]string // more settings for postgresql.conf, values as written there, such as "on" or "'x'"
}

// Cluster is a PostgreSQL data directory, and its server if Start was called. It goes away with the bed.
type Cluster struct {
	BinDir string // where postgres, psql and so on are
	Data   string // 0700, owned by User, below directories that only root can write to
	Socket string // directory of the Unix socket; only User and root get in
	Port   int
	User   *user.User

	bed *Bed
	log string

	mu sync.Mutex
	d  *daemon
}

// template is the data directory that clusters are copied from, one for each system user.
var template struct {
	sync.Mutex
	made map[string]string
}

// NewCluster makes a cluster ready to be started, by Start or by an agent. Its pg_hba.conf lets in the bed's subnets.
func (b *Bed) NewCluster(ctx context.Context, spec ClusterSpec) (*Cluster, error) {
	c, err := b.newCluster(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("cannot make a PostgreSQL cluster: %w", err)
	}
	return c, nil
}

func (b *Bed) newCluster(ctx context.Context, spec ClusterSpec) (*Cluster, error) {
	if spec.User == "" {
		spec.User = "postgres"
	}
	if spec.Port == 0 {
		spec.Port = defaultPort
	}
	u, err := user.Lookup(spec.User)
	if err != nil {
		return nil, fmt.Errorf("%w; install PostgreSQL's server package, which makes the user postgres, or name another one", err)
	}
	bin, err := binDir()
	if err != nil {
		return nil, err
	}
	from, err := makeTemplate(ctx, b.run, bin, u)
	if err != nil {
		return nil, err
	}
	dir, err := passableDir(b.dir, "pg-*")
	if err != nil {
		return nil, err
	}
	c := &Cluster{BinDir: bin, Data: filepath.Join(dir, "data"), Socket: filepath.Join(dir, "socket"), Port: spec.Port,
		User: u, bed: b, log: filepath.Join(dir, "postgres.log")}
	if err := tool(ctx, "cp", "-a", from, c.Data); err != nil {
		return nil, err
	}
	if err := ownedDir(c.Socket, u); err != nil {
		return nil, err
	}
	return c, c.configure(spec.Settings)
}

// configure writes what differs from initdb's files. Files that exist keep their owner and mode.
func (c *Cluster) configure(settings map[string]string) error {
	conf := filepath.Join(c.Data, "postgresql.conf")
	f, err := os.OpenFile(conf, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(confText(c.Port, c.Socket, settings))
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.Data, "pg_hba.conf"), []byte(hbaText(c.bed.subnets)), 0o600)
}

// confText is what is appended to postgresql.conf; the last mention of a setting counts. Pure.
func confText(port int, socket string, settings map[string]string) string {
	var s strings.Builder
	fmt.Fprintf(&s, "\nlisten_addresses = '*'\nport = %d\nunix_socket_directories = '%s'\n", port, socket)
	return s.String() + settingsText(settings)
}

func settingsText(settings map[string]string) string {
	var s strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&s, "%s = %s\n", name, settings[name])
	}
	return s.String()
}

// hbaText is pg_hba.conf. Pure.
func hbaText(subnets []netip.Prefix) string {
	var s strings.Builder
	s.WriteString("local all all trust\n")
	for _, p := range subnets {
		for _, database := range []string{"all", "replication"} {
			fmt.Fprintf(&s, "host %s %s %s trust\n", database, Superuser, p)
		}
		fmt.Fprintf(&s, "host all %s %s scram-sha-256\n", AppUser, p)
	}
	return s.String()
}

// Command is the command line of the server, for Start or for a service of the agent.
func (c *Cluster) Command() []string {
	return []string{filepath.Join(c.BinDir, "postgres"), "-D", c.Data}
}

// Start starts the server inside the host, unconfined, and returns when it accepts connections.
func (c *Cluster) Start(ctx context.Context, h *Host) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.d.running() {
		return errors.New("cannot start PostgreSQL: it runs")
	}
	argv := c.Command()
	cmd := h.CommandAs(context.WithoutCancel(ctx), c.User, argv[0], argv[1:]...) // its end is that of the bed, which kills it
	d, err := startDaemon(cmd, c.log)
	if err != nil {
		return fmt.Errorf("cannot start PostgreSQL: %w", err)
	}
	c.d = d
	err = d.await(ctx, "PostgreSQL on "+h.name, func(context.Context) error { return c.Ready() })
	if err != nil {
		return fmt.Errorf("%w\n%s", errors.Join(err, ignoreDone(d.cmd.Process.Kill())), c.Log())
	}
	return nil
}

func ignoreDone(err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Ready returns nil if the server, whoever started it, says in postmaster.pid that it accepts connections.
func (c *Cluster) Ready() error {
	data, err := os.ReadFile(filepath.Join(c.Data, "postmaster.pid"))
	if err != nil {
		return fmt.Errorf("cannot see whether PostgreSQL runs: %w", err)
	}
	_, status, err := parsePostmaster(data)
	if err == nil && status != "ready" {
		err = fmt.Errorf("PostgreSQL is %s", status)
	}
	return err
}

// PID returns the postmaster's process id as postmaster.pid has it.
func (c *Cluster) PID() (int, error) {
	data, err := os.ReadFile(filepath.Join(c.Data, "postmaster.pid"))
	if err != nil {
		return 0, fmt.Errorf("cannot see whether PostgreSQL runs: %w", err)
	}
	pid, _, err := parsePostmaster(data)
	return pid, err
}

// parsePostmaster reads postmaster.pid: line 1 is the process id, line 8 the status. Pure.
func parsePostmaster(data []byte) (pid int, status string, err error) {
	lines := strings.Split(string(data), "\n")
	pid, err = strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil || pid <= 0 {
		return 0, "", fmt.Errorf("cannot read postmaster.pid: %q is no process id", lines[0])
	}
	status = "starting"
	if len(lines) >= 8 {
		status = strings.TrimSpace(lines[7])
	}
	return pid, status, nil
}

// Stop ends a server that Start started with a fast shutdown. No server is no error.
func (c *Cluster) Stop(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.d.running() {
		return nil
	}
	code, err := c.d.end(ctx, unix.SIGINT)
	if err == nil && code != 0 {
		err = fmt.Errorf("exit code %d", code)
	}
	if err != nil {
		return fmt.Errorf("cannot stop PostgreSQL: %w\n%s", err, c.Log())
	}
	return nil
}

func (c *Cluster) daemon() *daemon {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.d
}

// Log returns the last lines of the server's log, if Start started it.
func (c *Cluster) Log() string { return tail(c.log) }

// serverVariable, in the environment, is the directory of the server's programs, for tests of another server than the one
// that is installed. It is root's, and has the clients' programs as well.
const serverVariable = "PGHARDEND_TEST_SERVER"

// binDir finds the newest server programs where Debian, and then Red Hat, put them.
func binDir() (string, error) {
	if dir := os.Getenv(serverVariable); dir != "" {
		return dir, nil
	}
	best, version := "", -1.0
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin/initdb", "/usr/pgsql-*/bin/initdb", "/usr/bin/initdb"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return "", err
		}
		for _, path := range found {
			dir := filepath.Dir(path)
			name := strings.TrimPrefix(filepath.Base(filepath.Dir(dir)), "pgsql-")
			v, err := strconv.ParseFloat(name, 64)
			if err != nil {
				v = 0
			}
			if v > version {
				best, version = dir, v
			}
		}
	}
	if best == "" {
		return "", errors.New("no initdb found; install PostgreSQL's server package (Debian: postgresql-15)")
	}
	return best, nil
}

// makeTemplate runs initdb for the user, once in a process.
func makeTemplate(ctx context.Context, r *run, bin string, u *user.User) (string, error) {
	template.Lock()
	defer template.Unlock()
	if dir := template.made[u.Username]; dir != "" {
		return dir, nil
	}
	parent, err := passableDir(r.dir(), "template-*")
	if err != nil {
		return "", err
	}
	data := filepath.Join(parent, "data")
	if err := ownedDir(data, u); err != nil {
		return "", err
	}
	if err := asUser(ctx, u, "", filepath.Join(bin, "initdb"), "-D", data, "-U", Superuser, "-E", "UTF8",
		"--locale=C.UTF-8", "--auth=trust", "--no-sync", "--no-instructions"); err != nil {
		return "", err
	}
	sql := fmt.Sprintf("SET password_encryption = 'scram-sha-256';\nCREATE ROLE %s LOGIN PASSWORD '%s';\nCREATE DATABASE %s OWNER %s;\n",
		AppUser, AppPassword, AppDatabase, AppUser)
	if err := asUser(ctx, u, sql, filepath.Join(bin, "postgres"), "--single", "-D", data, "-F", "-c", "exit_on_error=on", Superuser); err != nil {
		return "", err
	}
	if template.made == nil {
		template.made = map[string]string{}
	}
	template.made[u.Username] = data
	return data, nil
}

// asUser runs a program of the fixture outside of any host.
func asUser(ctx context.Context, u *user.User, input, name string, args ...string) error {
	cred, err := credential(u)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, name, args...)
	// Its own IPC namespace, so that no shared memory stays on the machine even if it is killed.
	cmd.SysProcAttr = &unix.SysProcAttr{Credential: cred, Cloneflags: unix.CLONE_NEWIPC}
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin", "LANG=C.UTF-8", "HOME=" + u.HomeDir}
	cmd.Stdin = strings.NewReader(input)
	cmd.WaitDelay = outputWait
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("cannot run %s: %w: %s", name, err, strings.TrimSpace(out.String()))
	}
	return nil
}

// passableDir makes a directory of a fresh name that everybody may pass and only root may write to, whatever the umask is.
func passableDir(parent, pattern string) (string, error) {
	dir, err := os.MkdirTemp(parent, pattern)
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// ownedDir makes a directory that is the user's alone.
func ownedDir(path string, u *user.User) error {
	uid, gid, err := ids(u)
	if err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	return os.Chown(path, uid, gid)
}
