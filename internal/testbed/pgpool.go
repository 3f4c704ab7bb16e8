package testbed

import (
	"context"
	"crypto/md5" //nolint:gosec // the only format of pcp.conf
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	texttemplate "text/template"

	"golang.org/x/sys/unix"
)

// PoolChildren is how many clients a pgpool serves at once.
const PoolChildren = 16

const (
	pgpoolBinary = "/usr/sbin/pgpool"
	poolPort     = 9999
	pcpPort      = 9898
	pcpUser      = "pcp"
	pcpPassword  = "testbed-pcp" // of a throw-away instance without a way out
	poolConfFile = "pgpool.conf"
	failoverFile = "failover.sh"
)

//go:embed files
var files embed.FS

// Pgpool is a pgpool-II of an instance. It goes away with the bed.
type Pgpool struct {
	Host     *Host
	Dir      string // root's: the configuration and the failover script
	Conf     string // pgpool.conf
	Socket   string // directory of all its Unix sockets; only User and root get in
	State    string // pid file and pool_status, User's
	Failover string // the program of failover_command: a helper of the service
	Port     int    // of clients
	PCPPort  int
	User     *user.User

	programs *Cluster // for PostgreSQL's client programs
	log      string

	mu sync.Mutex
	d  *daemon
}

// poolConf is what files/pgpool.conf is filled with.
type poolConf struct {
	*Pgpool
	ID, Children, Priority int
	LoadBalance, Superuser string
	Backends, Members      []poolMember
}

type poolMember struct {
	Index   int
	Name    string
	Address netip.Addr
	Port    int
}

// newPgpool makes the files of the instance's i-th pgpool.
func (in *Instance) newPgpool(i int) (*Pgpool, error) {
	if _, err := os.Stat(pgpoolBinary); err != nil {
		return nil, fmt.Errorf("%w; install pgpool-II (Debian: pgpool2)", err)
	}
	dir, err := passableDir(in.Bed.dir, "pool-*")
	if err != nil {
		return nil, err
	}
	p := &Pgpool{Host: in.PoolNodes()[i], Dir: dir, Conf: filepath.Join(dir, poolConfFile), Socket: filepath.Join(dir, "socket"),
		State: filepath.Join(dir, "state"), Failover: filepath.Join(dir, failoverFile), Port: poolPort, PCPPort: pcpPort,
		User: in.Postgres[0].User, programs: in.Postgres[0], log: filepath.Join(dir, "pgpool.log")}
	if err := errors.Join(ownedDir(p.Socket, p.User), ownedDir(p.State, p.User)); err != nil {
		return nil, err
	}
	return p, p.configure(in.poolConf(p, i))
}

func (in *Instance) poolConf(p *Pgpool, i int) poolConf {
	c := poolConf{Pgpool: p, ID: i, Children: PoolChildren, Priority: poolCount - i, LoadBalance: "off", Superuser: Superuser}
	if in.spec.LoadBalance {
		c.LoadBalance = "on"
	}
	for j, h := range in.PgNodes() {
		c.Backends = append(c.Backends, poolMember{j, h.name, h.V4(), in.Postgres[j].Port})
	}
	for j, h := range in.PoolNodes() {
		c.Members = append(c.Members, poolMember{j, h.name, h.V4(), poolPort})
	}
	return c
}

// configure writes the files. Those with a secret are for root and the user's group.
func (p *Pgpool) configure(c poolConf) error {
	_, gid, err := ids(p.User)
	if err != nil {
		return err
	}
	conf, err := fill(poolConfFile, c)
	if err != nil {
		return err
	}
	script, err := fill(failoverFile, map[string]string{"Psql": p.psql(), "Superuser": Superuser})
	if err != nil {
		return err
	}
	sum := md5.Sum([]byte(pcpPassword)) //nolint:gosec // the only format of pcp.conf
	for _, f := range []struct {
		name, text string
		mode       os.FileMode
	}{
		{poolConfFile, conf, 0o640},
		{failoverFile, script, 0o755},
		{"pool_hba.conf", poolHBA(p.programs.bed.subnets), 0o640},
		{"pool_passwd", AppUser + ":TEXT" + AppPassword + "\n", 0o640},
		{"pcp.conf", pcpUser + ":" + hex.EncodeToString(sum[:]) + "\n", 0o640},
		{"pgpool_node_id", fmt.Sprintln(c.ID), 0o644},
	} {
		path := filepath.Join(p.Dir, f.name)
		err := os.WriteFile(path, []byte(f.text), f.mode)
		if err == nil {
			err = errors.Join(os.Chown(path, 0, gid), os.Chmod(path, f.mode)) // whatever the umask is
		}
		if err != nil {
			return err
		}
	}
	return p.writePCPPass()
}

// writePCPPass writes what the pcp programs read the password from; it must be its owner's alone.
func (p *Pgpool) writePCPPass() error {
	uid, gid, err := ids(p.User)
	if err != nil {
		return err
	}
	if err := os.WriteFile(p.pcpPass(), []byte("*:*:"+pcpUser+":"+pcpPassword+"\n"), 0o600); err != nil {
		return err
	}
	return os.Chown(p.pcpPass(), uid, gid)
}

func (p *Pgpool) pcpPass() string { return filepath.Join(p.Dir, "pcppass") }

// fill renders one of the embedded files.
func fill(name string, data any) (string, error) {
	t, err := texttemplate.ParseFS(files, "files/"+name)
	if err != nil {
		return "", fmt.Errorf("cannot read the built-in %s: %w", name, err)
	}
	var s strings.Builder
	if err := t.Option("missingkey=error").Execute(&s, data); err != nil {
		return "", fmt.Errorf("cannot fill in %s: %w", name, err)
	}
	return s.String(), nil
}

// poolHBA is pool_hba.conf. Pure.
func poolHBA(subnets []netip.Prefix) string {
	var s strings.Builder
	s.WriteString("local all all trust\n")
	for _, p := range subnets {
		fmt.Fprintf(&s, "host all %s %s scram-sha-256\n", AppUser, p)
	}
	return s.String()
}

// Command is the command line of the server, for Start or for a service of the agent.
func (p *Pgpool) Command() []string {
	return []string{pgpoolBinary, "-n", "-f", p.Conf, "-a", filepath.Join(p.Dir, "pool_hba.conf"), "-F", filepath.Join(p.Dir, "pcp.conf")}
}

// PoolServiceOf describes a pgpool as a service of the pgpool profile, with what its failover command runs.
func PoolServiceOf(p *Pgpool) Service {
	return Service{Profile: "pgpool", User: p.User.Username, Command: p.Command(),
		Helpers:  []string{p.Failover, p.psql()},
		Landlock: map[string]any{"read": []string{p.Dir}, "write": []string{p.Socket, p.State}},
	}
}

func (p *Pgpool) psql() string { return filepath.Join(p.programs.BinDir, "psql") }

// Start starts the server unconfined, and does not wait for anything it does. It runs until it is stopped or the bed is closed.
func (p *Pgpool) Start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.d.running() {
		return fmt.Errorf("cannot start pgpool on %s: it runs", p.Host.name)
	}
	argv := p.Command()
	cmd := p.Host.CommandAs(context.WithoutCancel(ctx), p.User, argv[0], argv[1:]...) // its end is that of the bed, which kills it
	d, err := startDaemon(cmd, p.log)
	if err != nil {
		return fmt.Errorf("cannot start pgpool on %s: %w", p.Host.name, err)
	}
	p.d = d
	return nil
}

// Stop ends a server that Start started, with a fast shutdown. No server is no error.
func (p *Pgpool) Stop(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.d.running() {
		return nil
	}
	code, err := p.d.end(ctx, unix.SIGINT)
	if err == nil && code != 0 {
		err = fmt.Errorf("exit code %d", code)
	}
	if err != nil {
		return fmt.Errorf("cannot stop pgpool on %s: %w\n%s", p.Host.name, err, p.Log())
	}
	return nil
}

func (p *Pgpool) daemon() *daemon {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.d
}

// Log returns the last lines of the server's log, if Start started it.
func (p *Pgpool) Log() string { return tail(p.log) }

// PID returns the main process's id as the pid file has it.
func (p *Pgpool) PID() (int, error) {
	data, err := os.ReadFile(filepath.Join(p.State, "pgpool.pid"))
	if err != nil {
		return 0, fmt.Errorf("cannot see whether pgpool runs: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimRight(string(data), "\x00\n ")) // pgpool writes the terminating zero as well
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("cannot read pgpool.pid: %q is no process id", data)
	}
	return pid, nil
}

// Conninfo is the libpq connection string for the application's role at an address of the node. Its password is in the
// environment of the clients.
func (p *Pgpool) Conninfo(at netip.Addr) string {
	return fmt.Sprintf("host=%s port=%d user=%s dbname=%s connect_timeout=5", at, p.Port, AppUser, AppDatabase)
}

// PsqlSocket runs SQL statements by the server's Unix socket as superuser: it works whatever the network lets in.
func (p *Pgpool) PsqlSocket(ctx context.Context, sql string) (string, error) {
	conninfo := fmt.Sprintf("host=%s port=%d user=%s dbname=postgres", p.Socket, p.Port, Superuser)
	return p.programs.runPsql(p.programs.client(ctx, p.Host, p.User, "psql", psqlArgs(conninfo)...), sql)
}

// PCP prepares one of pgpool's control programs, such as pcp_attach_node, by the server's Unix socket.
func (p *Pgpool) PCP(ctx context.Context, program string, args ...string) *exec.Cmd {
	argv := append([]string{"-h", p.Socket, "-p", strconv.Itoa(p.PCPPort), "-U", pcpUser, "-w"}, args...)
	cmd := p.Host.CommandAs(ctx, p.User, program, argv...)
	cmd.Env = append(cmd.Env, "PCPPASSFILE="+p.pcpPass())
	return cmd
}
