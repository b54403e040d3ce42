package coordinator

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

// said is a log that a test reads while it is written.
type said struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *said) Write(line []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(line)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// proving starts a coordinator that proves these books by itself. The answer
// reads a gauge, all labels added up, and says whether it is there.
func proving(t *testing.T, s *twoSides, every time.Duration) (func(name string) (float64, bool), *said) {
	t.Helper()
	registry, log := prometheus.NewRegistry(), &said{}
	c := New(Config{Participants: s, Map: holdfast.EvenShardMap(s.n), Log: slog.New(slog.NewTextHandler(log, nil)),
		Metrics: registry, ProofEvery: every})
	c.Start(t.Context())
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		c.Close(ctx)
		if ctx.Err() != nil {
			t.Error("the proofs do not end with their coordinator")
		}
	})
	return func(name string) (sum float64, there bool) {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if f.GetName() == name {
					sum, there = sum+m.GetGauge().GetValue(), true
				}
			}
		}
		return sum, there
	}, log
}

const (
	provedAt  = "holdfast_ledger_proved_at_seconds"
	imbalance = "holdfast_ledger_imbalance"
)

func TestProofUnasked(t *testing.T) {
	t.Parallel()
	t.Run("finds_what_is_wrong_and_says_it", func(t *testing.T) {
		t.Parallel()
		s := newSides(3).settled(60)
		s.credits[0] = s.credits[0][1:]
		before := float64(time.Now().Unix())
		gauge, log := proving(t, s, 20*time.Millisecond)
		testkit.Eventually(t, 20*time.Second, func() (bool, string) {
			wrong, _ := gauge(imbalance)
			at, _ := gauge(provedAt)
			told := strings.Contains(log.String(), "the ledger is not whole") && strings.Contains(log.String(), branch.OffCreditMissing)
			return wrong > 0 && at >= before && told, "the log: " + log.String()
		})
	})
	t.Run("follows_the_ledger", func(t *testing.T) {
		t.Parallel()
		s := newSides(3).settled(60)
		gauge, log := proving(t, s, 20*time.Millisecond)
		testkit.Eventually(t, 20*time.Second, func() (bool, string) {
			at, _ := gauge(provedAt)
			return at > 0, "not proved; the log: " + log.String()
		})
		if wrong, there := gauge(imbalance); wrong != 0 || !there {
			t.Errorf("whole books: imbalance %f, there %t", wrong, there)
		}
		s.mu.Lock()
		s.credits[0] = s.credits[0][1:]
		s.mu.Unlock()
		testkit.Eventually(t, 20*time.Second, func() (bool, string) {
			wrong, _ := gauge(imbalance)
			return wrong > 0, "a credit is missing and no later proof has seen it"
		})
	})
	t.Run("is_not_ended_by_one_that_could_not_read_everything", func(t *testing.T) {
		t.Parallel()
		s := newSides(3).settled(60)
		s.down = 1
		gauge, log := proving(t, s, 20*time.Millisecond)
		testkit.Eventually(t, 20*time.Second, func() (bool, string) {
			return strings.Count(log.String(), "shard could not be proved") > 1, "the log: " + log.String()
		})
		if at, there := gauge(provedAt); at != 0 || !there {
			t.Errorf("proved at %f, there %t; want 0, so that its age is beyond any bound", at, there)
		}
	})
	t.Run("never", func(t *testing.T) {
		t.Parallel()
		gauge, _ := proving(t, newSides(3), 0)
		if at, there := gauge(provedAt); there {
			t.Errorf("proved at %f, want no series that an alert could take for an old one", at)
		}
	})
}
