package workload_test

import (
	"bytes"
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/harness"
	"github.com/holdfast-escrow/holdfast/harness/workload"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const shards = 2

func stack(t *testing.T) *harness.Stack {
	t.Helper()
	s, err := harness.Start(context.Background(), harness.Options{DSNs: testkit.Databases(t, shards), RedisURL: testkit.Redis(t), Log: testkit.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		s.Stop(ctx)
	})
	return s
}

// prepare makes a world before a stack; the simulator refuses the refusable.
func prepare(t *testing.T, s *harness.Stack, cfg workload.Config) *workload.World {
	t.Helper()
	cfg.Map, cfg.Token = s.Map, s.API.Token
	cfg.APIs = append(cfg.APIs, s.API.API)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	w, err := workload.Prepare(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	f := s.Sim.Faults()
	f.Banned = w.Refusable
	if err := s.Sim.SetFaults(f); err != nil {
		t.Fatal(err)
	}
	return w
}

func run(w *workload.World, d time.Duration) workload.Stats {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return w.Run(ctx)
}

func settle(t *testing.T, w *workload.World) *workload.Settled {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s := w.Settle(ctx)
	t.Log(s)
	return s
}

// money is what the shards hold in all.
func money(t *testing.T, s *harness.Stack) (sum int64) {
	t.Helper()
	for i := range shards {
		var n int64
		if err := s.Set.Owner(i).QueryRow(context.Background(), `SELECT coalesce(sum(available + held), 0)::bigint FROM accounts`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

func count(ops []workload.Op, match func(workload.Op) bool) (n int) {
	for _, o := range ops {
		if match(o) {
			n++
		}
	}
	return n
}

// With no fault every operation is answered, every kind and every refusal that
// customers cause occurs, and every hold comes to its end.
func TestRunWithoutFaults(t *testing.T) {
	t.Parallel()
	s := stack(t)
	w := prepare(t, s, workload.Config{Seed: 11, Rate: 250, MaxDelay: 2 * time.Second, BannedShare: 0.03, PoorShare: 0.04, CancelLate: 0.08})
	stats := run(w, 4*time.Second)
	ops := w.History.Ops()
	if stats.Intents < 500 {
		t.Errorf("%+v: fewer than 500 intents in 4 s at 250/s", stats)
	}
	for _, o := range ops {
		if o.Outcome == workload.Unknown || o.Code == workload.CodeMismatch || o.Attempts < 1 || o.Return <= o.Call {
			t.Errorf("without faults: %+v", o)
		}
	}
	counts := w.History.Counts()
	for _, kind := range workload.Kinds {
		if counts.Of(kind, workload.OK) == 0 {
			t.Errorf("no %s is ok: %v", kind, counts)
		}
	}
	for _, code := range []string{"insufficient_funds", "recipient_not_payable", "idempotency_key_reused", "hold_matured|hold_already_executed|hold_failed"} {
		if count(ops, func(o workload.Op) bool { return o.Code != "" && bytes.Contains([]byte(code), []byte(o.Code)) }) == 0 {
			t.Errorf("nobody was told %s", code)
		}
	}
	if count(ops, func(o workload.Op) bool { return o.Kind == workload.KindCreate && o.Replayed }) == 0 {
		t.Error("no create was a replay")
	}
	end := settle(t, w)
	if !end.OK() || end.Found+end.Absent != 0 {
		t.Errorf("not at rest: %s\n%+v", end, end.Open)
	}
	byStatus := map[holdfast.Status]int{}
	for _, h := range end.Holds {
		byStatus[h.Status]++
	}
	if byStatus[holdfast.Executed] == 0 || byStatus[holdfast.Cancelled] == 0 || byStatus[holdfast.Failed] == 0 {
		t.Errorf("ends: %v", byStatus)
	}
	if b, have := w.Money(), money(t, s); b.Least != b.Most || b.Least != have {
		t.Errorf("the shards hold %d, the answers say %+v", have, b)
	}
	if told := w.History.Lifetimes(); len(told) != len(end.Holds) {
		t.Errorf("%d holds were told of, %d exist", len(told), len(end.Holds))
	}
	var file bytes.Buffer
	if err := w.History.Export(&file); err != nil {
		t.Fatal(err)
	}
	back, err := workload.Import(&file)
	if err != nil || !reflect.DeepEqual(back.Ops(), w.History.Ops()) {
		t.Errorf("the exported history came back changed: %v", err)
	}
}

// lossy passes requests on to an API and drops the answers of those that
// choose names, after they took effect.
func lossy(t *testing.T, api string, choose func(r *http.Request, body []byte) bool) string {
	t.Helper()
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		q, err := http.NewRequestWithContext(r.Context(), r.Method, api+r.URL.RequestURI(), bytes.NewReader(body))
		if err != nil {
			panic(err)
		}
		q.Header = r.Header.Clone()
		res, err := http.DefaultClient.Do(q)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer res.Body.Close()
		answer, err := io.ReadAll(res.Body)
		if err != nil || choose(r, body) {
			panic(http.ErrAbortHandler)
		}
		for name, values := range res.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(res.StatusCode)
		w.Write(answer)
	}))
	t.Cleanup(front.Close)
	return front.URL
}

// Lost answers become unknown, never refused, and settling finds what they did.
func TestLostAnswersAreUnknown(t *testing.T) {
	t.Parallel()
	s := stack(t)
	w := prepare(t, s, workload.Config{Seed: 12, Rate: 150, MaxDelay: time.Second, Clients: 40,
		GiveUp: 400 * time.Millisecond, Linger: time.Second, RequestTimeout: 300 * time.Millisecond})
	losing := true
	front := lossy(t, s.API.API, func(r *http.Request, body []byte) bool {
		h := fnv.New32()
		h.Write(append(body, r.Header.Get("Idempotency-Key")+r.Header.Get("X-Idempotency-Key")...))
		return losing && r.Method == http.MethodPost && h.Sum32()%4 == 0
	})
	workload.Redirect(w, front)
	run(w, 2500*time.Millisecond)
	counts := w.History.Counts()
	for _, kind := range []string{workload.KindCreate, workload.KindBatchItem, workload.KindDeposit} {
		if counts.Of(kind, workload.Unknown) == 0 || counts.Of(kind, workload.OK) == 0 {
			t.Errorf("%s: %v", kind, counts)
		}
	}
	before := w.Money()
	if have := money(t, s); before.Least == before.Most || !before.Holds(have) {
		t.Errorf("the shards hold %d, the answers allow %+v", have, before)
	}
	losing = false // nothing is in flight between Run and Settle
	end := settle(t, w)
	if !end.OK() || end.Found == 0 {
		t.Errorf("not at rest, or nothing found: %s", end)
	}
	if b, have := w.Money(), money(t, s); b.Least != b.Most || b.Least != have {
		t.Errorf("after the settling the shards hold %d, the answers say %+v", have, b)
	}
	recovered := count(w.History.Ops(), func(o workload.Op) bool {
		return o.Kind == workload.KindList && o.Outcome == workload.OK && !o.Hold.IsZero()
	})
	if recovered == 0 {
		t.Error("no lost create was found by its key")
	}
}

// A settling that cannot be told the end says so.
func TestSettleNamesWhatIsOpen(t *testing.T) {
	t.Parallel()
	s := stack(t)
	w := prepare(t, s, workload.Config{Seed: 13, Rate: 100, MinDelay: time.Minute, MaxDelay: 2 * time.Minute, CancelEarly: -1, Mix: workload.Mix{Create: 1}})
	run(w, time.Second)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	end := w.Settle(ctx)
	if end.OK() || len(end.Open) == 0 || len(end.Open) != len(end.Holds) || len(end.Lost)+len(end.Stray) != 0 {
		t.Errorf("holds of a minute came to rest: %s", end)
	}
	text, err := end.MarshalJSON()
	if err != nil || !bytes.Contains(text, fmt.Appendf(nil, `"hold_count":%d`, len(end.Holds))) || bytes.Contains(text, []byte(`"holds"`)) {
		t.Errorf("reported as %s, %v", text, err)
	}
	if _, err := s.Set.Owner(0).Exec(context.Background(), `UPDATE holds SET reference = 'foreign' WHERE id = (SELECT min(id::text)::uuid FROM holds)`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if again := w.Settle(ctx); len(again.Stray) != 1 {
		t.Errorf("a hold that nobody asked for: %s", again)
	}
}
