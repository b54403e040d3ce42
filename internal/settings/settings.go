// Package settings is the one table of everything that can be set from outside:
// name, flag, default, check and help stand side by side, so that the help, the
// parser and the documentation cannot disagree. It reads no environment itself;
// its caller hands it over.
package settings

import (
	"fmt"
	"sort"
	"strings"
	"time"
)

// Config is every setting of a process, checked.
type Config struct {
	APIAddr    string
	AdminAddr  string
	BranchAddr string
	SimAddr    string

	Data     string
	Shards   []string // DSNs; empty: the embedded servers
	RedisURL string   // empty: the embedded server

	ShardCount   int // for a coordinator without Shards
	BranchSecret string
	Participants []string
	Coordinators []string

	PaymentURL         string // empty: the simulator
	PaymentTimeout     time.Duration
	PaymentRefusals    []string
	PaymentKeyLifetime time.Duration
	PaymentGiveUp      time.Duration
	PaymentRetryMost   time.Duration
	RefusalQuiet       time.Duration
	LeaseMargin        time.Duration // on top of PaymentTimeout
	BreakerErrorRatio  float64
	BreakerOpenFor     time.Duration
	DrainRate          float64 // holds per second; 0: half of the capacity seen

	ProofEvery time.Duration // 0: the ledger is proved only on request

	Horizon      time.Duration
	SweepEvery   time.Duration
	TriggerLease time.Duration
	Lanes        int // batches in flight per shard; 0: the participant's default

	JWTSecret   string // empty: the development secret in Data
	JWTIssuer   string
	JWTAudience string

	Currencies map[string]int // code → exponent
	RateLimit  float64        // requests per second and token subject; 0: none
	LogLevel   string

	// Token is what client commands send; up and serve do not use it.
	Token string

	// Now is the clock of the process. It is no setting: binaries made to be
	// tried out under faults run with one that is wrong.
	Now func() time.Time

	given map[string]bool
}

// Given reports whether a setting was set by environment or flag, as opposed
// to left at its default.
func (c *Config) Given(name string) bool { return c.given[name] }

// Setting is one row of the table.
type Setting struct {
	Name    string // HOLDFAST_API_ADDR
	Default string
	Help    string
	// ClientOnly settings are known, so that they never stop a start, but are
	// not flags of up and serve.
	ClientOnly bool

	parse func(c *Config, v string) error
}

// Flag is the name of the flag of up and serve, without dashes.
func (s Setting) Flag() string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(s.Name, Prefix)), "_", "-")
}

// Prefix starts the name of every environment variable of ours.
const Prefix = "HOLDFAST_"

// Table lists the settings in the order in which the help shows them.
func Table() []Setting { return table }

var table = []Setting{
	{Name: "HOLDFAST_API_ADDR", Default: "127.0.0.1:8080", Help: "address of the public API",
		parse: addr(func(c *Config) *string { return &c.APIAddr })},
	{Name: "HOLDFAST_ADMIN_ADDR", Default: "127.0.0.1:8081",
		Help:  "address of the admin API, /metrics, /livez, /readyz and pprof",
		parse: addr(func(c *Config) *string { return &c.AdminAddr })},
	{Name: "HOLDFAST_BRANCH_ADDR", Default: "127.0.0.1:8083",
		Help:  "address for signed requests between processes (up listens only when it is set)",
		parse: addr(func(c *Config) *string { return &c.BranchAddr })},
	{Name: "HOLDFAST_SIM_ADDR", Default: "127.0.0.1:8082", Help: "address of the payment simulator",
		parse: addr(func(c *Config) *string { return &c.SimAddr })},
	{Name: "HOLDFAST_DATA", Default: ".holdfast",
		Help:  "directory of the embedded servers, the log and the development secret",
		parse: text(func(c *Config) *string { return &c.Data }, 1)},
	{Name: "HOLDFAST_SHARDS", Help: "comma list of PostgreSQL DSNs, shard 0 first (default: embedded servers)",
		parse: dsns(func(c *Config) *[]string { return &c.Shards })},
	{Name: "HOLDFAST_REDIS_URL", Help: "redis://, rediss:// or unix:// URL, for schedulers and coordinators (default: embedded server)",
		parse: redisURL},
	{Name: "HOLDFAST_SHARD_COUNT", Default: "0",
		Help:  "number of shards: of embedded servers in a new directory (0: four), or behind HOLDFAST_PARTICIPANTS for a coordinator that is not given HOLDFAST_SHARDS",
		parse: integer(func(c *Config) *int { return &c.ShardCount }, 0, 4096)},
	{Name: "HOLDFAST_BRANCH_SECRET",
		Help:  "shared secret of the processes, 16 characters or more; signs requests between them",
		parse: text(func(c *Config) *string { return &c.BranchSecret }, 16)},
	{Name: "HOLDFAST_PARTICIPANTS", Help: "comma list of participants' URLs, for a coordinator without one in its process",
		parse: urls(func(c *Config) *[]string { return &c.Participants })},
	{Name: "HOLDFAST_COORDINATORS", Help: "comma list of coordinators' URLs, for a scheduler without one in its process",
		parse: urls(func(c *Config) *[]string { return &c.Coordinators })},
	{Name: "HOLDFAST_PAYMENT_URL", Help: "base URL of the payment API (default: the simulator)",
		parse: paymentURL},
	{Name: "HOLDFAST_PAYMENT_TIMEOUT", Default: "5s", Help: "how long one call of the payment API may take",
		parse: duration(func(c *Config) *time.Duration { return &c.PaymentTimeout }, time.Millisecond, 10*time.Minute)},
	{Name: "HOLDFAST_PAYMENT_REFUSALS", Default: "recipient_banned,recipient_closed,payment_forbidden",
		Help:  "codes of the payment API that refuse a payment for good; every other error is repeated",
		parse: codes(func(c *Config) *[]string { return &c.PaymentRefusals })},
	{Name: "HOLDFAST_PAYMENT_KEY_LIFETIME", Default: "23h",
		Help:  "how long the payment API remembers a key; after it a payment is only looked up",
		parse: duration(func(c *Config) *time.Duration { return &c.PaymentKeyLifetime }, time.Second, 365*24*time.Hour)},
	{Name: "HOLDFAST_PAYMENT_GIVE_UP", Default: "24h",
		Help:  "how long an unanswered payment is tried before a person is asked",
		parse: duration(func(c *Config) *time.Duration { return &c.PaymentGiveUp }, time.Second, 365*24*time.Hour)},
	{Name: "HOLDFAST_PAYMENT_RETRY_MOST", Default: "5m",
		Help:  "longest wait between two attempts of one payment; it doubles up to this from 1s",
		parse: duration(func(c *Config) *time.Duration { return &c.PaymentRetryMost }, 100*time.Millisecond, time.Hour)},
	{Name: "HOLDFAST_REFUSAL_QUIET", Default: "1m",
		Help:  "how long after an unanswered attempt a later refusal is final without the look-up saying so",
		parse: duration(func(c *Config) *time.Duration { return &c.RefusalQuiet }, time.Second, 24*time.Hour)},
	{Name: "HOLDFAST_LEASE_MARGIN", Default: "5s",
		Help:  "how long beyond the payment timeout a claimed hold belongs to its driver",
		parse: duration(func(c *Config) *time.Duration { return &c.LeaseMargin }, 500*time.Millisecond, 10*time.Minute)},
	{Name: "HOLDFAST_BREAKER_ERROR_RATIO", Default: "0.10",
		Help:  "share of failed payment calls above which the breaker opens",
		parse: number(func(c *Config) *float64 { return &c.BreakerErrorRatio }, 0.001, 1)},
	{Name: "HOLDFAST_BREAKER_OPEN_FOR", Default: "5s", Help: "how long the open breaker waits before it lets trial calls through",
		parse: duration(func(c *Config) *time.Duration { return &c.BreakerOpenFor }, 100*time.Millisecond, time.Hour)},
	{Name: "HOLDFAST_DRAIN_RATE", Default: "0", Help: "overdue holds driven per second after an outage; 0: half of the capacity seen",
		parse: number(func(c *Config) *float64 { return &c.DrainRate }, 0, 1e9)},
	{Name: "HOLDFAST_HORIZON", Default: "5m", Help: "how far ahead triggers are kept in Redis",
		parse: duration(func(c *Config) *time.Duration { return &c.Horizon }, time.Second, 24*time.Hour)},
	{Name: "HOLDFAST_SWEEP_EVERY", Default: "1m", Help: "how often the next slice of the horizon is read",
		parse: duration(func(c *Config) *time.Duration { return &c.SweepEvery }, 100*time.Millisecond, time.Hour)},
	{Name: "HOLDFAST_TRIGGER_LEASE", Default: "10s", Help: "how long a trigger taken from Redis may stay unanswered before it is put back",
		parse: duration(func(c *Config) *time.Duration { return &c.TriggerLease }, 100*time.Millisecond, time.Hour)},
	{Name: "HOLDFAST_LANES", Default: "0", Help: "batches in flight per shard and kind of step; 0: chosen by the participant",
		parse: integer(func(c *Config) *int { return &c.Lanes }, 0, 64)},
	{Name: "HOLDFAST_PROOF_EVERY", Default: "24h",
		Help:  "how often a coordinator proves the whole ledger by itself, which reads all of it; 0: only when asked",
		parse: orZero(duration(func(c *Config) *time.Duration { return &c.ProofEvery }, time.Second, 30*24*time.Hour))},
	{Name: "HOLDFAST_JWT_SECRET", Help: "HS256 secret, 32 characters or more (default: a development secret in the data directory)",
		parse: text(func(c *Config) *string { return &c.JWTSecret }, 32)},
	{Name: "HOLDFAST_JWT_ISSUER", Default: "holdfast", Help: "issuer that tokens must name",
		parse: text(func(c *Config) *string { return &c.JWTIssuer }, 1)},
	{Name: "HOLDFAST_JWT_AUDIENCE", Default: "holdfast", Help: "audience that tokens must name",
		parse: text(func(c *Config) *string { return &c.JWTAudience }, 1)},
	{Name: "HOLDFAST_CURRENCIES", Default: "RBX:0", Help: "comma list of code:exponent",
		parse: currencies},
	{Name: "HOLDFAST_RATE_LIMIT", Default: "0", Help: "requests per second and token subject; 0: no limit",
		parse: number(func(c *Config) *float64 { return &c.RateLimit }, 0, 1e9)},
	{Name: "HOLDFAST_LOG_LEVEL", Default: "info", Help: "debug, info, warn or error",
		parse: oneOf(func(c *Config) *string { return &c.LogLevel }, "debug", "info", "warn", "error")},
	{Name: "HOLDFAST_TOKEN", Help: "bearer token of client commands", ClientOnly: true,
		parse: text(func(c *Config) *string { return &c.Token }, 1)},
}

// Load builds the configuration from environ ("NAME=value") and from flags
// (setting name → value), which win. An unknown HOLDFAST_ variable or a
// malformed value is an error of one line that names it. An empty variable
// counts as not set.
func Load(environ []string, flags map[string]string) (*Config, error) {
	fromEnv, err := ours(environ)
	if err != nil {
		return nil, err
	}
	c := &Config{Now: time.Now, given: map[string]bool{}}
	for _, s := range table {
		value, source := s.Default, s.Name
		if v := fromEnv[s.Name]; v != "" {
			value, c.given[s.Name] = v, true
		}
		if v, ok := flags[s.Name]; ok {
			value, source, c.given[s.Name] = v, "--"+s.Flag(), true
		}
		if value == "" {
			if c.given[s.Name] {
				return nil, fmt.Errorf("%s is empty", source)
			}
			continue
		}
		if err := s.parse(c, value); err != nil {
			return nil, fmt.Errorf("%s: %w", source, err)
		}
	}
	return c, c.cross()
}

// cross checks what no single setting can see.
func (c *Config) cross() error {
	if c.SweepEvery > c.Horizon {
		return fmt.Errorf("HOLDFAST_SWEEP_EVERY (%s) must not exceed HOLDFAST_HORIZON (%s)", c.SweepEvery, c.Horizon)
	}
	return nil
}

func ours(environ []string) (map[string]string, error) {
	known := map[string]bool{}
	for _, s := range table {
		known[s.Name] = true
	}
	values := map[string]string{}
	var unknown []string
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, Prefix) {
			continue
		}
		if !known[name] {
			unknown = append(unknown, name)
			continue
		}
		values[name] = value
	}
	if len(unknown) > 0 {
		sort.Strings(unknown)
		return nil, fmt.Errorf("%s is not a setting%s; holdfast serve --help lists them", unknown[0], suggestion(unknown[0]))
	}
	return values, nil
}

// suggestion names the known setting that is nearest to a mistyped one.
func suggestion(name string) string {
	best, bestDistance := "", 4
	for _, s := range table {
		if d := distance(name, s.Name); d < bestDistance {
			best, bestDistance = s.Name, d
		}
	}
	if best == "" {
		return ""
	}
	return " (did you mean " + best + "?)"
}

// distance is the number of single-character edits between two names.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
