package shards

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the pools are read when they are asked for.
type metrics struct {
	registry prometheus.Registerer
	ahead    *prometheus.GaugeVec
	purged   *prometheus.CounterVec
	pools    *poolCollector
}

func newMetrics() *metrics {
	return &metrics{
		ahead: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "holdfast_shard_partitions_ahead_days",
			Help: "Days from today for which every partition exists; holds mature up to 90 days ahead.",
		}, []string{"shard"}),
		purged: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_idempotency_expired_total",
			Help: "Idempotency keys removed because they were too old.",
		}, []string{"shard"}),
	}
}

// register does nothing without a registry.
func (m *metrics) register(r prometheus.Registerer, s *Set) error {
	if r == nil {
		return nil
	}
	m.registry, m.pools = r, &poolCollector{s}
	for _, c := range m.collectors() {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.ahead, m.purged, m.pools}
}

// unregister lets a second set be opened in the same process.
func (m *metrics) unregister() {
	if m.registry == nil {
		return
	}
	for _, c := range m.collectors() {
		m.registry.Unregister(c)
	}
}

var (
	connsDesc = prometheus.NewDesc("holdfast_shard_pool_connections",
		"Connections of a pool to a shard by state; max is the limit.", []string{"shard", "pool", "state"}, nil)
	waitDesc = prometheus.NewDesc("holdfast_shard_pool_wait_seconds_total",
		"Time that callers have waited for a connection.", []string{"shard", "pool"}, nil)
)

type poolCollector struct{ set *Set }

func (c *poolCollector) Describe(ch chan<- *prometheus.Desc) { ch <- connsDesc; ch <- waitDesc }

func (c *poolCollector) Collect(ch chan<- prometheus.Metric) {
	for i, p := range c.set.pools {
		shard := strconv.Itoa(i)
		for use, pool := range p.all() {
			st := pool.Stat()
			gauge := func(state string, n int32) {
				ch <- prometheus.MustNewConstMetric(connsDesc, prometheus.GaugeValue, float64(n), shard, use, state)
			}
			gauge("idle", st.IdleConns())
			gauge("acquired", st.AcquiredConns())
			gauge("max", st.MaxConns())
			ch <- prometheus.MustNewConstMetric(waitDesc, prometheus.CounterValue, st.AcquireDuration().Seconds(), shard, use)
		}
	}
}
