package scheduler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// ageEvery is how often the ages are measured: they alarm after minutes.
	ageEvery = 5 * time.Second
	// ageTimeout bounds one measuring of them, because the driving waits for it.
	ageTimeout = 2 * time.Second
	// ageRows is how many rows of attempts are looked at in one query.
	ageRows = 500
)

// ages is what is remembered of measuring the ages of a shard.
type ages struct {
	at  time.Time // when it was last tried
	err error     // of the last try
}

// age measures how long the oldest claimed hold has been under way and how long
// the oldest refund has been waiting, when it is time to.
func (s *Scheduler) age(ctx context.Context, st *shardState, m moment) {
	if time.Since(st.ages.at) < ageEvery {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, ageTimeout)
	defer cancel()
	executing, err := st.store.oldestExecuting(ctx, m)
	unrefunded, refundErr := st.store.oldestUnrefunded(ctx, m)
	st.ages = ages{at: time.Now(), err: errors.Join(err, refundErr)}
	if st.ages.err != nil {
		return
	}
	s.metrics.executing.WithLabelValues(st.label).Set(executing.Seconds())
	s.metrics.unrefunded.WithLabelValues(st.label).Set(unrefunded.Seconds())
}

// since is how long before the moment something was; 0 when it never was.
func (m moment) since(t *time.Time) time.Duration {
	if t == nil {
		return 0
	}
	return max(0, time.UnixMilli(m.nowMS).Sub(*t))
}

const ageRowsSQL = `SELECT hold_id FROM attempts WHERE hold_id > $2 ORDER BY hold_id LIMIT $1`

// oldestExecuting answers how long ago the oldest EXECUTING hold was claimed.
// Those that were not driven to their end at once have a row in attempts, or
// hold up the watermark until they have one. Refusals that are still watched
// have rows too, so the rows are read in pages until one is found.
func (s *store) oldestExecuting(ctx context.Context, m moment) (time.Duration, error) {
	var after [16]byte
	for {
		rows, err := s.q.Query(ctx, ageRowsSQL, ageRows, after)
		if err != nil {
			return 0, fmt.Errorf("read attempts: %w", err)
		}
		raw, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
		if err != nil {
			return 0, fmt.Errorf("read attempts: %w", err)
		}
		last := len(raw) < ageRows
		if !last {
			after = raw[len(raw)-1]
		} else if open, err := s.first(ctx, isOpen, m.watermark, idAt(m.nowMS)); err != nil {
			return 0, err
		} else if open != idAt(m.nowMS) {
			raw = append(raw, open)
		}
		age, found, err := s.executing(ctx, m, raw)
		if found || last || err != nil {
			return age, err
		}
	}
}

// executing answers how long ago the oldest of these holds that is EXECUTING was
// claimed.
func (s *store) executing(ctx context.Context, m moment, raw [][16]byte) (age time.Duration, found bool, err error) {
	if len(raw) == 0 {
		return 0, false, nil
	}
	slices.SortFunc(raw, func(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) })
	leaves, err := s.leaves(ctx, raw[0], raw[len(raw)-1])
	if err != nil {
		return 0, false, err
	}
	for _, leaf := range leaves {
		// Claims follow maturity: those of a later day are not older.
		query := `SELECT min(claimed_at) FROM ` + pgx.Identifier{leaf}.Sanitize() + ` WHERE id = ANY($1) AND status = 2`
		var claimed *time.Time
		if err := s.q.QueryRow(ctx, query, raw).Scan(&claimed); err != nil {
			return 0, false, fmt.Errorf("read %s: %w", leaf, err)
		}
		if claimed != nil {
			return m.since(claimed), true, nil
		}
	}
	return 0, false, nil
}

// The order is that of the index of what waits for its refund.
const oldestUnrefundedSQL = `SELECT created_at FROM dead_letters WHERE unrefunded ORDER BY created_at LIMIT 1`

// oldestUnrefunded answers how long ago the oldest hold was refused whose
// sender does not have the money back.
func (s *store) oldestUnrefunded(ctx context.Context, m moment) (time.Duration, error) {
	var refused *time.Time
	err := s.q.QueryRow(ctx, oldestUnrefundedSQL).Scan(&refused)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, fmt.Errorf("read dead letters: %w", err)
	}
	return m.since(refused), nil
}
