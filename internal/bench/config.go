package bench

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// Target is the Holdfast under load. Only API, Admin and Token are required;
// what else is known makes more figures possible. Addresses are base URLs.
type Target struct {
	API, Admin, Token string
	DSNs              []string // the shards: lag, log and disk bytes, many accounts
	RedisURL          string   // memory per trigger
	Sim               string   // the payment simulator's controls
	PID               int      // the process whose family is the product: CPU and memory
	SimPID            int      // the simulator, where it is a process of its own
	PgBench           string   // path of pgbench; empty: no yardstick

	// Spawn makes a command that runs Child; nil: the load comes from this process.
	Spawn func() *exec.Cmd
	Note  func(format string, args ...any)
}

// Config is one run. The zero value of a field means the scenario's default.
type Config struct {
	Scenario           string
	Rate               float64 // holds per second; 0: closed loop
	Warmup, Duration   time.Duration
	Clients            int
	Processes          int // of the load generator; above 1 each is a child
	Senders            int
	Recipients         int
	Zipf               float64 // 0: uniform
	DelayMin, DelayMax time.Duration
	CancelRatio        float64
	Batch              int
	RequestTimeout     time.Duration
	Settle             time.Duration // how long after the last maturity every hold must have ended
	Yardstick          time.Duration // length of the pgbench run; 0: none

	Holds          int64         // cliff, drain: how many mature at once
	Pending        int64         // pending: how many lie there
	Outage         time.Duration // shard-down: how long the shard stands still
	PaymentLatency time.Duration // what the simulator waits before each answer

	Acked io.Writer // optional: every acknowledged hold id, a line each
}

// Check fills in defaults and refuses what makes no sense, in one line.
func (c *Config) Check() error {
	i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == c.Scenario })
	if i < 0 {
		return fmt.Errorf("there is no scenario %q: choose one of %s", c.Scenario, strings.Join(Scenarios(), ", "))
	}
	if preset := scenarios[i].preset; preset != nil {
		preset(c)
	}
	c.fill()
	switch {
	case c.Duration < time.Second:
		return errors.New("the duration must be a second or more")
	case c.Rate < 0 || c.Rate > 1e7:
		return errors.New("the rate must be between 0 and 10,000,000 per second")
	case c.Clients < 1 || c.Clients > 20000:
		return errors.New("the number of clients must be between 1 and 20,000")
	case c.Processes < 1 || c.Processes > min(64, c.Clients):
		return errors.New("the number of processes must be between 1 and 64, and not above the clients")
	case c.Acked != nil && c.Processes > 1:
		return errors.New("acknowledged ids can be written with one process only")
	case c.Senders < 1 || c.Recipients < 1:
		return errors.New("there must be a sender and a recipient at least")
	case c.Zipf != 0 && c.Zipf <= 1:
		return errors.New("the Zipf exponent must be above 1, or 0 for uniform")
	case c.DelayMin < time.Second || c.DelayMax < c.DelayMin || c.DelayMax > 89*24*time.Hour:
		return errors.New("the delay must lie between 1s and 89d")
	case c.CancelRatio < 0 || c.CancelRatio > 1:
		return errors.New("the cancel ratio must be between 0 and 1")
	case c.Batch < 1 || c.Batch > 100:
		return errors.New("a batch has 1 to 100 holds")
	case c.Holds < 1 || c.Pending < 1:
		return errors.New("the number of holds must be 1 or more")
	case c.Outage < time.Second || c.PaymentLatency < 0 || c.PaymentLatency > 10*time.Minute:
		return errors.New("an outage lasts a second or more, a payment at most 10 minutes")
	}
	return nil
}

// fill sets what neither the caller nor the scenario's preset has set.
func (c *Config) fill() {
	if c.DelayMax == 0 {
		// Far enough ahead that nothing but the creates is measured.
		c.DelayMin, c.DelayMax = 6*time.Hour, 12*time.Hour
	}
	or(&c.Clients, 256)
	or(&c.Processes, 1)
	or(&c.Senders, 2000)
	or(&c.Recipients, 2000)
	or(&c.Batch, 100)
	or(&c.RequestTimeout, 15*time.Second)
	or(&c.Settle, 2*time.Minute)
	or(&c.Holds, 200_000)
	or(&c.Pending, 1_000_000)
	or(&c.Outage, 30*time.Second)
}

// or gives a field that was left open its default.
func or[T comparable](field *T, value T) {
	var open T
	if *field == open {
		*field = value
	}
}

// settles reports whether the run waits for the end of its holds.
func (c *Config) settles() bool { return c.DelayMax <= 10*time.Minute }
