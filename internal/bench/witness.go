package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// executed_at is written by the statement that executes a hold, before its
// transaction commits: lag alone leaves out the rest of the batch and its flush.
// A witness looks at some holds from outside, on the shard's clock, until it can
// see that they are EXECUTED. What it sees is committed, and a little late: its
// own pause and question count.
type witness struct {
	stop  chan struct{}
	mu    sync.Mutex
	holds []witnessed
}

type witnessed struct{ due, executed, seen time.Time }

const (
	watchersPerShard = 2
	witnessPause     = 2 * time.Millisecond
	witnessAhead     = 30 * time.Millisecond // a hold is chosen so long before it matures
	witnessPatience  = 10 * time.Second
)

// Both name the day's partition: to look at the whole table takes a lock on each
// of its partitions, a thousand times a second. The first hold of a moment is
// one of many whose ids are random within a millisecond, so that choosing it
// favours none.
const (
	nextDueSQL = `SELECT id::text, unlock_at FROM holds_%s WHERE id >= $1 AND id < $2 AND status = 1 ORDER BY id LIMIT 1`
	witnessSQL = `SELECT clock_timestamp(), status, executed_at FROM holds_%s WHERE id = $1`
)

// watch looks on until the function that it returns is called, which waits for
// the holds that were chosen before: the late ones must not fall out.
func (s *shardReader) watch(ctx context.Context) (stop func() *witness) {
	ctx, cancel := context.WithCancel(ctx)
	w := &witness{stop: make(chan struct{})}
	var all sync.WaitGroup
	for _, dsn := range s.dsns {
		for range watchersPerShard {
			all.Go(func() {
				// A shard that is away is seen again when it is back.
				for ctx.Err() == nil && !w.stopped() {
					_ = ask(ctx, dsn, func(c *pgx.Conn) error { return w.look(ctx, c) })
					pause(ctx, time.Now().Add(100*time.Millisecond))
				}
			})
		}
	}
	return func() *witness {
		close(w.stop)
		defer time.AfterFunc(witnessPatience, cancel).Stop()
		all.Wait()
		return w
	}
}

func (w *witness) stopped() bool {
	select {
	case <-w.stop:
		return true
	default:
		return false
	}
}

func (w *witness) look(ctx context.Context, c *pgx.Conn) error {
	for !w.stopped() {
		from := time.Now().Add(witnessAhead + time.Duration(rand.Int64N(int64(witnessAhead))))
		day := from.UTC().Format("20060102")
		next, watched := fmt.Sprintf(nextDueSQL, day), fmt.Sprintf(witnessSQL, day)
		var id string
		var h witnessed
		err := c.QueryRow(ctx, next, lowest(from), lowest(from.Add(witnessAhead))).Scan(&id, &h.due)
		if errors.Is(err, pgx.ErrNoRows) && pause(ctx, time.Now().Add(witnessAhead)) {
			continue
		}
		if err != nil {
			return err
		}
		for status := 1; status == 1 || status == 2; {
			if !pause(ctx, later(h.due, time.Now().Add(witnessPause))) {
				return ctx.Err()
			}
			var executed *time.Time
			if err := c.QueryRow(ctx, watched, id).Scan(&h.seen, &status, &executed); err != nil {
				return err
			}
			if executed != nil {
				h.executed = *executed
				w.mu.Lock()
				w.holds = append(w.holds, h)
				w.mu.Unlock()
			}
		}
	}
	return nil
}

// of are the lags until the holds that matured in [from, to) were seen, and the
// time from executed_at to then. Without bounds all holds count.
func (w *witness) of(from, to time.Time) (lag, commit *histogram) {
	lag, commit = newHistogram(), newHistogram()
	for _, h := range w.holds {
		if from.IsZero() || !h.due.Before(from) && h.due.Before(to) {
			lag.record(h.seen.Sub(h.due))
			commit.record(h.seen.Sub(h.executed))
		}
	}
	return lag, commit
}
