package shards

import (
	"cmp"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/failpoint"
)

//go:embed migrations/*.sql
var embedded embed.FS

// migration is one file NNNN_name.sql.
type migration struct {
	version  int
	name     string // the file's name
	sql      string
	checksum string // SHA-256 of the file, hex
}

// readMigrations reads the files in the order of their numbers.
func readMigrations(files fs.FS) ([]migration, error) {
	names, err := fs.Glob(files, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	list := make([]migration, 0, len(names))
	for _, name := range names {
		body, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		base := path.Base(name)
		number, _, _ := strings.Cut(base, "_")
		version, err := strconv.Atoi(number)
		if err != nil || version < 1 {
			return nil, fmt.Errorf("migration %s: its name must begin with a number and an underscore", base)
		}
		sum := sha256.Sum256(body)
		list = append(list, migration{version: version, name: base, sql: string(body), checksum: hex.EncodeToString(sum[:])})
	}
	slices.SortFunc(list, func(a, b migration) int { return cmp.Compare(a.version, b.version) })
	for i := 1; i < len(list); i++ {
		if list[i].version == list[i-1].version {
			return nil, fmt.Errorf("migrations %s and %s have the same number", list[i-1].name, list[i].name)
		}
	}
	return list, nil
}

// Migrate brings every shard to the schema of this binary, writes or verifies
// who each shard is, makes the application's role and the partitions. Any
// number of processes may call it at once. dsns are in the order of the shards;
// a nil map means the stored one, or an even one on first use. A wrong wiring
// is found before anything is written and is ErrMiswired. A shard that is down
// leaves the others migrated, unless the cluster is still unborn; the error is
// then holdfast.ErrShardUnavailable and nothing else is wrong.
func Migrate(ctx context.Context, dsns []string, m *holdfast.ShardMap, log *slog.Logger) error {
	return migrate(ctx, embedded, dsns, m, log)
}

func migrate(ctx context.Context, files fs.FS, dsns []string, m *holdfast.ShardMap, log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	list, err := readMigrations(files)
	if err != nil {
		return err
	}
	conns, down, err := connectOwners(ctx, dsns)
	if err != nil {
		return err
	}
	defer closeAll(conns)
	if err := refuseTwins(ctx, conns); err != nil {
		return err
	}
	if first := slices.IndexFunc(conns, func(c *pgx.Conn) bool { return c != nil }); first >= 0 {
		// Two processes that meet an unborn cluster must not each invent an id
		// for it. The lock ends with the connection.
		if err := lockSession(ctx, conns[first], lockCluster, log.With("shard", first)); err != nil {
			return fmt.Errorf("DSN %d: %w", first, err)
		}
	}
	cluster, m, err := agree(ctx, conns, down, m)
	if err != nil {
		return err
	}
	var group errgroup.Group
	for shard, conn := range conns {
		if conn != nil {
			group.Go(func() error {
				return migrateShard(ctx, conn, shard, list, cluster, m, log.With("shard", shard))
			})
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return down
}

// agree finds the one cluster and the one map behind all the DSNs, before
// anything is written anywhere.
func agree(ctx context.Context, conns []*pgx.Conn, down error, m *holdfast.ShardMap) (cluster [16]byte, _ *holdfast.ShardMap, err error) {
	given := m != nil
	if given {
		if err := checkMap(m, len(conns)); err != nil {
			return cluster, nil, err
		}
	}
	empty, used := -1, -1
	for i, conn := range conns {
		if conn == nil {
			continue
		}
		id, found, err := readIdentity(ctx, conn)
		if err != nil {
			return cluster, nil, fmt.Errorf("DSN %d: read identity: %w", i, err)
		}
		if !found {
			empty = i
			continue
		}
		if err := id.check(i, len(conns), cluster); err != nil {
			return cluster, nil, err
		}
		cluster = id.cluster
		stored, err := readMap(ctx, conn)
		if err != nil {
			return cluster, nil, fmt.Errorf("DSN %d: %w", i, err)
		}
		if m == nil {
			m = stored
		}
		if err := sameMap(i, stored, m); err != nil {
			return cluster, nil, err
		}
		var hasAccounts bool
		if err := conn.QueryRow(ctx, hasAccountsSQL).Scan(&hasAccounts); err != nil {
			return cluster, nil, fmt.Errorf("DSN %d: look for accounts: %w", i, err)
		}
		if hasAccounts {
			used = i
		}
	}
	switch {
	case down != nil && (empty >= 0 || cluster == [16]byte{}):
		return cluster, nil, down // who is down may know what the others do not
	case empty >= 0 && used >= 0:
		return cluster, nil, fmt.Errorf("%w: DSN %d leads to an empty database, but the shard of DSN %d has accounts already; a new shard would have lost its money", ErrMiswired, empty, used)
	case cluster == [16]byte{}:
		cluster = newCluster()
	}
	if m == nil {
		m = holdfast.EvenShardMap(len(conns))
	}
	return cluster, m, nil
}

const hasAccountsSQL = `SELECT EXISTS (SELECT FROM accounts)`

// migrateShard does one shard, under its lock.
func migrateShard(ctx context.Context, conn *pgx.Conn, shard int, list []migration, cluster [16]byte, m *holdfast.ShardMap, log *slog.Logger) error {
	if err := lockSession(ctx, conn, lockMigrate, log); err != nil {
		return fmt.Errorf("DSN %d: %w", shard, err)
	}
	defer unlockSession(ctx, conn, lockMigrate)
	done, err := applied(ctx, conn)
	if err != nil {
		return fmt.Errorf("DSN %d: read applied migrations: %w", shard, err)
	}
	newest := 0
	for version := range done {
		newest = max(newest, version)
	}
	for _, f := range list {
		switch was, ok := done[f.version]; {
		case ok && was.checksum != f.checksum:
			return fmt.Errorf("migration %s was changed after it was applied to shard %d at %s; write a new one instead", f.name, shard, was.at.Format(time.RFC3339))
		case ok:
		case f.version < newest:
			return fmt.Errorf("migration %s is missing on shard %d, which has %d already; migrations only go forward", f.name, shard, newest)
		default:
			if err := applyBesideLoad(ctx, conn, f, log); err != nil {
				return fmt.Errorf("apply migration %s to shard %d: %w", f.name, shard, err)
			}
			if err := failpoint.Hit(pointMigrationCommitted); err != nil {
				return fmt.Errorf("migrate shard %d: %w", shard, err)
			}
			log.Info("migration applied", "migration", f.name)
		}
	}
	if err := settle(ctx, conn, shard, cluster, m); err != nil {
		return err
	}
	if err := grantApp(ctx, conn, log); err != nil {
		return fmt.Errorf("shard %d: %w", shard, err)
	}
	if _, err := ensurePartitions(ctx, conn, log); err != nil {
		return fmt.Errorf("shard %d: %w", shard, err)
	}
	return nil
}

const createMigrationsSQL = `
CREATE TABLE IF NOT EXISTS schema_migrations (
    version    integer     PRIMARY KEY,
    name       text        NOT NULL,
    checksum   text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
)`

const insertMigrationSQL = `INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)`

// migrationLockWait bounds how long a migration may queue for a lock: while it
// waits, everybody behind it waits too.
const migrationLockWait = `SET LOCAL lock_timeout = '10s'`

// applyTries is how often a migration may lose its locks to the load.
const applyTries = 5

// applyBesideLoad applies a file again that was the victim of a deadlock: a
// migration takes its locks in its own order, transactions under way in theirs.
// Nothing of it was done then. Who queued in vain for a whole lock_timeout is
// told so instead, because everybody had to wait behind it.
func applyBesideLoad(ctx context.Context, conn *pgx.Conn, f migration, log *slog.Logger) error {
	for try := 1; ; try++ {
		err := apply(ctx, conn, f)
		if !deadlocked(err) || try == applyTries {
			return err
		}
		log.Warn("a migration and the load locked each other out; it is applied again", "migration", f.name, "try", try, "error", err)
		if err := pause(ctx, time.Duration(try)*200*time.Millisecond); err != nil {
			return err
		}
	}
}

// apply runs one file and remembers it in the same transaction, so that a crash
// leaves either both or nothing.
func apply(ctx context.Context, conn *pgx.Conn, f migration) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		for _, sql := range []string{migrationLockWait, createMigrationsSQL, f.sql} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, insertMigrationSQL, f.version, f.name, f.checksum); err != nil {
			return err
		}
		return failpoint.Hit(pointMigrationUncommitted)
	})
}

type appliedMigration struct {
	name     string
	checksum string
	at       time.Time
}

const appliedSQL = `SELECT version, name, checksum, applied_at FROM schema_migrations`

// applied reads what a shard has; a shard without the table has nothing.
func applied(ctx context.Context, conn *pgx.Conn) (map[int]appliedMigration, error) {
	var exists bool
	if err := conn.QueryRow(ctx, `SELECT to_regclass('schema_migrations') IS NOT NULL`).Scan(&exists); err != nil || !exists {
		return nil, err
	}
	rows, err := conn.Query(ctx, appliedSQL)
	if err != nil {
		return nil, err
	}
	done := map[int]appliedMigration{}
	var version int
	var a appliedMigration
	_, err = pgx.ForEachRow(rows, []any{&version, &a.name, &a.checksum, &a.at}, func() error {
		done[version] = a
		return nil
	})
	return done, err
}

// closeAll ends the connections with a deadline of its own: a cancelled caller
// must not leave locks to time out on the server.
func closeAll(conns []*pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	for _, c := range conns {
		if c != nil {
			_ = c.Close(ctx) // nothing is left to save on it
		}
	}
}

// connectOwners opens one connection per shard. A shard that does not answer is
// nil and part of down; a DSN that can never work is err.
func connectOwners(ctx context.Context, dsns []string) (conns []*pgx.Conn, down, err error) {
	if len(dsns) == 0 {
		return nil, nil, errors.New("no shard is configured")
	}
	conns = make([]*pgx.Conn, len(dsns))
	errs := make([]error, len(dsns))
	var group errgroup.Group
	for i, dsn := range dsns {
		group.Go(func() error {
			cfg, err := connConfig(i, dsn, "owner")
			if err != nil {
				return err
			}
			conn, err := pgx.ConnectConfig(ctx, cfg)
			switch {
			case err == nil:
				conns[i] = conn
			case refusedForGood(err):
				return fmt.Errorf("DSN %d: %w", i, err)
			default:
				errs[i] = fmt.Errorf("%w: DSN %d: %w", holdfast.ErrShardUnavailable, i, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		closeAll(conns)
		return nil, nil, err
	}
	return conns, errors.Join(errs...), nil
}
