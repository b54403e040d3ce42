package participants

import (
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

// A shard's clock was ahead for a while: what it wrote then must not keep a hold
// from its next attempt once the clock is right.
func TestClockThatWasAhead(t *testing.T) {
	t.Parallel()
	b := newBooks(t, 1)
	from, to := b.funded(0, 1_000), b.funded(0, 0)
	exec := func(sql string, h holdfast.Hold) {
		t.Helper()
		if _, err := b.set.Owner(0).Exec(t.Context(), sql, [16]byte(h.ID)); err != nil {
			t.Fatal(err)
		}
	}
	const lease = 300
	claim := func(h holdfast.Hold) branch.ClaimResult {
		return b.client.Claim(t.Context(), 0, []branch.ClaimItem{{ID: h.ID, LeaseMS: lease}})[0]
	}
	takenOver := func(h holdfast.Hold) (r branch.ClaimResult) {
		t.Helper()
		testkit.Eventually(t, 10*time.Second, func() (bool, string) {
			r = claim(h)
			return r.Code == branch.CodeRedrive, "claim: " + string(r.Code)
		})
		return r
	}
	deferred := func(delay time.Duration) holdfast.Hold {
		t.Helper()
		h := b.claimed(from, to, 1)
		b.must("defer", b.client.Defer(t.Context(), 0, []branch.DeferItem{{ID: h.ID, DelayMS: delay.Milliseconds(), Unsure: true, Error: "timeout"}})[0].Code)
		return h
	}

	t.Run("a_first_drive_gets_one_more_lease_and_is_taken_over", func(t *testing.T) {
		h := b.claimed(from, to, 1)
		exec(`UPDATE holds SET next_attempt_at = clock_timestamp() + interval '2 hours' WHERE id = $1`, h)
		if r := claim(h); r.Code != branch.CodeBusy || r.InMS != lease {
			t.Errorf("claim: %s in %d ms, want busy for one lease: who claimed may still be sending", r.Code, r.InMS)
		}
		if r := takenOver(h); r.SinceUnsureMS < 0 {
			t.Errorf("what the first drive may have sent is forgotten: %d", r.SinceUnsureMS)
		}
	})
	t.Run("a_pause_is_cut_to_one_lease_with_its_row", func(t *testing.T) {
		h := deferred(2 * time.Hour)
		if r := claim(h); r.Code != branch.CodeBusy || r.InMS != lease {
			t.Errorf("claim: %s in %d ms, want busy for one lease", r.Code, r.InMS)
		}
		if n := count(t, b.set.Reads(0), `SELECT count(*) FROM attempts WHERE next_at > now() + interval '1 minute'`); n != 0 {
			t.Errorf("%d rows of attempts wait for the wrong time", n)
		}
		takenOver(h)
	})
	t.Run("an_unsure_time_ahead_is_not_never", func(t *testing.T) {
		h := deferred(time.Millisecond)
		exec(`UPDATE attempts SET unsure_at = clock_timestamp() + interval '2 hours' WHERE hold_id = $1`, h)
		if r := takenOver(h); r.SinceUnsureMS != 0 {
			t.Errorf("%d ms since the unsure attempt, want 0", r.SinceUnsureMS)
		}
	})
	t.Run("a_quarantine_stays", func(t *testing.T) {
		h := deferred(time.Hour)
		if r := claim(h); r.Code != branch.CodeBusy || r.InMS < 59*60_000 {
			t.Errorf("claim: %s in %d ms, want busy for an hour", r.Code, r.InMS)
		}
	})
}
