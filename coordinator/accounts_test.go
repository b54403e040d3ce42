package coordinator

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

func anAccount(s holdfast.AccountStatus) holdfast.Account {
	return holdfast.Account{User: alice, Currency: "RBX", Status: s, Available: 5, OpenedAt: unlock}
}

func TestOpenAccount(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	path := "/v1/accounts/" + alice.String()
	a.shards.on(branch.OpOpen, says(branch.AccountAnswer{Code: "ok", Created: true, Account: anAccount(holdfast.AccountOpen)}))
	r := a.want(a.send(http.MethodPut, path, ""), 201, "")
	if r.Header().Get("Location") != path || r.doc["status"] != "open" || r.doc["available"] != 5.0 {
		t.Errorf("%v %s", r.Header(), r.Body)
	}
	a.want(a.send(http.MethodPut, path, `{}`), 201, "")
	a.shards.on(branch.OpOpen, says(branch.AccountAnswer{Code: "ok", Account: anAccount(holdfast.AccountOpen)}))
	a.want(a.send(http.MethodPut, path, `{"currency":"RBX"}`), 200, "")
	a.want(a.send(http.MethodPut, path, `{"currency":"EUR"}`), 422, "unknown_currency")
	a.want(a.send(http.MethodPut, path, `{"currency":1}`), 400, "invalid_json")
	a.want(a.send(http.MethodPut, path, `{}`, "Content-Type", "text/plain"), 415, "unsupported_media_type")
	a.want(a.send(http.MethodPut, "/v1/accounts/x", ""), 422, "invalid_id")
	a.want(a.send(http.MethodPut, path, "", "Authorization", "Bearer "+a.user(bob)), 403, "forbidden_account")
	a.shards.on(branch.OpOpen, breaks(holdfast.ErrShardUnavailable))
	a.want(a.send(http.MethodPut, path, ""), 503, "shard_unavailable")
	a.shards.on(branch.OpOpen, breaks(errors.New("reset")))
	a.want(a.send(http.MethodPut, path, ""), 500, "outcome_unknown")
}

func TestReadAccount(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	path := "/v1/accounts/" + alice.String()
	a.shards.on(branch.OpAccount, says(branch.AccountAnswer{Code: "ok", Account: anAccount(holdfast.AccountBanned)}))
	r := a.want(a.send(http.MethodGet, path+"?currency=RBX", "", "Authorization", "Bearer "+a.user(alice)), 200, "")
	if r.doc["status"] != "banned" || r.doc["held"] != 0.0 || r.doc["user_id"] != alice.String() {
		t.Errorf("%s", r.Body)
	}
	a.want(a.send(http.MethodGet, path, "", "Authorization", "Bearer "+a.user(bob)), 403, "forbidden_account")
	a.want(a.send(http.MethodGet, path+"?currency=X", ""), 422, "unknown_currency")
	a.want(a.send(http.MethodGet, path+"?x=1", ""), 400, "unknown_field")
	a.shards.on(branch.OpAccount, says(branch.AccountAnswer{Code: branch.CodeUnknownAccount}))
	a.want(a.send(http.MethodGet, path, ""), 404, "account_not_found")
	a.shards.on(branch.OpAccount, breaks(errors.New("reset")))
	a.want(a.send(http.MethodGet, path, ""), 503, "shard_unavailable")
}

func TestPatchAccount(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	path := "/v1/accounts/" + alice.String()
	var got branch.AccountRequest
	code := branch.CodeOK
	a.shards.on(branch.OpSetStatus, func(_ int, in any) (any, error) {
		got = in.(branch.AccountRequest)
		return branch.AccountAnswer{Code: code, Account: anAccount(got.Status)}, nil
	})
	r := a.want(a.send(http.MethodPatch, path, `{"status":"banned","reason":"fraud"}`), 200, "")
	if got.Status != holdfast.AccountBanned || got.Actor != "shop" || got.Reason != "fraud" || r.doc["status"] != "banned" {
		t.Errorf("asked %+v, got %s", got, r.Body)
	}
	a.want(a.send(http.MethodPatch, path, `{"status":"frozen"}`), 422, "invalid_field")
	a.want(a.send(http.MethodPatch, path, `{"status":""}`), 422, "invalid_field")
	a.want(a.send(http.MethodPatch, path, `{}`), 422, "missing_field")
	a.want(a.send(http.MethodPatch, path, `{"status":"open","reason":"`+strings.Repeat("x", 501)+`"}`), 422, "invalid_field")
	a.want(a.send(http.MethodPatch, path, `{"status":"open"}`, "Authorization", "Bearer "+a.user(bob)), 403, "forbidden_account")
	for c, status := range map[branch.Code]int{branch.CodeUnknownAccount: 404, branch.CodeAccountNotEmpty: 409, branch.CodeAccountClosed: 409} {
		code = c
		a.want(a.send(http.MethodPatch, path, `{"status":"closed"}`), status, string(c))
	}
}

func TestCash(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	path := "/v1/accounts/" + alice.String()
	hashes := map[[32]byte]int64{}
	res := branch.CashResult{Code: "ok", Ref: aHold(1).ID, At: unlock, Account: anAccount(holdfast.AccountOpen)}
	a.shards.on(branch.OpCash, each(func(i branch.CashItem) branch.CashResult {
		hashes[i.RequestHash] = i.Amount
		return res
	}))
	const doc = `{"amount":7,"currency":"RBX","idempotency_key":"k"}`
	r := a.want(a.send(http.MethodPost, path+"/deposits", doc), 201, "")
	if r.doc["kind"] != "deposit" || r.doc["amount"] != 7.0 || r.doc["movement_id"] != aHold(1).ID.String() || r.doc["account"] == nil {
		t.Errorf("%s", r.Body)
	}
	r = a.want(a.send(http.MethodPost, path+"/withdrawals", `{"amount":7}`, "Idempotency-Key", "k"), 201, "")
	if r.doc["kind"] != "withdraw" || r.doc["amount"] != 7.0 {
		t.Errorf("%s", r.Body)
	}
	signs := map[int64]bool{}
	for _, n := range hashes {
		signs[n] = true
	}
	if len(hashes) != 2 || !signs[7] || !signs[-7] {
		t.Errorf("a deposit and a withdrawal were sent as %v", hashes)
	}
	res = branch.CashResult{Code: branch.CodeReplay, Ref: aHold(1).ID}
	if r := a.want(a.send(http.MethodPost, path+"/deposits", doc), 201, ""); r.Header().Get("Idempotent-Replayed") != "true" {
		t.Errorf("headers %v", r.Header())
	}
	res.Refusal = branch.CodeInsufficientFunds
	if r := a.want(a.send(http.MethodPost, path+"/withdrawals", doc), 402, "insufficient_funds"); r.Header().Get("Idempotent-Replayed") != "true" {
		t.Errorf("headers %v", r.Header())
	}
	for code, status := range map[branch.Code]int{branch.CodeKeyReused: 422, branch.CodeUnknownAccount: 404, branch.CodeAccountClosed: 409,
		branch.CodeSenderNotActive: 422, branch.CodeInsufficientFunds: 402, branch.CodeIssuanceCap: 422,
		branch.CodeShardUnavailable: 503, branch.CodeOverloaded: 503, branch.CodeOutcomeUnknown: 500} {
		res = branch.CashResult{Code: code}
		a.want(a.send(http.MethodPost, path+"/withdrawals", doc), status, string(code))
	}
	for body, want := range map[string]struct {
		status int
		code   string
	}{
		`{"amount":0,"idempotency_key":"k"}`:                       {422, "amount_out_of_range"},
		`{"amount":1.5,"idempotency_key":"k"}`:                     {400, "invalid_json"},
		`{"idempotency_key":"k"}`:                                  {422, "missing_field"},
		`{"amount":1}`:                                             {400, "idempotency_key_missing"},
		`{"amount":1,"idempotency_key":"k","x":1}`:                 {400, "unknown_field"},
		`{"amount":1,"idempotency_key":"k","currency":"x"}`:        {422, "unknown_currency"},
		`{"amount":1,"idempotency_key":"k","idempotency_key":"k"}`: {400, "duplicate_field"},
	} {
		a.want(a.send(http.MethodPost, path+"/deposits", body), want.status, want.code)
	}
	a.want(a.send(http.MethodPost, path+"/deposits", doc, "Authorization", "Bearer "+a.user(bob)), 403, "forbidden_account")
}

func TestStatement(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	path := "/v1/accounts/" + alice.String() + "/entries"
	var got branch.AccountRequest
	a.shards.on(branch.OpStatement, func(_ int, in any) (any, error) {
		got = in.(branch.AccountRequest)
		e := holdfast.Entry{PostedAt: unlock.In(time.FixedZone("x", 3600)), Movement: holdfast.MoveDeposit, Book: holdfast.BookAvailable, User: alice}
		return branch.StatementAnswer{Code: "ok", Entries: []holdfast.Entry{e}, Next: 41}, nil
	})
	r := a.want(a.send(http.MethodGet, path+"?page_size=1", ""), 200, "")
	if !strings.Contains(r.Body.String(), `"posted_at":"2030-01-01T00:00:00Z"`) || got.Limit != 1 || got.Before != 0 {
		t.Errorf("asked %+v, got %s", got, r.Body)
	}
	token, _ := r.doc["next_page_token"].(string)
	a.want(a.send(http.MethodGet, path+"?page_token="+token, ""), 200, "")
	if got.Before != 41 {
		t.Errorf("asked %+v", got)
	}
	a.want(a.send(http.MethodGet, strings.Replace(path, alice.String(), bob.String(), 1)+"?page_token="+token, ""), 422, "invalid_page_token")
	a.want(a.send(http.MethodGet, path, "", "Authorization", "Bearer "+a.user(bob)), 403, "forbidden_account")
}
