package participants

import (
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/shards"
)

// A shard whose clock ran into the next day and was set right again has newer
// numbers in older days. Lists and statements show them all the same.
func TestReadsAfterTheClockWasSetBack(t *testing.T) {
	t.Parallel()
	b := newBench(t, 1)
	from, to := b.user(0, 100), b.user(0, 0)
	for i := range 6 {
		b.mustTry(try(from, to, 1, fmt.Sprint("k", i), time.Hour))
	}
	conn, err := b.set.Owner(0).Acquire(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for _, day := range []shards.Day{shards.DayAt(time.Now()), shards.DayAt(time.Now()) + 1} {
		if _, err := conn.Exec(b.ctx, `ALTER TABLE entries_`+day.String()+` DISABLE TRIGGER USER`); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.Exec(b.ctx, `UPDATE entries SET posted_at = posted_at + interval '1 day'
		WHERE user_id = $1 AND seq BETWEEN 4 AND 9`, [16]byte(from)); err != nil {
		t.Fatal(err)
	}
	list, err := b.List(b.ctx, 0, branch.ListRequest{Sender: from, Limit: 50})
	if err != nil || len(list.Holds) != 6 {
		t.Errorf("the list shows %d of 6 holds, %v", len(list.Holds), err)
	}
	s, err := b.Statement(b.ctx, 0, branch.AccountRequest{User: from, Currency: "RBX", Limit: 50})
	if err != nil || len(s.Entries) != 13 {
		t.Fatalf("the statement shows %d of 13 entries, %v", len(s.Entries), err)
	}
	for i, e := range s.Entries {
		if e.Seq != int64(13-i) {
			t.Errorf("entry %d has number %d", i, e.Seq)
		}
	}
}
