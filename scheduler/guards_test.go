package scheduler

import (
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

// A shard whose clock is ahead moves neither its floor nor its watermark: holds
// are still to be made below that clock.
func TestWatermarkUnderAWrongClock(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	read := func() (text string) {
		t.Helper()
		if err := w.shards.Owner(0).QueryRow(t.Context(), `SELECT id::text || floor::text FROM watermark`).Scan(&text); err != nil {
			t.Fatal(err)
		}
		return text
	}
	was := read()
	w.hold(0, -time.Second)
	s := w.start(func(c *Config) { c.Now = func() time.Time { return time.Now().Add(-10 * time.Second) } })
	testkit.Eventually(t, patience, func() (bool, string) { // passes go on: the gauge grows
		v := s.Status(t.Context()).(Status).Shards[0]
		return v.ClocksDisagree && v.OldestOverdueS > 2, fmt.Sprintf("%+v", v)
	})
	if is := read(); is != was {
		t.Errorf("watermark and floor went from %s to %s by a clock that is wrong", was, is)
	}
}
