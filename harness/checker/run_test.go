package checker

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/harness"
	"github.com/holdfast-escrow/holdfast/harness/workload"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/paysim"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

// TestUnderLoad watches the product at work, with a payment API that fails and
// loses answers, and finds nothing: what the checker forgives and what it does
// not is right while money moves.
func TestUnderLoad(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dsns := testkit.Databases(t, 2)
	stack, err := harness.Start(context.WithoutCancel(ctx), harness.Options{DSNs: dsns, RedisURL: testkit.Redis(t), Log: testkit.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stack.Stop(context.Background()) })
	w, err := workload.Prepare(ctx, workload.Config{APIs: []string{stack.API.API}, Token: stack.API.Token, Map: stack.Map, Seed: 7,
		Rate: 100, MinDelay: time.Second, MaxDelay: 2 * time.Second, Linger: time.Second, CancelNearMaturity: 0.3})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	faults := paysim.Faults{Mode: paysim.ModeOK, Banned: w.Refusable, ErrorRatio: 0.04, Seed: 7}
	if err := stack.Sim.SetFaults(faults); err != nil {
		t.Fatal(err)
	}
	c := New(Config{Target: Target{DSNs: dsns, Map: stack.Map, PaymentURL: stack.Sim.URL, Prove: ProveBy(stack.API)}, History: w.History,
		Bound: 30 * time.Second, Pictures: t.TempDir()})
	t.Cleanup(c.Close)
	watched, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Watch(watched, 20*time.Millisecond, func(list []Violation) { t.Errorf("under load: %v", list) })
	}()
	running, end := context.WithTimeout(ctx, 4*time.Second)
	defer end()
	w.Run(running)
	settling, enough := context.WithTimeout(ctx, 40*time.Second)
	defer enough()
	if s := w.Settle(settling); !s.OK() {
		t.Errorf("the clients say: %s", s)
	}
	if err := c.WaitSettled(settling, 50*time.Millisecond); err != nil {
		t.Error(err)
	}
	stop()
	<-done
	r, err := c.AtRest(ctx, w.History)
	if err != nil || len(r.Violations) > 0 {
		t.Errorf("at rest: %v, %v", r.Violations, err)
	}
	if s := c.Stats(); s.Cuts < 5 || s.Missed > 0 || r.Holds["EXECUTED"] == 0 || r.Holds["FAILED"] == 0 || r.Holds["CANCELLED"] == 0 || r.Effects == 0 {
		t.Errorf("too little was seen: %+v, %+v", s, r.Holds)
	}
	t.Logf("%+v", c.Stats())
	r.Violations = nil
	t.Logf("%+v", r)
}

// BenchmarkCut reads and checks HOLDS holds (20,000) that were cancelled, four
// entries and two barrier rows each, on two shards.
func BenchmarkCut(b *testing.B) {
	n := 20_000
	if text := os.Getenv("HOLDS"); text != "" {
		if _, err := fmt.Sscan(text, &n); err != nil {
			b.Fatal(err)
		}
	}
	ctx := context.Background()
	dsns := testkit.Databases(b, 2)
	stack, err := harness.Start(ctx, harness.Options{DSNs: dsns, RedisURL: testkit.Redis(b), Log: testkit.Logger(b), NoScheduler: true})
	if err != nil {
		b.Fatal(err)
	}
	defer stack.Stop(ctx)
	fill(b, stack, n)
	c := New(Config{Target: Target{DSNs: dsns, Map: stack.Map, PaymentURL: stack.Sim.URL}})
	defer c.Close()
	b.ResetTimer()
	for range b.N {
		if found := c.Cut(ctx); len(found) > 0 {
			b.Fatal(found)
		}
	}
	b.ReportMetric(float64(c.Stats().Entries), "entries")
}

// fill makes n cancelled holds.
func fill(b *testing.B, s *harness.Stack, n int) {
	b.Helper()
	const batch = 500
	ctx := context.Background()
	for shard := range s.Map.Shards {
		var users [200]holdfast.UserID
		for i := range users {
			for users[i].IsZero() || s.Map.OfUser(users[i]) != shard {
				_, _ = rand.Read(users[i][:])
			}
		}
		if err := fund(ctx, s, shard, users[:]); err != nil {
			b.Fatal(err)
		}
		for done := 0; done < n/s.Map.Shards; done += batch {
			var items []branch.TryItem
			for i := range batch {
				items = append(items, branch.TryItem{Sender: users[i%200], Recipient: users[(i+1)%200], Amount: 1, Currency: "RBX",
					Key: fmt.Sprintf("%d %d", done, i), DelayMS: 3_600_000})
			}
			var ids []branch.CancelItem
			for _, r := range s.Client.Try(ctx, shard, items) {
				if r.Code != branch.CodeOK {
					b.Fatal(r)
				}
				ids = append(ids, branch.CancelItem{ID: r.Hold.ID})
			}
			for _, r := range s.Client.Cancel(ctx, shard, ids) {
				if r.Code != branch.CodeOK {
					b.Fatal(r)
				}
			}
		}
	}
}

func fund(ctx context.Context, s *harness.Stack, shard int, users []holdfast.UserID) error {
	ids := make([][16]byte, len(users))
	for i, u := range users {
		ids[i] = u
	}
	_, err := s.Set.Owner(shard).Exec(ctx, `SELECT holdfast_bulk_fund(1, $1, 'RBX', 1000000)`, ids)
	return err
}
