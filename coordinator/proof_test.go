package coordinator

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// twoSides is what the shards of a cluster would answer about transit. The SQL
// behind it is tested where it lives; here it is the two rounds.
type twoSides struct {
	mu      sync.Mutex
	n       int
	paid    [][]branch.TransitItem
	credits [][]branch.TransitItem
	own     []branch.Offender
	down    int    // this shard does not answer; −1 = all do
	between func() // called before every question
}

func newSides(n int) *twoSides {
	return &twoSides{n: n, paid: make([][]branch.TransitItem, n), credits: make([][]branch.TransitItem, n), down: -1, between: func() {}}
}

func (s *twoSides) Send(_ context.Context, shard int, op string, in, out any) error {
	s.between()
	s.mu.Lock()
	defer s.mu.Unlock()
	if shard == s.down {
		return holdfast.ErrShardUnavailable
	}
	switch op {
	case branch.OpProve:
		one := big.NewInt(1)
		p := branch.ShardProof{Shard: shard, OK: true, Accounts: 2, Available: one, Held: one, Debits: one, Credits: one, Issued: one, EscrowHolds: one, Transit: one}
		if shard == 0 {
			p.Offenders = s.own
		}
		*out.(*branch.ShardProof) = p
	case branch.OpTransit:
		*out.(*branch.TransitAnswer) = s.answer(shard, in.(branch.TransitRequest))
	default:
		return fmt.Errorf("unexpected %s", op)
	}
	return nil
}

func (s *twoSides) answer(shard int, r branch.TransitRequest) (a branch.TransitAnswer) {
	cells := map[int64]*branch.TransitCell{}
	pick := func(items []branch.TransitItem, add func(*branch.TransitCell, branch.TransitItem)) (list []branch.TransitItem) {
		for _, item := range items {
			ms := item.ID.UnlockAtMS()
			if ms < r.Range.From || ms >= r.Range.To {
				continue
			}
			if r.StepMS > 0 {
				start := ms / r.StepMS * r.StepMS
				if cells[start] == nil {
					cells[start] = &branch.TransitCell{From: start}
				}
				add(cells[start], item)
			} else if bytes.Compare(item.ID[:], r.After[:]) > 0 {
				list = append(list, item)
			}
		}
		slices.SortFunc(list, func(a, b branch.TransitItem) int { return bytes.Compare(a.ID[:], b.ID[:]) })
		return list
	}
	sum := func(i branch.TransitItem) branch.TransitSum {
		return branch.TransitSum{N: 1, Amount: i.Amount, Hash: i.Hash & (1<<62 - 1)}
	}
	a.Paid = pick(s.paid[shard], func(c *branch.TransitCell, i branch.TransitItem) {
		c.Paid.Add(sum(i))
		if i.Executed {
			c.Executed.Add(sum(i))
		}
	})
	a.Credits = pick(s.credits[shard], func(c *branch.TransitCell, i branch.TransitItem) { c.Credited.Add(sum(i)) })
	for _, c := range cells {
		a.Cells = append(a.Cells, *c)
	}
	const page = 40
	if len(a.Paid) > page && r.StepMS == 0 {
		a.More, a.Through = true, a.Paid[page-1].ID
		a.Paid = a.Paid[:page]
		a.Credits = slices.DeleteFunc(a.Credits, func(i branch.TransitItem) bool { return bytes.Compare(i.ID[:], a.Through[:]) > 0 })
	}
	return a
}

// item is the n-th hold, some hundred milliseconds after the one before.
func item(n int) branch.TransitItem {
	return branch.TransitItem{ID: holdfast.NewHoldID(1_700_000_000_000+int64(n)*137, n%holdfast.Buckets, uint64(n)*2654435761),
		Amount: int64(n + 1), Hash: int64(n+1) * 0x9e3779b97f4a7c1 % (1 << 61)}
}

func executed(i branch.TransitItem) branch.TransitItem { i.Executed = true; return i }

// settled fills the books with n holds that went the whole way.
func (s *twoSides) settled(n int) *twoSides {
	for i := range n {
		s.paid[i%s.n] = append(s.paid[i%s.n], executed(item(i)))
		s.credits[(i+1)%s.n] = append(s.credits[(i+1)%s.n], item(i))
	}
	return s
}

// proveOver answers the report and the gauge of shard 0.
func proveOver(t *testing.T, s *twoSides) (ProofReport, float64) {
	t.Helper()
	registry := prometheus.NewRegistry()
	c := &Coordinator{cfg: Config{Map: holdfast.EvenShardMap(s.n)}, shards: branch.Client{T: s},
		log: slog.New(slog.NewTextHandler(io.Discard, nil)), metrics: newMetrics(registry), proving: make(chan struct{}, 1)}
	r := c.ProveLedger(t.Context())
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "holdfast_ledger_imbalance" {
			return r, f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatal("the proof set no gauge")
	return r, 0
}

func TestProveLedger(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name string
		harm func(*twoSides)
		kind string
	}{
		{"whole", func(*twoSides) {}, ""},
		{"paid_and_not_yet_credited_is_transit", func(s *twoSides) { s.paid[0] = append(s.paid[0], item(700)) }, ""},
		{"credited_and_not_yet_executed_is_transit", func(s *twoSides) {
			s.paid[0], s.credits[1] = append(s.paid[0], item(700)), append(s.credits[1], item(700))
		}, ""},
		{"credit_without_verdict", func(s *twoSides) { s.credits[2] = append(s.credits[2], item(700)) }, branch.OffCreditWithoutVerdict},
		{"verdict_taken_back_after_credit", func(s *twoSides) { s.paid[1] = s.paid[1][1:] }, branch.OffCreditWithoutVerdict},
		{"executed_without_credit", func(s *twoSides) { s.credits[0] = s.credits[0][1:] }, branch.OffCreditMissing},
		{"credited_on_two_shards", func(s *twoSides) { s.credits[0] = append(s.credits[0], s.credits[1][3]) }, branch.OffCreditDoubled},
		{"credited_with_another_amount", func(s *twoSides) { s.credits[0][5].Hash++ }, branch.OffCreditDiffers},
		{"two_credits_exchanged_within_a_minute", func(s *twoSides) {
			c := s.credits[0]
			c[5].Hash, c[6].Hash = c[6].Hash-7, c[5].Hash+6
		}, branch.OffCreditDiffers},
		{"one_hold_missing_and_another_doubled", func(s *twoSides) { s.credits[0][5] = s.credits[0][6] }, branch.OffCreditMissing},
		{"a_hold_paid_on_two_shards", func(s *twoSides) { s.paid[0] = append(s.paid[0], s.paid[1][2]) }, branch.OffHoldDoubled},
		{"an_offender_of_one_shard", func(s *twoSides) {
			s.own = []branch.Offender{{Kind: branch.OffBalance, Count: 3, First: "account"}}
		}, branch.OffBalance},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSides(3).settled(600)
			c.harm(s)
			r, gauge := proveOver(t, s)
			var kinds []string
			for _, o := range r.Offenders {
				kinds = append(kinds, o.Kind)
			}
			if got := strings.Join(kinds, " "); r.OK != (c.kind == "") || !strings.Contains(got, c.kind) || (c.kind == "" && got != "") {
				t.Fatalf("ok %v, found %q, want %q; %s", r.OK, got, c.kind, r.Reason)
			}
			if r.Total.Accounts != 6 || r.Total.Held.Int64() != 3 {
				t.Errorf("total: %d accounts, held %v", r.Total.Accounts, r.Total.Held)
			}
			if (gauge == 0) != r.OK {
				t.Errorf("gauge is %v, ok is %v", gauge, r.OK)
			}
		})
	}
}

func TestProveLedger_a_shard_that_cannot_be_read_is_not_proved(t *testing.T) {
	t.Parallel()
	s := newSides(3).settled(30)
	s.down = 1
	r, _ := proveOver(t, s)
	if r.OK || !slices.Equal(r.Unavailable, []int{1}) || r.Reason != "shard 1 unavailable: not proved" || len(r.Shards) != 2 {
		t.Fatalf("%+v", r)
	}
}

// Whatever happens between two questions of a proof, money on its way is never
// called an error, and an error among it is never overlooked.
func TestProveLedger_while_money_moves(t *testing.T) {
	t.Parallel()
	for _, harmed := range []bool{false, true} {
		t.Run(fmt.Sprintf("harmed_%v", harmed), func(t *testing.T) {
			t.Parallel()
			s := newSides(3).settled(300)
			next := 300
			var open []int // paid, then credited, then executed
			step := 0
			s.between = func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				for range 5 {
					step++
					switch step % 3 {
					case 0:
						s.paid[next%3] = append(s.paid[next%3], item(next))
						open = append(open, next)
						next++
					case 1:
						if len(open) > 0 && !(harmed && open[0] == 310) {
							s.credits[(open[0]+1)%3] = append(s.credits[(open[0]+1)%3], item(open[0]))
						}
					case 2:
						if len(open) > 0 {
							side := s.paid[open[0]%3]
							at := slices.IndexFunc(side, func(i branch.TransitItem) bool { return i.ID == item(open[0]).ID })
							side[at].Executed = true
							open = open[1:]
						}
					}
				}
			}
			var last ProofReport
			for range 10 {
				if last, _ = proveOver(t, s); !harmed && !last.OK {
					t.Fatalf("false alarm: %+v", last.Offenders)
				}
			}
			if harmed && (last.OK || last.Offenders[0].Kind != branch.OffCreditMissing) {
				t.Fatalf("hold 310 was never credited, the proof says %+v", last.Offenders)
			}
		})
	}
}
