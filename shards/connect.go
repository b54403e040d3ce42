package shards

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// connectTimeout lets a dead shard fail fast: callers queue behind it.
	connectTimeout = 3 * time.Second
	// A peer that vanished without a word is noticed after about 25 s of silence.
	keepAliveIdle     = 10 * time.Second
	keepAliveInterval = 5 * time.Second
	keepAliveCount    = 3
	// ownerSilence ends a session of the owner whose process is frozen, and with
	// it the locks of maintenance; ownerIdle is when a process that is well
	// closes one that it does not need.
	ownerSilence = 10 * time.Minute
	ownerIdle    = time.Minute
)

// The three pools of a shard.
const (
	useMoney = "money"
	useReads = "reads"
	useOwner = "owner"
)

var errBadDSN = errors.New("not a PostgreSQL connection string (not shown, it may carry a password)")

// baseParams hold for every connection. They are sent with the start message,
// so that they also win over settings of the role, the database and the DSN. The
// server looks for a peer that vanished just as we do: else the sessions of a
// host that is gone, and their locks, would live for hours. On a unix socket
// it ignores these settings.
var baseParams = map[string]string{
	"TimeZone":                            "UTC",
	"DateStyle":                           "ISO",
	"jit":                                 "off",
	"default_transaction_isolation":       "read committed",
	"idle_in_transaction_session_timeout": "30s",
	"tcp_keepalives_idle":                 "10s",
	"tcp_keepalives_interval":             "5s",
	"tcp_keepalives_count":                "3",
	"tcp_user_timeout":                    "25s",
}

// moneyParams: the batches are functions over arrays whose sizes the planner
// cannot see. One generic plan that walks primary keys is right for all sizes,
// where a plan made for 500 rows would scan whole partitions. No timeout covers
// a commit: a cancelled one may be durable all the same.
var moneyParams = map[string]string{
	"enable_seqscan":     "off",
	"enable_hashjoin":    "off",
	"enable_mergejoin":   "off",
	"plan_cache_mode":    "force_generic_plan",
	"synchronous_commit": "on",
	"statement_timeout":  "0",
	"lock_timeout":       "0",
}

// poolConfig reads a DSN and adds what every connection of ours has. Its errors
// never show the DSN.
func poolConfig(shard int, dsn, use string) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(strings.TrimSpace(dsn))
	if err != nil || strings.TrimSpace(dsn) == "" {
		return nil, fmt.Errorf("DSN %d: %w", shard, errBadDSN)
	}
	conn := cfg.ConnConfig
	for name, value := range baseParams {
		conn.RuntimeParams[name] = value
	}
	conn.RuntimeParams["application_name"] = "holdfast-" + use
	if use == useMoney {
		for name, value := range moneyParams {
			conn.RuntimeParams[name] = value
		}
	}
	if conn.ConnectTimeout <= 0 || conn.ConnectTimeout > connectTimeout {
		conn.ConnectTimeout = connectTimeout
	}
	conn.DialFunc = (&net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount,
	}}).DialContext
	if use != useReads && conn.ValidateConnect == nil {
		conn.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	conn.OnNotice = rememberCommitWarning
	return cfg, nil
}

// connConfig is poolConfig for a connection outside of any pool.
func connConfig(shard int, dsn, use string) (*pgx.ConnConfig, error) {
	cfg, err := poolConfig(shard, dsn, use)
	if err != nil {
		return nil, err
	}
	return cfg.ConnConfig, nil
}

// refusedForGood tells a setting that is wrong from a shard that is down: bad
// DSN, wrong wiring, no migration, refused log-in (class 28), no such database.
func refusedForGood(err error) bool {
	if errors.Is(err, errBadDSN) || errors.Is(err, ErrMiswired) || errors.Is(err, ErrNotMigrated) {
		return true
	}
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (strings.HasPrefix(pg.Code, "28") || pg.Code == "3D000")
}

// commitWarned is the key of a connection's custom data.
const commitWarned = "holdfast_commit_warned"

// rememberCommitWarning marks a connection whose COMMIT stopped waiting for its
// synchronous standby. The server then reports success with a warning, although
// the standby may not have the commit. The warning has no SQLSTATE of its own
// and its text is translated, so it is known by the place in the server that
// sent it.
func rememberCommitWarning(c *pgconn.PgConn, n *pgconn.Notice) {
	if n.Routine == "SyncRepWaitForLSN" || strings.HasSuffix(n.File, "syncrep.c") {
		c.CustomData()[commitWarned] = true
	}
}

// TakeCommitWarning reports, once, whether a COMMIT since the last call came
// back with the warning that the synchronous standby may not have it. Such a
// commit is neither done nor undone: its outcome is unknown. Call it while you
// hold the connection.
func TakeCommitWarning(c *pgx.Conn) bool {
	data := c.PgConn().CustomData()
	_, warned := data[commitWarned]
	delete(data, commitWarned)
	return warned
}

const whoSQL = `SELECT cluster_id, shard, shards, epoch, current_setting('fsync') = 'on' FROM shard_self`

// admit is asked about every new connection of a pool. It gives up the owner's
// rights (SET ROLE: against mistakes, not against SQL that resets the role) and
// refuses a database that is not the shard it should be.
func (s *Set) admit(ctx context.Context, conn *pgx.Conn, shard int, use string) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if use != useOwner {
		if _, err := conn.Exec(ctx, "SET ROLE "+AppRole); err != nil {
			return s.admitError(shard, "take role "+AppRole, err)
		}
	}
	var id identity
	var fsync bool
	err := conn.QueryRow(ctx, whoSQL).Scan(&id.cluster, &id.shard, &id.shards, &id.epoch, &fsync)
	if err != nil {
		return s.admitError(shard, "read identity", err)
	}
	if err := id.check(shard, s.N(), [16]byte{}); err != nil {
		return err
	}
	s.cluster.CompareAndSwap(nil, &id.cluster) // the first one that is right names the cluster
	if err := id.check(shard, s.N(), *s.cluster.Load()); err != nil {
		return err
	}
	if !fsync {
		s.pools[shard].fsync.Do(func() {
			s.log.Warn("server runs with fsync off: a power cut loses acknowledged money", "shard", shard)
		})
	}
	return nil
}

// admitError turns "there is no such table, row or role" into ErrNotMigrated.
func (s *Set) admitError(shard int, doing string, err error) error {
	var pg *pgconn.PgError
	missing := errors.As(err, &pg) && (pg.Code == "42P01" || pg.Code == "22023")
	if missing || errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("DSN %d: %w, run: holdfast migrate up", shard, ErrNotMigrated)
	}
	return fmt.Errorf("shard %d: %s: %w", shard, doing, err)
}
