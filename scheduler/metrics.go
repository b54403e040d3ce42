package scheduler

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the scheduler's own figures; the first three names are part of
// the contract.
type metrics struct {
	triggers *prometheus.GaugeVec // shard
	drift    *prometheus.GaugeVec // shard
	overdue  *prometheus.GaugeVec // shard

	clocks *prometheus.GaugeVec   // shard
	stuck  *prometheus.GaugeVec   // shard
	driven *prometheus.CounterVec // shard, source
	fillMetrics
	lookMetrics
}

// lookMetrics tell what a look at a shard has found, and when.
type lookMetrics struct {
	looked     *prometheus.GaugeVec // shard
	executing  *prometheus.GaugeVec // shard
	unrefunded *prometheus.GaugeVec // shard
}

func newLookMetrics(r prometheus.Registerer) (m lookMetrics, err error) {
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"shard"})
	}
	m.looked = gauge("holdfast_scheduler_looked_at_seconds",
		"When this process last measured the shard, by its own clock, in Unix seconds; 0 before the first time. "+
			"The gauges of the oldest holds are as old as this.")
	m.executing = gauge("holdfast_oldest_executing_seconds",
		"How long ago the oldest EXECUTING hold was claimed, whether undecided, or paid and not credited; 0 when there is none. "+
			"Looked for in attempts, in maturity order, and at the hold that holds up the watermark.")
	m.unrefunded = gauge("holdfast_oldest_unrefunded_seconds",
		"How long ago the oldest FAILED hold whose refund is not done was refused; 0 when there is none.")
	return m, register(r, m.looked, m.executing, m.unrefunded)
}

// fillMetrics are those that a filler has also when it stands alone.
type fillMetrics struct {
	dropped *prometheus.CounterVec // shard
	redisUp prometheus.Gauge
}

func newFillMetrics(r prometheus.Registerer) (*fillMetrics, error) {
	m := &fillMetrics{
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "holdfast_scheduler_triggers_dropped_total",
			Help: "Triggers of new holds that did not reach Redis; the sweeper or the dispatcher finds these holds."}, []string{"shard"}),
		redisUp: prometheus.NewGauge(prometheus.GaugeOpts{Name: "holdfast_scheduler_redis_up",
			Help: "1 while Redis answers this process."}),
	}
	return m, register(r, m.dropped, m.redisUp)
}

func register(r prometheus.Registerer, all ...prometheus.Collector) error {
	for _, c := range all {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register the scheduler's metrics: %w", err)
		}
	}
	return nil
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"shard"})
	}
	m := &metrics{
		triggers: gauge("holdfast_scheduler_triggers",
			"Triggers in Redis, pending and in flight."),
		drift: gauge("holdfast_scheduler_drift",
			"PENDING holds within the horizon minus their triggers in Redis, at the last sweep of this process."),
		overdue: gauge("holdfast_oldest_overdue_pending_seconds",
			"How late the oldest matured PENDING hold is, read from PostgreSQL; 0 when none is late."),
		clocks: gauge("holdfast_scheduler_clock_disagreement_seconds",
			"The largest difference between the clocks of shard, Redis and process; above 2 the shard is not driven."),
		stuck: gauge("holdfast_scheduler_dispatch_stuck_seconds",
			"For how long another process has had the dispatcher's lock without getting on; overdue holds are not driven then."),
		driven: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "holdfast_scheduler_driven_total",
			Help: "Ids handed to the coordinator, by where they came from: redis or postgresql."}, []string{"shard", "source"}),
	}
	fill, err := newFillMetrics(r)
	if err != nil {
		return nil, err
	}
	if m.lookMetrics, err = newLookMetrics(r); err != nil {
		return nil, err
	}
	m.fillMetrics = *fill
	return m, register(r, m.triggers, m.drift, m.overdue, m.clocks, m.stuck, m.driven)
}
