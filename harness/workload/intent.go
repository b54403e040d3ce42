package workload

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// KindBatch is the kind of an intent to send a batch; each of its items is an
// operation of KindBatchItem.
const KindBatch = "batch"

// Dup is how a create is repeated under its own key.
type Dup string

// Ways to repeat a create.
const (
	DupNone     Dup = ""
	DupReplay   Dup = "replay"   // the same again once it was answered
	DupStorm    Dup = "storm"    // the same several times at once
	DupConflict Dup = "conflict" // another amount once it was answered: 422
	DupClash    Dup = "clash"    // another amount at once: one of them wins
)

// Cancel is when a hold is cancelled.
type Cancel string

// Times of a cancel.
const (
	CancelNone  Cancel = ""
	CancelEarly Cancel = "early" // CancelAt after the create
	CancelNear  Cancel = "near"  // CancelAt before (minus) or after the maturity
	CancelLate  Cancel = "late"  // CancelAt after the maturity
)

// Item is one hold to create and what its customer will do with it. Users are
// indexes into World.Users.
type Item struct {
	Sender, Recipient int
	Amount            int64
	Delay             time.Duration // whole seconds unless Absolute
	Absolute          bool          // unlock_at, else unlock_in_seconds
	KeyIn             int           // 0 body, 1 Idempotency-Key, 2 X-Idempotency-Key
	Dup               Dup
	Copies            int // sent at once, for a storm
	Cancel            Cancel
	CancelAt          time.Duration
	Twice             bool
	TwiceAfter        time.Duration // 0: both at once
	Get               time.Duration // after the create; 0: none
}

// Intent is one thing a client wants, decided before anything is known of the
// answers. Which hold a read is about is decided by what was answered before.
type Intent struct {
	Client, N int
	At        time.Duration // since the start of the run
	Kind      string        // KindCreate, KindBatch, KindGet, KindList, KindDeposit or KindWithdraw
	Items     []Item        // of a create (one) or a batch
	Again     bool          // of a batch: its last item repeats its first; of cash: sent twice
	User      int           // of cash
	Amount    int64         // of cash
	Back      int           // of reads: which of the client's holds, 0 is the newest
}

// generator draws the intents of one client from its own stream.
type generator struct {
	cfg    *Config
	r      *rand.Rand
	zipf   *rand.Zipf
	client int
	n      int
	at     time.Duration
}

func newGenerator(cfg *Config, client int) *generator {
	r := stream(cfg.Seed, uint64(client)+1)
	return &generator{cfg: cfg, r: r, client: client, zipf: rand.NewZipf(r, cfg.Zipf, 4, uint64(cfg.Senders-1))}
}

// Intents is what one client of a run will want first; equal configurations
// give equal intents.
func Intents(cfg Config, client, n int) ([]Intent, error) {
	if err := cfg.defaults(); err != nil {
		return nil, err
	}
	g := newGenerator(&cfg, client)
	out := make([]Intent, n)
	for i := range out {
		out[i] = g.next()
	}
	return out, nil
}

var intentKinds = [...]string{KindCreate, KindBatch, KindGet, KindList, KindDeposit, KindWithdraw}

func (g *generator) next() Intent {
	c := g.cfg
	g.at += time.Duration(g.r.ExpFloat64() * float64(c.Clients) / c.Rate * float64(time.Second))
	in := Intent{Client: g.client, N: g.n, At: g.at, Kind: intentKinds[g.pick()]}
	g.n++
	switch in.Kind {
	case KindCreate:
		in.Items = []Item{g.item(true)}
	case KindBatch:
		for range 2 + g.r.IntN(c.Batch-1) {
			in.Items = append(in.Items, g.item(false))
		}
		in.Again = g.chance(c.DuplicateShare)
	case KindGet, KindList:
		in.Back = g.r.IntN(maxRecent / 4)
	default:
		in.User, in.Amount = int(g.zipf.Uint64()), 1+g.r.Int64N(10*maxAmount)
		in.Again = g.chance(c.DuplicateShare)
		if in.Kind == KindWithdraw && g.chance(c.PoorShare) {
			in.Amount = g.tooMuch()
		}
	}
	return in
}

func (g *generator) pick() int {
	weights := g.cfg.Mix.weights()
	sum := 0
	for _, w := range weights {
		sum += w
	}
	n := g.r.IntN(sum)
	for i, w := range weights {
		if n -= w; n < 0 {
			return i
		}
	}
	return 0
}

func (g *generator) chance(p float64) bool { return g.r.Float64() < p }

// tooMuch is more than any sender will have.
func (g *generator) tooMuch() int64 {
	return min(1000*g.cfg.Fund, holdfast.MaxAmount/2) + g.r.Int64N(1000)
}

func (g *generator) between(a, b time.Duration) time.Duration {
	return a + time.Duration(g.r.Int64N(int64(max(b-a, 0))+1))
}

func (g *generator) item(single bool) Item {
	c := g.cfg
	it := Item{Sender: int(g.zipf.Uint64()), Amount: 1 + g.r.Int64N(maxAmount)}
	it.Recipient = g.recipient(it.Sender)
	if g.chance(c.PoorShare) {
		it.Amount = g.tooMuch()
	}
	it.Delay = g.between(c.MinDelay, c.MaxDelay).Truncate(time.Millisecond)
	if it.Absolute = g.chance(c.AbsoluteShare); !it.Absolute {
		it.Delay = time.Duration(math.Round(it.Delay.Seconds())) * time.Second
	}
	if single {
		it.KeyIn = g.r.IntN(3)
		if g.chance(c.DuplicateShare) {
			it.Dup = [...]Dup{DupReplay, DupStorm, DupConflict, DupClash}[g.r.IntN(4)]
			it.Copies = 2 + g.r.IntN(4)
		}
	}
	g.plan(&it)
	return it
}

// recipient draws whom a sender pays, never the sender.
func (g *generator) recipient(sender int) int {
	c := g.cfg
	x := g.r.Float64()
	if x -= c.CelebrityShare; x < 0 {
		return c.celebrity()
	}
	if x -= c.BannedShare; x < 0 && c.Banned > 0 {
		return c.celebrity() + 1 + g.r.IntN(c.Banned)
	}
	if x -= c.RefusableShare; x < 0 && c.Refusable > 0 {
		return c.celebrity() + 1 + c.Banned + g.r.IntN(c.Refusable)
	}
	all, same := c.Senders+c.Recipients, g.chance(c.SameShard)
	to := g.r.IntN(all)
	for range all {
		if to != sender && (to%c.Map.Shards == sender%c.Map.Shards) == (same || c.Map.Shards == 1) {
			return to
		}
		to = (to + 1) % all
	}
	return c.celebrity()
}

// plan draws what becomes of a hold after its create.
func (g *generator) plan(it *Item) {
	c := g.cfg
	x := g.r.Float64()
	switch {
	case x < c.CancelEarly:
		it.Cancel, it.CancelAt = CancelEarly, g.between(0, it.Delay*3/4)
	case x < c.CancelEarly+c.CancelNearMaturity:
		it.Cancel, it.CancelAt = CancelNear, g.between(-c.NearWindow, c.NearWindow)
	case x < c.CancelEarly+c.CancelNearMaturity+c.CancelLate:
		it.Cancel, it.CancelAt = CancelLate, g.between(50*time.Millisecond, time.Second)
	}
	if it.Cancel != CancelNone && g.chance(c.CancelTwice) {
		if it.Twice = true; g.chance(0.5) {
			it.TwiceAfter = g.between(time.Millisecond, 300*time.Millisecond)
		}
	}
	if g.chance(c.GetShare) {
		it.Get = 1 + g.between(0, it.Delay+500*time.Millisecond)
	}
}
