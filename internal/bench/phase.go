package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Steps of a phase: what one request of its clients does.
const (
	stepCreate = "create"
	stepBatch  = "batch"
	stepCancel = "cancel"
)

// phase is one stretch of load, and in its JSON form what a child process is
// told to do.
type phase struct {
	API, Token string
	Seed       uint64 // of the users, the same in all processes
	Nonce      uint64 // of the keys and the dice, its own in each

	Step           string
	Rate           float64 // requests' holds per second; 0: closed loop
	Clients        int
	RequestTimeout time.Duration
	Start          time.Time
	Warmup         time.Duration
	Duration       time.Duration
	Most           int64 // requests after which it ends; 0: none

	Senders, Recipients int
	Zipf                float64
	DelayMin, DelayMax  time.Duration
	UnlockAt            time.Time     // instead of the delay: every hold matures from then on …
	UnlockSpread        time.Duration // … evenly spread over this time
	CancelRatio         float64
	Batch               int
	Keep                bool     // remember the ids for a phase of cancels
	Cancel              []holdID // the holds that stepCancel cancels

	Owner      []int16 // bucket → shard, where the users are chosen by shard
	OnlyShard  int     // users of this shard only; -1: of any
	AvoidShard int     // no users of this shard; -1: of any
	Aside      bool    // not part of the run's time line
}

// newPhase is a phase of the run's own load.
func (b *run) newPhase(step string) phase {
	c := b.cfg
	return phase{API: b.API, Token: b.Token, Seed: b.seed, Step: step, Rate: c.Rate, Clients: c.Clients,
		RequestTimeout: c.RequestTimeout, Warmup: c.Warmup, Duration: c.Duration, Senders: c.Senders, Recipients: c.Recipients,
		Zipf: c.Zipf, DelayMin: c.DelayMin, DelayMax: c.DelayMax, CancelRatio: c.CancelRatio, Batch: c.Batch,
		OnlyShard: -1, AvoidShard: -1}
}

// split is the part of process i of n: its share of the clients, the rate and
// the requests. Together the processes keep the schedule of one.
func (p phase) split(i, n int) phase {
	p.Nonce = rand.Uint64()
	share := func(total int) int { return total*(i+1)/n - total*i/n }
	p.Clients = share(p.Clients)
	if p.Rate > 0 {
		p.Start = p.Start.Add(time.Duration(float64(i) / p.requestRate() * float64(time.Second)))
		p.Rate /= float64(n)
	}
	if p.Most > 0 {
		p.Most = int64(share(int(p.Most)))
	}
	if p.Cancel != nil {
		p.Cancel = p.Cancel[len(p.Cancel)*i/n : len(p.Cancel)*(i+1)/n]
	}
	return p
}

// requestRate is Rate in requests.
func (p *phase) requestRate() float64 {
	if p.Step == stepBatch {
		return p.Rate / float64(p.Batch)
	}
	return p.Rate
}

// load drives one phase with all processes and adds what they saw to the run.
func (b *run) load(ctx context.Context, p phase) (*seen, error) {
	if p.Start.IsZero() {
		p.Start = time.Now()
	}
	n := min(b.cfg.Processes, p.Clients)
	if p.Most > 0 {
		n = int(min(int64(n), p.Most))
	}
	parts := make([]*seen, n)
	group, ctx := errgroup.WithContext(ctx)
	for i := range n {
		group.Go(func() (err error) {
			part := p.split(i, n)
			if n > 1 && b.Spawn != nil {
				parts[i], err = runChild(ctx, b.Spawn(), part)
			} else {
				parts[i], err = newGenerator(part, b.cfg.Acked).run(ctx)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	sum := newSeen()
	for _, part := range parts {
		sum.merge(part)
	}
	b.took(sum, p.Aside)
	return sum, nil
}

// took adds what a phase saw to the run's time line, errors and sample. Phases
// may run at the same time.
func (b *run) took(s *seen, aside bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.acked += s.Acked
	b.sample = append(b.sample, s.Sample...)
	if !aside {
		b.series.merge(s.Series)
	}
	for code, n := range s.Errors {
		b.report.Errors[code] += n
	}
}

// elapsed is the measured window of a phase as it really was. An open loop
// counts every request of its schedule and took as long as it took; a closed
// one counts what ended inside the window.
func (p *phase) elapsed(ended time.Time) float64 {
	took := ended.Sub(p.Start.Add(p.Warmup)).Seconds()
	if p.Rate == 0 {
		took = min(took, p.Duration.Seconds())
	}
	return max(took, 0)
}

// childAnswer is what a child writes: one object, whatever happens.
type childAnswer struct {
	Seen  *seen  `json:"seen,omitempty"`
	Error string `json:"error,omitempty"`
}

// Child is the body of a process of the load generator: it reads a phase,
// drives it, and writes what it saw. It ends early when in is closed, so a
// parent that is killed leaves no load behind.
func Child(ctx context.Context, in io.Reader, out io.Writer) error {
	d := json.NewDecoder(in)
	var p phase
	if err := d.Decode(&p); err != nil {
		return fmt.Errorf("read the phase: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		// Nothing more is ever written there: this returns at its end.
		d.Token()
		cancel()
	}()
	var answer childAnswer
	var err error
	if answer.Seen, err = newGenerator(p, nil).run(ctx); err != nil {
		answer.Error = err.Error()
	}
	return json.NewEncoder(out).Encode(answer)
}

// childGrace is how long a child may take to end and report after its phase.
const childGrace = time.Minute

// runChild lets cmd drive a phase. When ctx ends, the child is told to end and
// what it saw until then counts.
func runChild(ctx context.Context, cmd *exec.Cmd, p phase) (*seen, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a load process: %w", err)
	}
	ended := make(chan error, 1)
	err = json.NewEncoder(in).Encode(p)
	go func() { ended <- cmd.Wait() }()
	if err == nil {
		select {
		case <-ctx.Done():
			in.Close()
			select {
			case err = <-ended:
			case <-time.After(childGrace + p.RequestTimeout):
				cmd.Process.Kill()
				err = errors.Join(errors.New("a load process did not end"), <-ended)
			}
		case err = <-ended:
		}
	} else {
		in.Close()
		err = errors.Join(err, <-ended)
	}
	if err != nil {
		return nil, fmt.Errorf("load process: %w: %s", err, strings.TrimSpace(said.String()))
	}
	var answer childAnswer
	if err := json.Unmarshal([]byte(out.String()), &answer); err != nil {
		return nil, fmt.Errorf("load process: %w", err)
	}
	if answer.Error != "" {
		return nil, errors.New(answer.Error)
	}
	return answer.Seen, nil
}
