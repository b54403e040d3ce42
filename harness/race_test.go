package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/coordinator"
	"github.com/holdfast-escrow/holdfast/internal/apiclient"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

// A thousand holds are cancelled around the very millisecond of their maturity.
// Each ends once, whoever wins, and both sides win some.
func TestCancelAgainstMaturity(t *testing.T) {
	t.Parallel()
	const races = 1000
	r := start(t, Options{DSNs: testkit.Databases(t, 2), RedisURL: testkit.Redis(t)})
	from, to := []holdfast.UserID{r.user(0, races), r.user(1, races)}, []holdfast.UserID{r.user(1, 0), r.user(0, 0)}
	// One maturity for all, far enough ahead for a thousand creates.
	at := time.Now().Add(6 * time.Second).UTC().Truncate(time.Millisecond)
	var wg sync.WaitGroup
	ids := make([]holdfast.HoldID, races)
	cancelled := make([]bool, races)
	gate := make(chan struct{}, 64)
	for i := range races {
		wg.Add(1)
		go func() {
			defer wg.Done()
			gate <- struct{}{}
			unlock := at.Add(time.Duration(i) * time.Millisecond)
			h, err := r.API.Create(r.ctx, apiclient.CreateHold{Sender: from[i%2].String(), Recipient: to[i/2%2].String(),
				Amount: 1, Key: fmt.Sprint(i), UnlockAt: &unlock})
			<-gate
			if err != nil {
				t.Errorf("create %d: %v", i, err)
				return
			}
			ids[i] = h.ID
			// How long the request takes depends on the machine: most aim close,
			// some come early enough anywhere.
			<-time.After(time.Until(unlock) - time.Duration(rand.ExpFloat64()*40-4)*time.Millisecond)
			h, err = r.API.Cancel(r.ctx, h.ID.String())
			switch p := apiclient.AsProblem(err); {
			case err == nil && h.Status == holdfast.Cancelled:
				cancelled[i] = true
			case p == nil || p.Status != http.StatusConflict || (p.Code != "hold_matured" && p.Code != "hold_already_executed"):
				t.Errorf("cancel %d: %+v, %v", i, h, err)
			}
		}()
	}
	wg.Wait()
	won := 0
	for i, id := range ids {
		if cancelled[i] {
			won++
			if h := r.get(id); h.Status != holdfast.Cancelled {
				t.Errorf("cancel of %s was acknowledged, now it is %s", id, h.Status)
			}
			continue
		}
		r.want(id, holdfast.Executed)
	}
	t.Logf("cancel won %d of %d", won, races)
	if won == 0 || won == races {
		t.Errorf("cancel won %d of %d races: no race was run", won, races)
	}
	r.whole(ids...)
}

// slowAPI is a payment API whose first payment takes its time, during which the
// recipient is banned: it refuses a second try of the same key and pays the
// first all the same.
type slowAPI struct {
	mu       sync.Mutex
	posts    int
	paid     string
	body     map[string]any
	release  chan struct{}
	payments int
}

func (a *slowAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if r.Method == http.MethodGet {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.paid == "" {
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"code":"never_seen"}`)
			return
		}
		a.answer(w)
		return
	}
	a.mu.Lock()
	a.posts++
	first := a.posts == 1
	if first {
		_ = json.NewDecoder(r.Body).Decode(&a.body)
	}
	paid := a.paid != ""
	a.mu.Unlock()
	switch {
	case first:
		<-a.release // long after the caller has given up
		a.mu.Lock()
		a.paid = "slow-1"
		a.payments++
		a.mu.Unlock()
	case paid:
		a.mu.Lock()
		defer a.mu.Unlock()
		a.answer(w)
	default:
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `{"code":"recipient_banned"}`)
	}
}

func (a *slowAPI) answer(w http.ResponseWriter) {
	a.body["payment_id"], a.body["status"] = a.paid, "succeeded"
	_ = json.NewEncoder(w).Encode(a.body)
}

// Two drivers on one hold: the first answer is slow, the second try is refused
// because of a ban in between. Whatever the order, the hold is never both paid
// and refunded.
func TestTwoDriversNeverPayAndRefund(t *testing.T) {
	t.Parallel()
	api := &slowAPI{release: make(chan struct{})}
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	r := start(t, Options{DSNs: testkit.Databases(t, 2), RedisURL: testkit.Redis(t), PaymentURL: server.URL,
		Coordinator: func(c *coordinator.Config) { c.RefusalQuiet = time.Hour }})
	from, to := r.user(0, 100), r.user(1, 0)
	h := r.create(in(from, to, 100, "k", 1200*time.Millisecond))
	testkit.Eventually(t, 30*time.Second, func() (bool, string) {
		text := r.history(h.ID)
		return strings.Contains(text, "an earlier attempt may still be open"), text
	})
	r.wantBalance(from, 0, 100)
	close(api.release)
	r.want(h.ID, holdfast.Executed)
	r.wantBalance(from, 0, 0)
	r.wantBalance(to, 100, 0)
	proof, text, err := r.API.Prove(r.ctx)
	if err != nil || !proof.OK || api.payments != 1 {
		t.Errorf("%d payments, proof %s, %v", api.payments, text, err)
	}
}

// A payment that was still under way when a later one was refused, and for longer
// than anybody waits, is seen all the same: two wrongs are reported, not hidden.
func TestSuccessAfterAQuietRefusal(t *testing.T) {
	t.Parallel()
	api := &slowAPI{release: make(chan struct{})}
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	r := start(t, Options{DSNs: testkit.Databases(t, 2), RedisURL: testkit.Redis(t), PaymentURL: server.URL,
		Coordinator: func(c *coordinator.Config) { c.RefusalQuiet = time.Second }})
	from, to := r.user(0, 100), r.user(1, 0)
	h := r.create(in(from, to, 100, "k", 1200*time.Millisecond))
	r.want(h.ID, holdfast.Failed)
	r.wantBalance(from, 100, 0)
	close(api.release)
	testkit.Eventually(t, 60*time.Second, func() (bool, string) {
		// The next look is hours away; a person's impatience is not waited for.
		if _, err := r.Set.Owner(0).Exec(r.ctx, `UPDATE attempts SET next_at = now() WHERE hold_id = $1`, h.ID.String()); err != nil {
			t.Fatal(err)
		}
		d, err := r.Client.DeadLetters(r.ctx, 0, deadLetters("late_success"))
		return err == nil && len(d.DeadLetters) == 1 && d.DeadLetters[0].HoldID == h.ID, r.history(h.ID)
	})
	r.wantBalance(from, 100, 0)
	r.wantBalance(to, 0, 0)
}

// The same ids are driven by several coordinators at once, over and over.
func TestManyDriversPayOnce(t *testing.T) {
	t.Parallel()
	dsns, sim := testkit.Databases(t, 2), simulator(t)
	a := start(t, Options{DSNs: dsns, RedisURL: testkit.Redis(t), Sim: sim, NoScheduler: true})
	b := start(t, Options{DSNs: dsns, RedisURL: testkit.Redis(t), Sim: sim, NoScheduler: true})
	from, to := a.user(0, 50), a.user(1, 0)
	var ids []holdfast.HoldID
	for i := range 50 {
		ids = append(ids, a.create(in(from, to, 1, fmt.Sprint(i), 1500*time.Millisecond)).ID)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, who := range []*rig{a, b, a, b} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for ctx.Err() == nil {
				who.Coord.Drive(ctx, 0, ids)
			}
		}()
	}
	for _, id := range ids {
		a.want(id, holdfast.Executed)
	}
	cancel()
	wg.Wait()
	a.wantBalance(to, 50, 0)
	a.whole(ids...)
}
