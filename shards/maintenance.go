package shards

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-escrow/holdfast"
)

const (
	maintainEvery = time.Hour
	// maintainRetry is how soon a shard that failed is looked at again.
	maintainRetry = 30 * time.Second
	// The longest that one run may take on a shard.
	partitionTime = 5 * time.Minute
	purgeTime     = 15 * time.Minute
	// purgeBlocks is how many pages one statement reads. A row takes at least
	// 100 bytes, so that they hold less than purgeRows rows.
	purgeBlocks = 60
	purgeRows   = 5000
	keyTables   = 4
	// purgeSkew is how far the shard's clock may be from ours: keys expire by
	// it, and one that was purged too early lets a repeat pay twice.
	purgeSkew = time.Minute
)

// RunMaintenance keeps the partitions of every shard ahead of time and ages
// idempotency keys, at once and then every hour, until ctx ends. A shard that
// is down delays no other and is tried again soon.
func (s *Set) RunMaintenance(ctx context.Context) {
	var group sync.WaitGroup
	for shard := range s.pools {
		group.Go(func() { s.maintain(ctx, shard) })
	}
	group.Wait()
}

func (s *Set) maintain(ctx context.Context, shard int) {
	for {
		wait := maintainEvery + rand.N(maintainEvery/20) // replicas need not all come at once
		if err := errors.Join(s.keepPartitions(ctx, shard), s.purgeKeys(ctx, shard)); err != nil {
			if ctx.Err() != nil {
				return
			}
			s.log.Warn("maintenance of shard will be repeated", "shard", shard, "error", err)
			wait = maintainRetry
		}
		if pause(ctx, wait) != nil {
			return
		}
	}
}

// KeepPartitions makes every missing partition from yesterday to 97 days ahead,
// by each shard's clock, and mends rights and triggers. All shards are tried.
func (s *Set) KeepPartitions(ctx context.Context) error {
	errs := make([]error, s.N())
	var group sync.WaitGroup
	for shard := range s.pools {
		group.Go(func() { errs[shard] = s.keepPartitions(ctx, shard) })
	}
	group.Wait()
	return errors.Join(errs...)
}

func (s *Set) keepPartitions(ctx context.Context, shard int) error {
	ctx, cancel := context.WithTimeout(ctx, partitionTime)
	defer cancel()
	conn, err := s.Owner(shard).Acquire(ctx)
	if err != nil {
		return fmt.Errorf("keep partitions of shard %d: %w", shard, err)
	}
	defer conn.Release()
	_, err = ensurePartitions(ctx, conn.Conn(), s.log.With("shard", shard))
	if _, ahead, aheadErr := partitionWork(ctx, conn.Conn()); aheadErr == nil {
		s.metrics.ahead.WithLabelValues(strconv.Itoa(shard)).Set(float64(ahead))
	}
	if err != nil {
		return fmt.Errorf("keep partitions of shard %d: %w", shard, err)
	}
	return nil
}

// PartitionsAhead is for how many days from today every partition exists.
func (s *Set) PartitionsAhead(ctx context.Context, shard int) (int, error) {
	conn, err := s.Reads(shard).Acquire(ctx)
	if err != nil {
		return 0, fmt.Errorf("partitions of shard %d: %w", shard, err)
	}
	defer conn.Release()
	_, ahead, err := partitionWork(ctx, conn.Conn())
	return ahead, err
}

const keyPagesSQL = `SELECT pg_relation_size($1::text::regclass) / current_setting('block_size')::bigint`

// purgeKeys removes expired idempotency keys, page range by page range: each
// statement reads and deletes a bounded number of rows, and a run reads every
// page once, however many keys stay.
func (s *Set) purgeKeys(ctx context.Context, shard int) error {
	ctx, cancel := context.WithTimeout(ctx, purgeTime)
	defer cancel()
	offset, err := s.ClockOffset(ctx, shard)
	if err != nil {
		return fmt.Errorf("age keys of shard %d: %w", shard, err)
	}
	if offset.Abs() > purgeSkew {
		s.log.Warn("idempotency keys are not purged: the clocks of shard and process disagree", "shard", shard,
			"shard_minus_process", offset.Round(time.Second).String())
		return nil
	}
	pooled, err := s.Owner(shard).Acquire(ctx)
	if err != nil {
		return fmt.Errorf("age keys of shard %d: %w", shard, err)
	}
	defer pooled.Release()
	conn := pooled.Conn()
	var got bool
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1, $2)`, lockClass, lockPurge).Scan(&got); err != nil || !got {
		return err // another replica is at it
	}
	defer unlockSession(ctx, conn, lockPurge)
	for i := range keyTables {
		table := "idempotency_" + strconv.Itoa(i)
		var pages int64
		if err := conn.QueryRow(ctx, keyPagesSQL, table).Scan(&pages); err != nil {
			return fmt.Errorf("age keys of shard %d: %w", shard, err)
		}
		for page := int64(0); page < pages; page += purgeBlocks {
			n, err := purgePages(ctx, conn, table, page)
			if err != nil {
				return fmt.Errorf("age keys of shard %d: %w", shard, err)
			}
			s.metrics.purged.WithLabelValues(strconv.Itoa(shard)).Add(float64(n))
		}
	}
	return nil
}

type key struct {
	Sender [16]byte
	Key    string
	HoldID *[16]byte
}

const (
	expiredSQL = `
SELECT sender, key, hold_id FROM %s
WHERE ctid >= '(%d,0)'::tid AND ctid < '(%d,0)'::tid AND expires_at < clock_timestamp()
LIMIT %d`
	purgeSQL = `
DELETE FROM %s i USING unnest($1::uuid[], $2::text[]) AS d (sender, key)
WHERE i.sender = d.sender AND i.key = d.key AND i.expires_at < clock_timestamp()`
)

// purgePages deletes the expired keys of a few pages, except those whose hold
// has not ended: its client may still come back and ask with the key.
func purgePages(ctx context.Context, conn *pgx.Conn, table string, page int64) (int64, error) {
	rows, err := conn.Query(ctx, fmt.Sprintf(expiredSQL, table, page, page+purgeBlocks, purgeRows), pgx.QueryExecModeExec)
	if err != nil {
		return 0, err
	}
	expired, err := pgx.CollectRows(rows, pgx.RowToStructByPos[key])
	if err != nil || len(expired) == 0 {
		return 0, err
	}
	open, err := openHolds(ctx, conn, expired)
	if err != nil {
		return 0, err
	}
	var senders [][16]byte
	var keys []string
	for _, k := range expired {
		if k.HoldID == nil || !open[*k.HoldID] {
			senders, keys = append(senders, k.Sender), append(keys, k.Key)
		}
	}
	if len(keys) == 0 {
		return 0, nil
	}
	tag, err := conn.Exec(ctx, fmt.Sprintf(purgeSQL, table), senders, keys)
	return tag.RowsAffected(), err
}

const openHoldsSQL = `SELECT id FROM holds_%s WHERE id = ANY ($1) AND status IN (1, 2)`

// openHolds finds which holds of the keys are PENDING or EXECUTING, each in the
// partition of its day. A day without a partition has been retired whole.
func openHolds(ctx context.Context, conn *pgx.Conn, keys []key) (map[[16]byte]bool, error) {
	days := map[string][][16]byte{}
	for _, k := range keys {
		if k.HoldID != nil {
			day := DayOf(holdfast.HoldID(*k.HoldID))
			days[day] = append(days[day], *k.HoldID)
		}
	}
	open := map[[16]byte]bool{}
	for day, ids := range days {
		var exists bool
		if err := conn.QueryRow(ctx, `SELECT to_regclass('holds_' || $1::text) IS NOT NULL`, day).Scan(&exists); err != nil {
			return nil, err
		}
		if !exists {
			continue
		}
		rows, err := conn.Query(ctx, fmt.Sprintf(openHoldsSQL, day), ids)
		if err != nil {
			return nil, err
		}
		var id [16]byte
		if _, err := pgx.ForEachRow(rows, []any{&id}, func() error { open[id] = true; return nil }); err != nil {
			return nil, err
		}
	}
	return open, nil
}
