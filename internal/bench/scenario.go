package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// scenario is one kind of load: what it sets where the caller left it open, and
// how it is played.
type scenario struct {
	name, about           string
	preset                func(c *Config)
	play                  func(ctx context.Context, b *run) error
	needsShards, needsSim bool
	needsProcess          bool
}

// scenarios in the order in which the help shows them.
var scenarios = []scenario{
	{name: "lifecycle", about: "create, wait for maturity and payment", preset: soon, play: plain(stepCreate)},
	{name: "create", about: "holds that mature far ahead", play: plain(stepCreate)},
	{name: "batch", about: "the same by batchCreate", preset: func(c *Config) { or(&c.Clients, 16) }, play: plain(stepBatch)},
	{name: "cancel", about: "creates, then the cancels of all of them", play: playCancel},
	{name: "create-cancel", about: "creates, half of them cancelled at once", preset: func(c *Config) { or(&c.CancelRatio, 0.5) }, play: plain(stepCreate)},
	{name: "hot-sender", about: "creates that all debit one account", preset: func(c *Config) { c.Senders = 1 }, play: plain(stepCreate)},
	{name: "celebrity", about: "lifecycles that all pay one account", preset: func(c *Config) { soon(c); c.Recipients = 1 }, play: plain(stepCreate)},
	{name: "slow-payment", about: "lifecycles while the payment API takes 50 ms",
		preset: func(c *Config) { soon(c); or(&c.PaymentLatency, 50*time.Millisecond) }, play: plain(stepCreate), needsSim: true},
	{name: "cliff", about: "--holds mature in one second while creates go on at a low rate", preset: presetCliff, play: playCliff, needsShards: true},
	{name: "drain", about: "--holds become overdue while payments are down, then they work again", preset: presetDrain, play: playDrain,
		needsShards: true, needsSim: true},
	{name: "pending", about: "creates and executions before and after --pending holds were made", preset: presetPending, play: playPending, needsShards: true},
	{name: "shard-down", about: "one shard stands still for --outage", preset: presetShardDown, play: playShardDown, needsShards: true, needsProcess: true},
}

// Scenarios lists the names.
func Scenarios() []string {
	var names []string
	for _, s := range scenarios {
		names = append(names, s.name)
	}
	return names
}

// Describe writes a line for each scenario.
func Describe() string {
	var b bytes.Buffer
	for _, s := range scenarios {
		fmt.Fprintf(&b, "  %-14s %s\n", s.name, s.about)
	}
	return b.String()
}

// possible says what is missing to play the scenario against a target.
func (s *scenario) possible(t *Bench) error {
	switch {
	case s.needsShards && t.shards == nil:
		return fmt.Errorf("scenario %s must read the shards: name them with --shards, or use --embedded", s.name)
	case s.needsSim && t.Sim == "":
		return fmt.Errorf("scenario %s must set the payment simulator's faults: use --embedded", s.name)
	case s.needsProcess && t.PID == 0:
		return fmt.Errorf("scenario %s stops a server process: use --embedded", s.name)
	}
	return nil
}

func soon(c *Config) {
	if c.DelayMax == 0 {
		c.DelayMin, c.DelayMax = time.Second, 10*time.Second
	}
}

// plain is one phase of one step.
func plain(step string) func(context.Context, *run) error {
	return func(ctx context.Context, b *run) error {
		p := b.newPhase(step)
		b.Note("%s", b.describe(p))
		_, err := b.main(ctx, p)
		return err
	}
}

func (b *run) describe(p phase) string {
	how := "as fast as it goes"
	if p.Rate > 0 {
		how = fmt.Sprintf("%.0f holds/s", p.Rate)
	}
	processes := ""
	if b.cfg.Processes > 1 {
		processes = fmt.Sprintf(" of %d processes", b.cfg.Processes)
	}
	return fmt.Sprintf("%s: %s with %d clients%s for %s, delay %s to %s", b.cfg.Scenario, how, p.Clients, processes,
		p.Warmup+p.Duration, p.DelayMin, p.DelayMax)
}

// playCancel measures the cancels alone, of the holds that were just created.
func playCancel(ctx context.Context, b *run) error {
	p := b.newPhase(stepCreate)
	p.Keep, p.CancelRatio = true, 0
	b.Note("%s", b.describe(p))
	made, err := b.main(ctx, p)
	if err != nil || ctx.Err() != nil || len(made.IDs) == 0 {
		return err
	}
	b.Note("cancelling %d holds", len(made.IDs))
	p = b.newPhase(stepCancel)
	p.Warmup, p.Duration, p.Cancel = 0, 10*time.Minute, made.IDs
	_, err = b.main(ctx, p)
	return err
}

// simFaults is the body of PUT /sim/faults; what is not named is back to normal.
type simFaults struct {
	Mode      string `json:"mode"`
	LatencyMS int64  `json:"latency_ms"`
}

func (b *run) faults(ctx context.Context, f simFaults) error {
	if f.Mode == "" {
		f.Mode = "ok"
	}
	if b.Sim == "" {
		return errors.New("the payment simulator's address is not known")
	}
	body, err := json.Marshal(f)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, b.Sim+"/sim/faults", bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("set the simulator's faults: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("set the simulator's faults: %d %s", resp.StatusCode, text)
	}
	return nil
}

// mend ends the simulator's faults, also after a Ctrl-C.
func (b *run) mend(ctx context.Context) {
	if err := b.faults(context.WithoutCancel(ctx), simFaults{}); err != nil {
		b.Note("%v", err)
	}
}
