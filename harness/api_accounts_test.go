package harness

import (
	"encoding/json"
	"net/url"
	"slices"
	"testing"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/auth"
)

func TestAccounts(t *testing.T) {
	t.Parallel()
	a := newAPI(t, Options{})
	u := holdfast.UserID{1, 2, 3, 15: 4}
	path := "/v1/accounts/" + u.String()
	token := a.token(auth.MintOptions{Sub: u.String()})
	for i, status := range []int{201, 200} {
		got := a.send(ask{"PUT", path, token, "", nil})
		if got.status != status || (got.header.Get("Location") == path) != (i == 0) {
			t.Errorf("open %d: %d %v %s", i, got.status, got.header, got.body)
		}
	}
	cash := func(kind, body string) ask { return ask{"POST", path + "/" + kind, token, body, nil} }
	for i, body := range []string{`{"amount":100,"currency":"RBX","idempotency_key":"a"}`, `{"amount":11,"idempotency_key":"b"}`} {
		if got := a.send(cash("deposits", body)); got.status != 201 {
			t.Errorf("deposit %d: %d %s", i, got.status, got.body)
		}
	}
	for i := range 2 {
		got := a.send(cash("withdrawals", `{"amount":30,"idempotency_key":"a"}`))
		if got.status != 201 || (got.header.Get("Idempotent-Replayed") == "true") != (i == 1) {
			t.Errorf("withdrawal %d: %d %v %s", i, got.status, got.header, got.body)
		}
	}
	var account holdfast.Account
	if got := a.send(ask{"GET", path, token, "", nil}); json.Unmarshal(got.body, &account) != nil || account.Available != 81 || account.Status != holdfast.AccountOpen {
		t.Errorf("account: %d %s", got.status, got.body)
	}
	a.statement(path, token, []int64{81, 111, 100})
	admin := func(body string) ask { return ask{"PATCH", path, a.API.Token, body, nil} }
	for _, row := range []struct {
		name   string
		ask    ask
		status int
		code   string
		kept   bool
	}{
		{"another amount under the key", cash("deposits", `{"amount":12,"idempotency_key":"a"}`), 422, "idempotency_key_reused", false},
		{"a deposit without a key", cash("deposits", `{"amount":12}`), 400, "idempotency_key_missing", false},
		{"a deposit of nothing", cash("deposits", `{"amount":0,"idempotency_key":"c"}`), 422, "amount_out_of_range", false},
		{"an unknown field", cash("deposits", `{"amount":1,"idempotency_key":"c","x":1}`), 400, "unknown_field", false},
		{"an unknown currency", cash("deposits", `{"amount":1,"currency":"X","idempotency_key":"c"}`), 422, "unknown_currency", false},
		{"too much out", cash("withdrawals", `{"amount":82,"idempotency_key":"c"}`), 402, "insufficient_funds", true},
		{"too much out again", cash("withdrawals", `{"amount":82,"idempotency_key":"c"}`), 402, "insufficient_funds", false},
		{"no account", ask{"GET", "/v1/accounts/" + (holdfast.UserID{15: 7}).String(), a.service, "", nil}, 404, "account_not_found", false},
		{"no account's statement", ask{"GET", "/v1/accounts/" + (holdfast.UserID{15: 7}).String() + "/entries", a.service, "", nil}, 404, "account_not_found", false},
		{"a deposit to no account", ask{"POST", "/v1/accounts/" + (holdfast.UserID{15: 7}).String() + "/deposits", a.service,
			`{"amount":1,"idempotency_key":"x"}`, nil}, 404, "account_not_found", false},
		{"no id", ask{"GET", "/v1/accounts/me", a.service, "", nil}, 422, "invalid_id", false},
		{"closing with coins in it", admin(`{"status":"closed","reason":"x"}`), 409, "account_not_empty", false},
		{"an unknown status", admin(`{"status":"frozen","reason":"x"}`), 422, "invalid_field", false},
		{"no status", admin(`{"reason":"x"}`), 422, "missing_field", false},
		{"an unknown page token", ask{"GET", path + "/entries?page_token=x", token, "", nil}, 422, "invalid_page_token", false},
	} {
		a.refused(row.name, row.ask, row.status, row.code, row.kept)
	}
	a.patch(u, "banned")
	a.refused("a banned account gives nothing", cash("withdrawals", `{"amount":1,"idempotency_key":"z"}`), 422, "sender_not_active", false)
	if got := a.send(cash("deposits", `{"amount":1,"idempotency_key":"z"}`)); got.status != 201 {
		t.Errorf("a banned account takes: %d %s", got.status, got.body)
	}
	a.patch(u, "open")
	if got := a.send(cash("withdrawals", `{"amount":82,"idempotency_key":"all"}`)); got.status != 201 {
		t.Errorf("all out: %d %s", got.status, got.body)
	}
	a.patch(u, "closed")
	a.refused("closed for ever", admin(`{"status":"open","reason":"x"}`), 409, "account_closed", false)
	a.refused("a closed account", cash("deposits", `{"amount":1,"idempotency_key":"y"}`), 409, "account_closed", false)
}

// statement reads an account's entries in pages of one, newest first, and
// compares the balances after each.
func (a *api) statement(path, token string, want []int64) {
	a.t.Helper()
	var after []int64
	for next := ""; ; {
		got := a.send(ask{"GET", path + "/entries?page_size=1" + next, token, "", nil})
		var page struct {
			Entries []holdfast.Entry `json:"entries"`
			Next    string           `json:"next_page_token"`
		}
		if err := json.Unmarshal(got.body, &page); err != nil || got.status != 200 || len(page.Entries) > 1 {
			a.t.Fatalf("entries: %d %s", got.status, got.body)
		}
		for _, e := range page.Entries {
			after = append(after, e.BalanceAfter)
		}
		if page.Next == "" {
			break
		}
		next = "&page_token=" + url.QueryEscape(page.Next)
	}
	if !slices.Equal(after, want) {
		a.t.Errorf("balances after each entry %v, want %v", after, want)
	}
}
