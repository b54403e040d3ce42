package shards

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
)

// Advisory locks of this package, all with the class "HFsh". The numbers are
// part of the agreement between binaries of different versions.
const (
	lockClass   int32 = 0x48467368
	lockCluster int32 = 1 // who decides the cluster id; on the first shard only
	lockMigrate int32 = 2 // who migrates this shard
	lockDays    int32 = 3 // who creates partitions on this shard
	lockPurge   int32 = 4 // who ages idempotency keys on this shard
)

// lockSession waits for a lock that lasts as long as the connection.
func lockSession(ctx context.Context, conn *pgx.Conn, lock int32, log *slog.Logger) error {
	var got bool
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1, $2)`, lockClass, lock).Scan(&got); err != nil {
		return fmt.Errorf("take lock %d: %w", lock, err)
	}
	if got {
		return nil
	}
	log.Info("waiting for another process that migrates")
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock($1, $2)`, lockClass, lock); err != nil {
		return fmt.Errorf("wait for lock %d: %w", lock, err)
	}
	return nil
}

// unlockSession gives the lock back before the connection ends. When that fails
// the connection is broken and the server has released the lock itself.
func unlockSession(ctx context.Context, conn *pgx.Conn, lock int32) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_, _ = conn.Exec(ctx, `SELECT pg_advisory_unlock($1, $2)`, lockClass, lock)
}

// twinSQL asks who else of this run has marked the database we are connected to.
const twinSQL = `
SELECT min(objid::bigint) FROM pg_locks
WHERE locktype = 'advisory' AND objsubid = 2 AND classid::bigint = $1 AND objid::bigint <> $2
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`

// refuseTwins finds two DSNs that lead to one database, which would put two
// shards into the same tables. Each database is marked with a lock under a
// number that only this run knows.
func refuseTwins(ctx context.Context, conns []*pgx.Conn) error {
	var b [4]byte
	rand.Read(b[:])
	run := int32(binary.BigEndian.Uint32(b[:]) >> 1)
	for i, conn := range conns {
		if conn == nil {
			continue
		}
		if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock($1, $2)`, run, int32(i)); err != nil {
			return fmt.Errorf("DSN %d: mark database: %w", i, err)
		}
		var twin *int64
		if err := conn.QueryRow(ctx, twinSQL, int64(run), int64(i)).Scan(&twin); err != nil {
			return fmt.Errorf("DSN %d: look for a second DSN of this database: %w", i, err)
		}
		if twin != nil {
			return fmt.Errorf("%w: DSN %d and DSN %d lead to the same database", ErrMiswired, *twin, i)
		}
	}
	return nil
}
