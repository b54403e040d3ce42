package harness

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/coordinator/payment"
	"github.com/holdfast-escrow/holdfast/internal/paysim"
)

// DELETE in every state of the hold.
func TestDelete(t *testing.T) {
	t.Parallel()
	// The payment that hangs must still hang when the last table is compared.
	a := newAPI(t, Options{Payment: func(p *payment.Config) { p.Timeout = 20 * time.Second }})
	del := func(id string) ask { return ask{"DELETE", "/v1/holds/" + id, a.sender, "", nil} }
	pending := a.created(a.with("amount", 10))
	for range 2 {
		if got := a.send(del(pending.ID.String())); got.status != 200 || got.Status != "CANCELLED" {
			t.Errorf("cancel: %d %s", got.status, got.body)
		}
		a.wantBalance(a.from, 1000, 0)
	}
	refused := a.user(1, 0)
	a.faults(paysim.Faults{Banned: []holdfast.UserID{refused}})
	soon := func(to holdfast.UserID) holdfast.Hold {
		at := time.Now().Add(300 * time.Millisecond).UTC().Format(time.RFC3339Nano)
		return a.created(a.post(a.doc(map[string]any{"unlock_in_seconds": nil, "unlock_at": at, "recipient_id": to})))
	}
	matured, executed, failed := soon(a.to), soon(a.to), soon(refused)
	<-time.After(time.Until(failed.UnlockAt) + 5*time.Millisecond)
	a.Coord.Drive(a.ctx, 0, []holdfast.HoldID{executed.ID, failed.ID})
	a.want(executed.ID, holdfast.Executed)
	a.want(failed.ID, holdfast.Failed)
	a.faults(paysim.Faults{Mode: paysim.ModeHang})
	executing := soon(a.to)
	<-time.After(time.Until(executing.UnlockAt) + 5*time.Millisecond)
	a.Coord.Drive(a.ctx, 0, []holdfast.HoldID{executing.ID})
	for _, row := range []struct {
		h      holdfast.Hold
		code   string
		status holdfast.Status
	}{{matured, "hold_matured", holdfast.Pending}, {executing, "hold_matured", holdfast.Executing},
		{executed, "hold_already_executed", holdfast.Executed}, {failed, "hold_failed", holdfast.Failed}} {
		got := a.send(del(row.h.ID.String()))
		if got.status != 409 || got.Code != row.code || got.Hold == nil || got.Hold.ID != row.h.ID || got.Hold.Status != row.status {
			t.Errorf("%s: %d %s", row.status, got.status, got.body)
		}
	}
	a.refused("matured", del(matured.ID.String()), 409, "hold_matured", false)
	a.refused("no such hold", del(holdfast.NewHoldID(time.Now().UnixMilli(), 1, 5).String()), 404, "hold_not_found", false)
	a.refused("an id of a day without a partition", del(holdfast.NewHoldID(5, 1, 5).String()), 404, "hold_not_found", false)
	a.refused("another kind of UUID", del(a.from.String()[:14]+"4"+a.from.String()[15:]), 404, "hold_not_found", false)
	a.refused("no id", del("x"), 422, "invalid_id", false)
	a.refused("no id for a read", ask{"GET", "/v1/holds/%2e%2e", a.sender, "", nil}, 422, "invalid_id", false)
	a.refused("another method", ask{"PUT", "/v1/holds/" + matured.ID.String(), a.sender, "", nil}, 405, "method_not_allowed", false)
	a.refused("another path", ask{"GET", "/v1/hold", a.sender, "", nil}, 404, "not_found", false)
	a.faults(paysim.Faults{})
}

type listed struct {
	Holds []holdfast.Hold `json:"holds"`
	Next  string          `json:"next_page_token"`
}

// list reads one page.
func (a *api) list(query string) (l listed) {
	a.t.Helper()
	got := a.send(ask{"GET", "/v1/holds?sender_id=" + a.from.String() + query, a.sender, "", nil})
	if err := json.Unmarshal(got.body, &l); err != nil || got.status != 200 {
		a.t.Fatalf("list %s: %d %s", query, got.status, got.body)
	}
	return l
}

func TestList(t *testing.T) {
	t.Parallel()
	a := newAPI(t, Options{})
	var ids []holdfast.HoldID
	for i := range 7 {
		ids = append(ids, a.created(a.post(a.doc(map[string]any{"unlock_in_seconds": 5000 - 700*i}))).ID)
	}
	slices.Reverse(ids) // newest first, whatever their maturity
	if got := a.send(ask{"DELETE", "/v1/holds/" + ids[2].String(), a.sender, "", nil}); got.status != 200 {
		t.Fatal(got.status)
	}
	var paged []holdfast.HoldID
	for token := ""; ; {
		l := a.list("&page_size=3" + token)
		for _, h := range l.Holds {
			paged = append(paged, h.ID)
		}
		if len(l.Holds) > 3 || l.Next == "" {
			break
		}
		token = "&page_token=" + url.QueryEscape(l.Next)
	}
	if !slices.Equal(paged, ids) {
		t.Errorf("in pages:\n%v, want\n%v", paged, ids)
	}
	if l := a.list("&status=CANCELLED"); len(l.Holds) != 1 || l.Holds[0].ID != ids[2] {
		t.Errorf("cancelled: %+v", l)
	}
	if l := a.list("&status=PENDING"); len(l.Holds) != 6 {
		t.Errorf("pending: %+v", l)
	}
	key := fmt.Sprint("&idempotency_key=key-", a.keys)
	if l := a.list(key); len(l.Holds) != 1 || l.Holds[0].ID != ids[0] {
		t.Errorf("by key: %+v", l)
	}
	if l := a.list("&idempotency_key=none"); l.Holds == nil || len(l.Holds) != 0 {
		t.Errorf("by a key nobody used: %+v", l)
	}
	get := func(query string) ask { return ask{"GET", "/v1/holds" + query, a.sender, "", nil} }
	sender, next := "?sender_id="+a.from.String(), url.QueryEscape(a.list("&page_size=3").Next)
	for _, row := range []struct {
		name   string
		ask    ask
		status int
		code   string
	}{
		{"no sender", get(""), 422, "missing_field"},
		{"sender is no id", get("?sender_id=x"), 422, "invalid_id"},
		{"page_size 0", get(sender + "&page_size=0"), 422, "invalid_field"},
		{"page_size 201", get(sender + "&page_size=201"), 422, "invalid_field"},
		{"a token of another list", get(sender + "&status=PENDING&page_token=" + next), 422, "invalid_page_token"},
		{"a token of nobody's", get(sender + "&page_token=abc"), 422, "invalid_page_token"},
		{"an unknown status", get(sender + "&status=pending"), 422, "invalid_field"},
		{"an unknown parameter", get(sender + "&recipient=x"), 400, "unknown_field"},
		{"a parameter twice", get(sender + "&page_size=1&page_size=2"), 400, "duplicate_field"},
	} {
		a.refused(row.name, row.ask, row.status, row.code, false)
	}
}

func TestBatchCreate(t *testing.T) {
	t.Parallel()
	a := newAPI(t, Options{})
	batch := func(docs ...string) ask {
		return ask{"POST", "/v1/holds:batchCreate", a.service, `{"holds":[` + strings.Join(docs, ",") + `]}`, nil}
	}
	first := a.doc(map[string]any{"amount": 600})
	other := a.user(1, 100)
	docs := []string{first, a.doc(map[string]any{"amount": 500}), first, strings.Replace(first, "600", "601", 1),
		a.doc(map[string]any{"amount": 0}), a.doc(map[string]any{"sender_id": other, "recipient_id": a.banned}),
		a.doc(map[string]any{"sender_id": other, "recipient_id": a.from, "amount": 100}), `{"amuont":1}`, `7`,
		a.doc(map[string]any{"amount": 400})}
	got := a.send(batch(docs...))
	var answer struct {
		Atomic  *bool `json:"atomic"`
		Results []struct {
			Status  int            `json:"status"`
			Hold    *holdfast.Hold `json:"hold"`
			Problem *struct {
				Code string `json:"code"`
			} `json:"problem"`
		} `json:"results"`
	}
	if err := json.Unmarshal(got.body, &answer); err != nil || got.status != 200 || answer.Atomic == nil || *answer.Atomic {
		t.Fatalf("batch: %d %s", got.status, got.body)
	}
	want := []string{"201", "402 insufficient_funds", "201", "422 idempotency_key_reused", "422 amount_out_of_range",
		"422 recipient_not_payable", "201", "400 unknown_field", "400 invalid_json", "201"}
	var codes []string
	for _, r := range answer.Results {
		s := fmt.Sprint(r.Status)
		if r.Problem != nil {
			s += " " + r.Problem.Code
		}
		if (r.Hold == nil) == (r.Problem == nil) {
			t.Errorf("not exactly one of hold and problem: %+v", r)
		}
		codes = append(codes, s)
	}
	if !slices.Equal(codes, want) {
		t.Errorf("results\n%v, want\n%v", codes, want)
	}
	a.wantBalance(a.from, 0, 1000)
	a.wantBalance(other, 0, 100)
	a.refused("an empty batch", batch(), 422, "invalid_field", false)
	a.refused("101 items", batch(slices.Repeat([]string{first}, 101)...), 422, "batch_too_large", false)
	a.refused("no list", ask{"POST", "/v1/holds:batchCreate", a.service, `{}`, nil}, 422, "missing_field", false)
	a.refused("not JSON", ask{"POST", "/v1/holds:batchCreate", a.service, `{"holds":[`, nil}, 400, "invalid_json", false)
	q := batch(first)
	q.headers = []string{"Idempotency-Key", "k"}
	a.refused("a key for all", q, 400, "idempotency_key_conflict", false)
}
