package participants

import (
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

// An end that waited for another driver takes away the row that this driver has
// put into attempts meanwhile. Left there it would be driven for ever.
func TestEndsLeaveNoAttempt(t *testing.T) {
	t.Parallel()
	b := newBench(t, 2)
	from, near, far := b.user(0, 100), b.user(0, 0), b.user(1, 0)
	for _, c := range []struct {
		name string
		to   holdfast.UserID
		end  func(h holdfast.Hold) branch.HoldResult
	}{
		{"a settle that is the end", near, func(h holdfast.Hold) branch.HoldResult {
			return b.Settle(b.ctx, 0, []branch.SettleItem{{ID: h.ID, PaymentID: "p", Recipient: near}})[0]
		}},
		{"an end after the credit", far, func(h holdfast.Hold) branch.HoldResult {
			return b.Executed(b.ctx, 0, []branch.IDItem{{ID: h.ID}})[0]
		}},
	} {
		h := b.mustTry(try(from, c.to, 10, c.name, 10*time.Millisecond))
		b.mature(h)
		b.claim(h.ID)
		if c.to == far {
			b.Settle(b.ctx, 0, []branch.SettleItem{{ID: h.ID, PaymentID: "p", Recipient: far}})
		}
		tx, err := b.set.Owner(0).Begin(b.ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, sql := range []string{`SELECT FROM holds WHERE id = $1 FOR UPDATE`,
			`INSERT INTO attempts (hold_id, next_at, n, active_ms, last_error) VALUES ($1, now(), 1, 0, '')`} {
			if _, err := tx.Exec(b.ctx, sql, [16]byte(h.ID)); err != nil {
				t.Fatal(err)
			}
		}
		ended := make(chan branch.HoldResult, 1)
		go func() { ended <- c.end(h) }()
		testkit.Eventually(t, 10*time.Second, func() (bool, string) {
			var waiting int
			err := b.set.Reads(0).QueryRow(b.ctx, `SELECT count(*) FROM pg_locks WHERE NOT granted`).Scan(&waiting)
			return err == nil && waiting > 0, "nobody waits for the hold"
		})
		if err := tx.Commit(b.ctx); err != nil {
			t.Fatal(err)
		}
		if r := <-ended; r.Code != branch.CodeOK || r.Hold.Status != holdfast.Executed {
			t.Fatalf("%s: %+v", c.name, r)
		}
		var left int
		if err := b.set.Reads(0).QueryRow(b.ctx, `SELECT count(*) FROM attempts`).Scan(&left); err != nil || left != 0 {
			t.Errorf("%s left %d rows in attempts (%v)", c.name, left, err)
		}
	}
}
