package scheduler

import (
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/testkit"
	"github.com/prometheus/client_golang/prometheus"
)

// gaugeOf reads one gauge of a shard as Prometheus would.
func gaugeOf(t *testing.T, r prometheus.Gatherer, name, shard string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == shard {
				return m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no %s of shard %s", name, shard)
	return 0
}

// passes makes a scheduler whose passes the test runs itself.
func passes(t *testing.T, w *world, now func() time.Time) (*Scheduler, *prometheus.Registry) {
	t.Helper()
	registry := prometheus.NewRegistry()
	s, err := New(Config{Shards: w.shards, RedisURL: w.redis, Driver: w.driver, Log: testkit.Logger(t), Metrics: registry, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.zset.close() })
	return s, registry
}

func TestLookedAt(t *testing.T) {
	t.Parallel()
	const name = "holdfast_scheduler_looked_at_seconds"
	w := newWorld(t, 2)
	clock := time.Unix(1_700_000_000, 0)
	s, registry := passes(t, w, func() time.Time { return clock })
	pass := func() error {
		_, err := s.pass(t.Context(), s.shards[0])
		return err
	}
	// A shard that was never looked at is known, and its age is beyond any bound.
	for _, shard := range []string{"0", "1"} {
		if at := gaugeOf(t, registry, name, shard); at != 0 {
			t.Errorf("shard %s before the first look: %f", shard, at)
		}
	}
	if err := pass(); err != nil {
		t.Fatal(err)
	}
	if at := gaugeOf(t, registry, name, "0"); at != 1_700_000_000 {
		t.Errorf("after a look: %f", at)
	}
	// Each of the reads of a look may fail; then the gauge stays.
	for _, table := range []string{"watermark", "attempts"} {
		clock = clock.Add(time.Minute)
		w.exec(0, "ALTER TABLE "+table+" RENAME TO away")
		if err := pass(); err == nil {
			t.Errorf("a look without %s did not fail", table)
		}
		w.exec(0, "ALTER TABLE away RENAME TO "+table)
		if at := gaugeOf(t, registry, name, "0"); at != 1_700_000_000 {
			t.Errorf("after a look that failed without %s: %f", table, at)
		}
	}
	if err := pass(); err != nil {
		t.Fatal(err)
	}
	if at := gaugeOf(t, registry, name, "0"); at != 1_700_000_120 {
		t.Errorf("after the next look: %f", at)
	}
}
