package harness

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast/coordinator"
	"github.com/holdfast-escrow/holdfast/internal/auth"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

// A key is one request: replayed, refused for another, remembered when refused.
func TestIdempotency(t *testing.T) {
	t.Parallel()
	a := newAPI(t, Options{})
	body := a.doc(map[string]any{"amount": 900})
	h := a.created(a.post(body))
	again := a.send(a.post(body))
	if again.status != 201 || again.header.Get("Idempotent-Replayed") != "true" || !bytes.Contains(again.body, []byte(h.ID.String())) {
		t.Errorf("replay: %d %v %s", again.status, again.header, again.body)
	}
	// The same request with its key in a header is the same request.
	header := a.doc(map[string]any{"amount": 900, "idempotency_key": nil})
	for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		if got := a.send(a.post(header, name, fmt.Sprint("key-", a.keys-1))); got.status != 201 || got.header.Get("Location") != "/v1/holds/"+h.ID.String() {
			t.Errorf("with %s: %d %s", name, got.status, got.body)
		}
	}
	a.refused("another request", a.post(strings.Replace(body, "900", "901", 1)), 422, "idempotency_key_reused", false)
	poor := a.doc(map[string]any{"amount": 101})
	a.refused("too poor", a.post(poor), 402, "insufficient_funds", true)
	a.refused("too poor again", a.post(poor), 402, "insufficient_funds", false)
	deposit := ask{"POST", "/v1/accounts/" + a.from.String() + "/deposits", a.service, `{"amount":50,"idempotency_key":"d"}`, nil}
	for i := range 2 {
		got := a.send(deposit)
		if got.status != 201 || (got.header.Get("Idempotent-Replayed") == "true") != (i == 1) {
			t.Errorf("deposit %d: %d %v %s", i, got.status, got.header, got.body)
		}
	}
	if got := a.refused("rich now, but remembered", a.post(poor), 402, "insufficient_funds", false); got.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("the remembered refusal says nothing of a replay: %v", got.header)
	}
	a.wantBalance(a.from, 150, 900)
	if got := a.send(ask{"DELETE", "/v1/holds/" + h.ID.String(), a.sender, "", nil}); got.status != 200 {
		t.Fatalf("cancel: %s", got.body)
	}
	// A replay shows the hold as it is now, also when its recipient is banned meanwhile.
	a.patch(a.to, "banned")
	if got := a.send(a.post(body)); got.status != 201 || got.Status != "CANCELLED" {
		t.Errorf("replay after the cancel: %d %s", got.status, got.body)
	}
}

// A request behind another one with its key waits, and is told so.
func TestKeyInFlight(t *testing.T) {
	t.Parallel()
	a := newAPI(t, Options{})
	tx, err := a.Set.Owner(0).Begin(a.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(a.ctx) }()
	if _, err := tx.Exec(a.ctx, `SELECT FROM accounts WHERE user_id = $1 FOR UPDATE`, [16]byte(a.from)); err != nil {
		t.Fatal(err)
	}
	body := a.doc(nil)
	first := make(chan reply, 1)
	go func() { first <- a.send(a.post(body)) }()
	testkit.Eventually(t, 10*time.Second, func() (bool, string) {
		var n int
		err := tx.QueryRow(a.ctx, `SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database OR l.database IS NULL
			JOIN pg_stat_activity s USING (pid) WHERE s.datname = current_database() AND NOT l.granted`).Scan(&n)
		return n > 0, fmt.Sprintf("nobody waits for the account, %v", err)
	})
	began := time.Now()
	got := a.send(a.post(body))
	if got.status != 409 || got.Code != "idempotency_in_flight" || got.header.Get("Retry-After") == "" || !got.Retry {
		t.Errorf("behind the first: %d %v %s", got.status, got.header, got.body)
	}
	if waited := time.Since(began); waited < 500*time.Millisecond {
		t.Errorf("it waited only %s", waited)
	}
	_ = tx.Rollback(a.ctx)
	if got := <-first; got.status != 201 {
		t.Errorf("the first: %d %s", got.status, got.body)
	}
	a.wantBalance(a.from, 995, 5)
}

func TestRateLimit(t *testing.T) {
	t.Parallel()
	a := newAPI(t, Options{Coordinator: func(c *coordinator.Config) { c.RatePerSecond = 8 }})
	list := ask{"GET", "/v1/holds?sender_id=" + a.from.String(), a.token(auth.MintOptions{Service: "greedy"}), "", nil}
	testkit.Eventually(t, 20*time.Second, func() (bool, string) {
		got := a.send(list)
		if got.header.Get("RateLimit-Limit") != "8" || got.header.Get("RateLimit-Remaining") == "" || got.header.Get("RateLimit-Reset") == "" {
			t.Errorf("headers %v", got.header)
		}
		if got.status == 200 {
			return false, "still served"
		}
		if got.status != 429 || got.Code != "rate_limited" || got.header.Get("Retry-After") == "" {
			t.Errorf("over the rate: %d %v %s", got.status, got.header, got.body)
		}
		return true, ""
	})
	if got := a.send(ask{"GET", "/v1/holds?sender_id=" + a.from.String(), a.sender, "", nil}); got.status != 200 {
		t.Errorf("another client pays for it: %d", got.status)
	}
}

// A commit whose answer was lost is neither success nor failure.
func TestOutcomeUnknown(t *testing.T) {
	t.Parallel()
	a := newAPI(t, Options{Cut: NewCut(branch.OpTry, true)})
	got := a.send(a.with("amount", 7))
	if got.status != 500 || got.Code != "outcome_unknown" || !got.Retry {
		t.Errorf("%d %s", got.status, got.body)
	}
}
