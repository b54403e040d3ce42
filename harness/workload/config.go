package workload

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// Config says who the customers are and how they behave. The zero value of a
// field means the default beside it; a negative share or duration means none.
type Config struct {
	APIs  []string // base URLs of the public API, at least one
	Token string   // a service with every scope of holds and accounts
	Seed  int64
	// Salt sets two runs with one seed on one set of shards apart: users and
	// keys differ, the intents do not.
	Salt string
	Map  *holdfast.ShardMap // spreads the users over all shards; nil: three even ones

	Senders    int   // 48; funded, drawn by Zipf
	Recipients int   // 48; not funded, drawn evenly; senders receive too
	Banned     int   // 2; accounts that may not be named: refused at the create
	Refusable  int   // 2; World.Refusable, for the simulator's list of refused recipients
	Fund       int64 // 1,000,000; the first deposit of each sender

	Zipf           float64 // 1.2; the exponent of the senders, above 1
	CelebrityShare float64 // 0.15 of the holds go to one recipient
	BannedShare    float64 // 0.01
	RefusableShare float64 // 0.03
	SameShard      float64 // 0.35 of the others stay on the sender's shard
	PoorShare      float64 // 0.02 of the creates and withdrawals ask for more than there is

	Clients int     // 24; each with one main operation and one follow-up at a time
	Rate    float64 // 150 intents a second over all clients; a batch is one
	Mix     Mix
	Batch   int // 10; most items of a batch, at least 2

	MinDelay, MaxDelay time.Duration // 1 s (the contract's least), 4 s
	AbsoluteShare      float64       // 0.5 say unlock_at, the others unlock_in_seconds

	DuplicateShare     float64       // 0.12 of the creates are sent again under their key
	CancelEarly        float64       // 0.15 of the holds
	CancelNearMaturity float64       // 0.15, within NearWindow of the maturity
	CancelLate         float64       // 0.03
	CancelTwice        float64       // 0.25 of the cancels come twice at once or in a row
	NearWindow         time.Duration // 10 ms to either side
	GetShare           float64       // 0.3 of the holds are read again on the way

	RequestTimeout time.Duration // 3 s: one attempt
	GiveUp         time.Duration // 10 s: no attempt of an operation starts later; then it is unknown
	BackoffFirst   time.Duration // 20 ms, doubled each time, with full jitter
	BackoffMost    time.Duration // 1 s, also for what Retry-After asks
	// Linger is how long the product may still work on a request whose client
	// has given up; 12 s, above the coordinator's own limit. Settle looks
	// for the holds of lost creates until then.
	Linger time.Duration
}

// Mix weighs the kinds of intents; all zero: 60, 8, 8, 4, 4, 4.
type Mix struct{ Create, Batch, Get, List, Deposit, Withdraw int }

func (m Mix) weights() [6]int {
	return [6]int{m.Create, m.Batch, m.Get, m.List, m.Deposit, m.Withdraw}
}

// Bounds of what one run keeps in memory besides its history.
const (
	maxPlanned   = 20000 // follow-ups that wait for their time
	maxRecent    = 64    // holds that a client remembers for its reads
	maxBatch     = 100   // items, the contract's most
	maxAmount    = 100   // of an ordinary hold
	maxLag       = time.Second
	maxAnswer    = 4 << 20
	setUpAtOnce  = 16                     // requests of Prepare and Settle in flight
	settlePause  = 100 * time.Millisecond // between two rounds of reading; it grows
	settleMost   = time.Second
	pageSize     = 200
	maxPages     = 2000 // of one sender's list
	clientSetUp  = -1
	clientSettle = -2
)

func orElse[T int | int64 | float64 | time.Duration](v *T, def T) {
	switch {
	case *v == 0:
		*v = def
	case *v < 0:
		*v = 0
	}
}

func (c *Config) defaults() error {
	orElse(&c.Senders, 48)
	orElse(&c.Recipients, 48)
	orElse(&c.Banned, 2)
	orElse(&c.Refusable, 2)
	orElse(&c.Fund, 1_000_000)
	orElse(&c.Zipf, 1.2)
	orElse(&c.CelebrityShare, 0.15)
	orElse(&c.BannedShare, 0.01)
	orElse(&c.RefusableShare, 0.03)
	orElse(&c.SameShard, 0.35)
	orElse(&c.PoorShare, 0.02)
	orElse(&c.Clients, 24)
	orElse(&c.Rate, 150)
	orElse(&c.Batch, 10)
	orElse(&c.MinDelay, holdfast.MinDelay)
	orElse(&c.MaxDelay, 4*time.Second)
	orElse(&c.AbsoluteShare, 0.5)
	orElse(&c.DuplicateShare, 0.12)
	orElse(&c.CancelEarly, 0.15)
	orElse(&c.CancelNearMaturity, 0.15)
	orElse(&c.CancelLate, 0.03)
	orElse(&c.CancelTwice, 0.25)
	orElse(&c.NearWindow, 10*time.Millisecond)
	orElse(&c.GetShare, 0.3)
	orElse(&c.RequestTimeout, 3*time.Second)
	orElse(&c.GiveUp, 10*time.Second)
	orElse(&c.BackoffFirst, 20*time.Millisecond)
	orElse(&c.BackoffMost, time.Second)
	orElse(&c.Linger, 12*time.Second)
	if c.Map == nil {
		c.Map = holdfast.EvenShardMap(3)
	}
	if c.Mix == (Mix{}) {
		c.Mix = Mix{60, 8, 8, 4, 4, 4}
	}
	c.MaxDelay = max(c.MinDelay, c.MaxDelay)
	switch {
	case len(c.APIs) == 0:
		return fmt.Errorf("a workload needs the address of a public API")
	case c.Senders < 1 || c.Recipients < 1 || c.Clients < 1 || c.Rate <= 0:
		return fmt.Errorf("a workload needs senders, recipients, clients and a rate: %d, %d, %d, %g", c.Senders, c.Recipients, c.Clients, c.Rate)
	case c.Zipf <= 1:
		return fmt.Errorf("the Zipf exponent must be above 1, not %g", c.Zipf)
	case c.Batch < 2 || c.Batch > maxBatch:
		return fmt.Errorf("a batch has 2 to %d items, not %d", maxBatch, c.Batch)
	}
	return nil
}

// stream is the randomness of one purpose; streams of one seed are independent.
func stream(seed int64, purpose uint64) *rand.Rand {
	return rand.New(rand.NewPCG(uint64(seed), 0x776f726b6c6f6164^purpose<<32))
}

// mark starts every key of a run.
func (c *Config) mark() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d/%s", c.Seed, c.Salt))
	return hex.EncodeToString(sum[:5])
}

// people makes the users: senders, then recipients, the celebrity, the banned
// and the refusable. User i lives on shard i mod the number of shards, so that
// the busiest senders are spread as well.
func (c *Config) people() []holdfast.UserID {
	sum := sha256.Sum256(fmt.Appendf(nil, "users of %d/%s", c.Seed, c.Salt))
	source := rand.NewChaCha8(sum)
	users := make([]holdfast.UserID, c.Senders+c.Recipients+1+c.Banned+c.Refusable)
	for i := range users {
		for users[i].IsZero() || c.Map.OfUser(users[i]) != i%c.Map.Shards {
			_, _ = source.Read(users[i][:])
			users[i][6], users[i][8] = users[i][6]&0x0f|0x40, users[i][8]&0x3f|0x80
		}
	}
	return users
}

// celebrity is the index of the one recipient whom everybody pays.
func (c *Config) celebrity() int { return c.Senders + c.Recipients }

// newHTTP makes the clients' transport. It follows no redirects: a redirect
// that turns a POST into a GET would be taken for an answer.
func newHTTP(c *Config) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			MaxIdleConnsPerHost: 2*c.Clients + setUpAtOnce,
			IdleConnTimeout:     30 * time.Second,
			DisableCompression:  true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
