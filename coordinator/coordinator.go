// Package coordinator decides: it drives every hold from Try to Confirm or
// Cancel, and serves the public and the admin API. It keeps no state of its own
// for a hold; whatever it must remember is on the shards, which it reaches only
// through the participants. It must not know SQL, Redis, or how a hold became
// due.
package coordinator

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/coordinator/payment"
	"github.com/holdfast-escrow/holdfast/internal/auth"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/prometheus/client_golang/prometheus"
)

// Config is what a coordinator needs. Fields left zero take the default named.
type Config struct {
	Participants branch.Transport
	Map          *holdfast.ShardMap
	Payment      *payment.Client
	Auth         *auth.Verifier
	Log          *slog.Logger
	Metrics      prometheus.Registerer
	Gatherer     prometheus.Gatherer // served at /metrics of the admin address
	Currencies   map[string]int      // code → exponent; default RBX:0

	// Scheduler answers GET /admin/v1/scheduler when a scheduler runs in this
	// process; nil otherwise.
	Scheduler func(ctx context.Context) any
	// Ready adds checks of other roles of the process to /readyz.
	Ready func(ctx context.Context) map[string]string

	// Created is told the ids of new holds after their commit, so that triggers
	// can be set early. It must not block; what it loses the sweeper finds.
	Created func(shard int, ids []holdfast.HoldID)

	MaxBody        int64         // 16 KiB
	RequestTimeout time.Duration // 10 s: how long a request waits for its shard
	MaxInFlight    int           // 8,192 public requests at once, 503 overloaded beyond
	RatePerSecond  float64       // per token subject; 0 = no limit

	MaxDriving   int           // 4,096 holds between claim and end at once
	LeaseMargin  time.Duration // 5 s on top of the payment timeout
	BackoffFirst time.Duration // 1 s
	BackoffMost  time.Duration // 5 min
	GiveUp       time.Duration // 24 h of trying
	KeyLifetime  time.Duration // 23 h: no second POST after it
	RefundEvery  time.Duration // 500 ms between looks for refunds that got stuck
	// RefusalQuiet is how long after an attempt of unknown outcome a refusal of
	// a later one becomes final without the payment API's look-up saying so.
	RefusalQuiet time.Duration // 1 min
	// ProofEvery is how often the ledger is proved without being asked; 0 = never.
	ProofEvery time.Duration

	Now func() time.Time // time of signed requests and of the rate limit; time.Now
}

func (c *Config) defaults() {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	set(&c.RequestTimeout, 10*time.Second)
	set(&c.LeaseMargin, 5*time.Second)
	set(&c.BackoffFirst, time.Second)
	set(&c.BackoffMost, 5*time.Minute)
	set(&c.GiveUp, 24*time.Hour)
	set(&c.KeyLifetime, 23*time.Hour)
	set(&c.RefundEvery, 500*time.Millisecond)
	set(&c.RefusalQuiet, time.Minute)
	if c.MaxBody == 0 {
		c.MaxBody = 16 << 10
	}
	if c.MaxInFlight == 0 {
		c.MaxInFlight = 8192
	}
	if c.MaxDriving == 0 {
		c.MaxDriving = 4096
	}
	if c.Currencies == nil {
		c.Currencies = map[string]int{"RBX": 0}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
}

// Coordinator drives holds and answers the APIs. Close it to stop.
type Coordinator struct {
	cfg     Config
	shards  branch.Client
	log     *slog.Logger
	metrics *metrics
	edge    *edge // what the requests of both APIs share

	driving  chan struct{}  // one slot per hold between claim and end
	running  sync.WaitGroup // drives and workers
	refundCh chan holdfast.HoldID

	leaving  atomic.Bool // readiness says no, and connections are not kept
	draining atomic.Bool
	proving  chan struct{} // one ledger proof at a time
	mu       sync.Mutex    // guards closed: after it is set nothing joins running
	closed   bool
	hurry    chan struct{} // closed when waiting for repeated steps must end
	stop     context.CancelFunc
}

// New makes a coordinator; nothing runs until Start.
func New(cfg Config) *Coordinator {
	cfg.defaults()
	return &Coordinator{
		cfg:      cfg,
		shards:   branch.Client{T: cfg.Participants},
		log:      cfg.Log,
		metrics:  newMetrics(cfg.Metrics),
		edge:     newEdge(&cfg),
		driving:  make(chan struct{}, cfg.MaxDriving),
		proving:  make(chan struct{}, 1),
		refundCh: make(chan holdfast.HoldID, 4096),
		hurry:    make(chan struct{}),
		stop:     func() {},
	}
}

// Start begins the work that no request asks for: refunds and proofs.
func (c *Coordinator) Start(ctx context.Context) {
	ctx, c.stop = context.WithCancel(context.WithoutCancel(ctx))
	c.running.Add(1)
	go func() {
		defer c.running.Done()
		c.refundLoop(ctx)
	}()
	if c.cfg.ProofEvery > 0 {
		c.metrics.proved.WithLabelValues().Set(0) // from now on one that is missing shows
		c.running.Go(func() { c.proveLoop(ctx) })
	}
}

// Leave says in /readyz that this process is about to stop, and with each answer
// that its connection ends, while the API serves on: whoever shares the requests
// out has time to send them elsewhere.
func (c *Coordinator) Leave() { c.leaving.Store(true) }

// Drain makes the public API refuse new work while requests in flight end.
func (c *Coordinator) Drain() {
	c.Leave()
	c.draining.Store(true)
}

// Draining reports whether Drain was called.
func (c *Coordinator) Draining() bool { return c.draining.Load() }

// Close takes no more drives and waits until those in flight have ended, no
// longer than ctx. What has not ended by then is on the shards, and the next
// driver goes on with it.
func (c *Coordinator) Close(ctx context.Context) {
	c.Drain()
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.stop()
	done := make(chan struct{})
	go func() { c.running.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		close(c.hurry)
	}
}

// DriveHandler serves schedulers in other processes: POST /drive/v1/{shard} with
// ids, and POST /drive/v1/open. Signed requests only.
func (c *Coordinator) DriveHandler(secret []byte) http.Handler {
	serve := http.NewServeMux()
	serve.Handle("POST /drive/v1/open", branch.Signed(secret, c.cfg.Now, func(w http.ResponseWriter, r *http.Request, _ []byte) {
		branch.WriteAnswer(w, c.Open(r.Context()), nil)
	}))
	serve.Handle("POST /drive/v1/{shard}", branch.Signed(secret, c.cfg.Now, func(w http.ResponseWriter, r *http.Request, body []byte) {
		shard, err := strconv.Atoi(r.PathValue("shard"))
		var ids []holdfast.HoldID
		if err != nil || shard < 0 || shard >= c.cfg.Map.Shards || json.Unmarshal(body, &ids) != nil || len(ids) > maxDriveIDs {
			http.Error(w, "expected a shard number and a list of at most 2,000 hold ids", http.StatusBadRequest)
			return
		}
		branch.WriteAnswer(w, c.Drive(context.WithoutCancel(r.Context()), shard, ids), nil)
	}))
	return serve
}

// maxDriveIDs bounds one request of a scheduler.
const maxDriveIDs = 2000
