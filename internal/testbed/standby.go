package testbed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// replicationSettings are what a pair of servers needs to swap roles: enough WAL for a standby that comes back, and what
// pg_rewind wants. A standby looks for a primary that is not there yet more often than every 5 s.
var replicationSettings = map[string]string{
	"wal_log_hints": "on", "wal_keep_size": "'128MB'", "wal_retrieve_retry_interval": "'200ms'", "hot_standby_feedback": "on",
}

// slots makes a physical replication slot for each name in a cluster that does not run. Unused ones keep no WAL.
func (c *Cluster) slots(ctx context.Context, names ...string) error {
	var sql strings.Builder
	for _, name := range names {
		fmt.Fprintf(&sql, "SELECT pg_create_physical_replication_slot('%s');\n", name)
	}
	return asUser(ctx, c.User, sql.String(), filepath.Join(c.BinDir, "postgres"), "--single", "-D", c.Data, "-F", "-c", "exit_on_error=on", Superuser)
}

// clone copies a cluster that was never started since its last clean shutdown. That is a base backup: both have the same
// system identifier, and the copy can follow the original from there.
func (c *Cluster) clone(ctx context.Context) (*Cluster, error) {
	dir, err := passableDir(c.bed.dir, "pg-*")
	if err != nil {
		return nil, err
	}
	n := &Cluster{BinDir: c.BinDir, Data: filepath.Join(dir, "data"), Socket: filepath.Join(dir, "socket"), Port: c.Port,
		User: c.User, bed: c.bed, log: filepath.Join(dir, "postgres.log")}
	if err := tool(ctx, "cp", "-a", c.Data, n.Data); err != nil {
		return nil, err
	}
	if err := ownedDir(n.Socket, n.User); err != nil {
		return nil, err
	}
	return n, n.set(map[string]string{"unix_socket_directories": "'" + n.Socket + "'"})
}

// set appends to postgresql.conf; the last mention of a setting counts.
func (c *Cluster) set(settings map[string]string) error {
	f, err := os.OpenFile(filepath.Join(c.Data, "postgresql.conf"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(settingsText(settings))
	return errors.Join(err, f.Close())
}

// follow makes the cluster a streaming standby of the server at an address, under a name that is also its slot's.
func (c *Cluster) follow(primary netip.Addr, port int, name string) error {
	err := c.set(map[string]string{
		"primary_conninfo":  fmt.Sprintf("'host=%s port=%d user=%s application_name=%s connect_timeout=3'", primary, port, Superuser, name),
		"primary_slot_name": "'" + slotName(name) + "'",
	})
	if err != nil {
		return err
	}
	uid, gid, err := ids(c.User)
	if err != nil {
		return err
	}
	signal := filepath.Join(c.Data, "standby.signal")
	if err := os.WriteFile(signal, nil, 0o600); err != nil {
		return err
	}
	return os.Chown(signal, uid, gid)
}

// slotName turns a host's name into what PostgreSQL takes for a slot.
func slotName(host string) string { return strings.ReplaceAll(host, "-", "_") }
