package scheduler

import (
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

func TestAges(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	clock := time.Unix(1_700_000_000, 0)
	s, registry := passes(t, w, func() time.Time { return clock })
	st := s.shards[0]
	pass := func() {
		t.Helper()
		clock = clock.Add(time.Minute)
		st.ages.at = time.Time{}
		if _, err := s.pass(t.Context(), st); err != nil {
			t.Fatal(err)
		}
	}
	// A moment has whole ms, so that it may lie before what was just written;
	// the statements in between take some seconds, no more.
	want := func(what, name string, seconds float64) {
		t.Helper()
		if got := gaugeOf(t, registry, name, "0"); got < seconds-1 || got > seconds+100 {
			t.Errorf("%s: %s is %.1f, want %.0f", what, name, got, seconds)
		}
	}
	claimed := func(ago string, in time.Duration) holdfast.HoldID {
		id := w.hold(0, in)
		w.exec(0, executingSQL, [16]byte(id), "1 hour")
		w.exec(0, `UPDATE holds SET claimed_at = now() - $2::interval WHERE id = $1`, [16]byte(id), ago)
		return id
	}
	attempted := func(id holdfast.HoldID) {
		w.exec(0, `INSERT INTO attempts (hold_id, next_at, n, active_ms, last_error) VALUES ($1, now() + interval '1 hour', 1, 0, '')`, [16]byte(id))
	}
	const executing, unrefunded = "holdfast_oldest_executing_seconds", "holdfast_oldest_unrefunded_seconds"

	// PENDING ones, with a row and without, are the other gauge's.
	w.hold(0, -50*time.Minute)
	attempted(w.hold(0, -3*time.Hour))
	pass()
	if e, u := gaugeOf(t, registry, executing, "0"), gaugeOf(t, registry, unrefunded, "0"); e != 0 || u != 0 {
		t.Errorf("nothing claimed, nothing refused: %f, %f", e, u)
	}
	attempted(claimed("600 seconds", -40*time.Minute))
	pass()
	want("one with a row in attempts", executing, 600)

	lost := claimed("3600 seconds", -time.Hour)
	pass()
	want("one whose driver went away, without a row", executing, 3600)
	attempted(lost)
	pass()
	want("the same with its row", executing, 3600)
	w.exec(0, `UPDATE holds SET status = 3, verdict = 1, executed_at = now() WHERE id = $1`, [16]byte(lost))
	pass()
	want("when that one has ended", executing, 600)

	letter := `INSERT INTO dead_letters (hold_id, created_at, unrefunded, code) VALUES (gen_random_uuid(), now() - $1::interval, $2, 'recipient_banned')`
	w.exec(0, letter, "9000 seconds", false)
	w.exec(0, letter, "1200 seconds", true)
	w.exec(0, letter, "300 seconds", true)
	pass()
	want("refunds that wait", unrefunded, 1200)

	// What only people look at does not stop the driving, and its age shows.
	before := gaugeOf(t, registry, "holdfast_scheduler_looked_at_seconds", "0")
	w.exec(0, `ALTER TABLE dead_letters RENAME TO away`)
	pass()
	if at := gaugeOf(t, registry, "holdfast_scheduler_looked_at_seconds", "0"); st.ages.err == nil || at != before {
		t.Errorf("without dead_letters: error %v, looked at %f, want %f", st.ages.err, at, before)
	}
	w.exec(0, `ALTER TABLE away RENAME TO dead_letters`)
	w.exec(0, `UPDATE dead_letters SET unrefunded = false`)
	pass()
	if u := gaugeOf(t, registry, unrefunded, "0"); u != 0 {
		t.Errorf("all refunded: %f", u)
	}
	if at := gaugeOf(t, registry, "holdfast_scheduler_looked_at_seconds", "0"); at <= before {
		t.Errorf("looked at %f again, before %f", at, before)
	}
}
