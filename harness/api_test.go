package harness

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/auth"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

// ask is one request as a stranger would send it. Headers are name and value
// in turn; a token of "" sends none.
type ask struct {
	method, path, token, body string
	headers                   []string
}

// reply is the answer with the fields of a problem document, when it is one.
type reply struct {
	status int
	header http.Header
	body   []byte
	Code   string         `json:"code"`
	Type   string         `json:"type"`
	Title  string         `json:"title"`
	Status any            `json:"status"` // a number in problems, a word in holds
	ID     string         `json:"request_id"`
	Retry  bool           `json:"retryable"`
	Hold   *holdfast.Hold `json:"hold"`
}

func (r *rig) send(a ask) reply {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.ctx, a.method, r.API.API+a.path, strings.NewReader(a.body))
	if err != nil {
		r.t.Fatal(err)
	}
	if a.body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if a.token != "" {
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	for i := 0; i+1 < len(a.headers); i += 2 {
		if req.Header.Set(a.headers[i], a.headers[i+1]); a.headers[i+1] == "" {
			req.Header.Del(a.headers[i])
		}
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatalf("%s %s: %v", a.method, a.path, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	out := reply{status: res.StatusCode, header: res.Header, body: body}
	_ = json.Unmarshal(body, &out)
	return out
}

// token mints one for a user (or a service, when sub is none) with the scopes
// of the public API, or those given.
func (r *rig) token(o auth.MintOptions) string {
	r.t.Helper()
	if o.Scopes == nil {
		o.Scopes = []string{auth.HoldsCreate, auth.HoldsRead, auth.HoldsCancel, auth.AccountsRead, auth.AccountsWrite}
	}
	if o.Issuer == "" {
		o.Issuer = "harness"
	}
	if o.Audience == "" {
		o.Audience = "holdfast"
	}
	token, err := auth.Mint(secret, o)
	if err != nil {
		r.t.Fatal(err)
	}
	return token
}

// sums are checksums over all that money and its history are; idempotency rows
// are apart, and so are refused withdrawals, which are remembered likewise.
func (r *rig) sums() (money, keys string) {
	r.t.Helper()
	const sum = `SELECT coalesce(md5(string_agg(x::text, '|' ORDER BY x::text)), '-') FROM (%s) x`
	for shard := range r.Set.N() {
		for _, table := range []string{"accounts", "attempts", "audit", "barrier", "dead_letters", "entries", "holds", "issuance",
			"cash WHERE refusal IS NULL", "idempotency", "cash WHERE refusal IS NOT NULL"} {
			var s string
			if err := r.Set.Owner(shard).QueryRow(r.ctx, fmt.Sprintf(sum, "SELECT * FROM "+table)).Scan(&s); err != nil {
				r.t.Fatal(err)
			}
			if table == "idempotency" || strings.HasSuffix(table, "NOT NULL") {
				keys += s
			} else {
				money += s
			}
		}
	}
	return money, keys
}

// refused sends a request that must be refused with the status and code, as a
// whole problem document, and must have changed nothing. remembered: its key is.
func (r *rig) refused(name string, a ask, status int, code string, remembered bool) reply {
	r.t.Helper()
	money, keys := r.sums()
	got := r.send(a)
	if got.status != status || got.Code != code {
		r.t.Errorf("%s: %d %s, want %d %s\n%s", name, got.status, got.Code, status, code, got.body)
	}
	if got.header.Get("Content-Type") != "application/problem+json" || got.Title == "" || got.Type == "" ||
		got.ID == "" || got.ID != got.header.Get("X-Request-Id") || got.Status != float64(status) {
		r.t.Errorf("%s: not a whole problem document: %v\n%s", name, got.header, got.body)
	}
	if bytes.Contains(got.body, []byte("FAILURE")) || bytes.Contains(got.body, []byte("ONGOING")) {
		r.t.Errorf("%s: a word that dtm looks for: %s", name, got.body)
	}
	if (status == 401) != (got.header.Get("WWW-Authenticate") != "") && code != "insufficient_scope" {
		r.t.Errorf("%s: WWW-Authenticate is %q", name, got.header.Get("WWW-Authenticate"))
	}
	nowMoney, nowKeys := r.sums()
	if nowMoney != money || (nowKeys != keys) != remembered {
		r.t.Errorf("%s: money changed %t, keys changed %t", name, nowMoney != money, nowKeys != keys)
	}
	return got
}

// api is a stack whose holds are driven by the test alone, with its users.
type api struct {
	*rig
	from, to, banned, closed holdfast.UserID
	service, sender          string // tokens
	keys                     int
}

func newAPI(t *testing.T, o Options) *api {
	t.Helper()
	o.DSNs, o.RedisURL, o.NoScheduler = testkit.Databases(t, 2), "redis://127.0.0.1:1/0", true
	a := &api{rig: start(t, o)}
	a.from, a.to, a.banned, a.closed = a.user(0, 1000), a.user(1, 0), a.user(1, 0), a.user(0, 0)
	for u, status := range map[holdfast.UserID]string{a.banned: "banned", a.closed: "closed"} {
		a.patch(u, status)
	}
	a.service = a.token(auth.MintOptions{Service: "test"})
	a.sender = a.token(auth.MintOptions{Sub: a.from.String()})
	return a
}

func (a *api) patch(u holdfast.UserID, status string) {
	a.t.Helper()
	got := a.send(ask{"PATCH", "/v1/accounts/" + u.String(), a.API.Token, `{"status":"` + status + `","reason":"test"}`, nil})
	if got.status != 200 {
		a.t.Fatalf("%s: %d %s", status, got.status, got.body)
	}
}

// doc is a good create with a new key, with the changes made; nil leaves out.
func (a *api) doc(changes map[string]any) string {
	a.keys++
	m := map[string]any{"sender_id": a.from, "recipient_id": a.to, "amount": 5, "unlock_in_seconds": 3600,
		"idempotency_key": fmt.Sprint("key-", a.keys)}
	maps.Copy(m, changes)
	maps.DeleteFunc(m, func(_ string, v any) bool { return v == nil })
	b, err := json.Marshal(m)
	if err != nil {
		a.t.Fatal(err)
	}
	return string(b)
}

// post is a create by the service.
func (a *api) post(body string, headers ...string) ask {
	return ask{"POST", "/v1/holds", a.service, body, headers}
}

func (a *api) with(field string, v any) ask { return a.post(a.doc(map[string]any{field: v})) }

func (a *api) created(q ask) holdfast.Hold {
	a.t.Helper()
	got := a.send(q)
	var h holdfast.Hold
	if err := json.Unmarshal(got.body, &h); err != nil || got.status != 201 || h.Status != holdfast.Pending ||
		got.header.Get("Location") != "/v1/holds/"+h.ID.String() || got.header.Get("Content-Type") != "application/json" {
		a.t.Fatalf("create: %d %v\n%s", got.status, got.header, got.body)
	}
	return h
}

// Every request that cannot be a hold: its code, and nothing changed.
func TestCreateRefusals(t *testing.T) {
	t.Parallel()
	a := newAPI(t, Options{})
	in := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339Nano) }
	at := func(v any) ask { return a.post(a.doc(map[string]any{"unlock_in_seconds": nil, "unlock_at": v})) }
	good := a.doc(nil)
	nobody := holdfast.UserID{15: 9}
	for _, row := range []struct {
		name   string
		ask    ask
		status int
		code   string
	}{
		{"no key", a.with("idempotency_key", nil), 400, "idempotency_key_missing"},
		{"an empty key", a.with("idempotency_key", ""), 400, "idempotency_key_missing"},
		{"body and header disagree", a.post(good, "Idempotency-Key", "other"), 400, "idempotency_key_conflict"},
		{"the headers disagree", a.post(a.doc(map[string]any{"idempotency_key": nil}), "Idempotency-Key", "a", "X-Idempotency-Key", "b"), 400, "idempotency_key_conflict"},
		{"a key of 256 characters", a.with("idempotency_key", strings.Repeat("k", 256)), 400, "idempotency_key_invalid"},
		{"unknown sender", a.with("sender_id", nobody), 422, "unknown_sender"},
		{"unknown recipient", a.with("recipient_id", nobody), 422, "unknown_recipient"},
		{"banned recipient", a.with("recipient_id", a.banned), 422, "recipient_not_payable"},
		{"closed recipient", a.with("recipient_id", a.closed), 422, "recipient_not_payable"},
		{"banned sender", a.with("sender_id", a.banned), 422, "sender_not_active"},
		{"self payment", a.with("recipient_id", a.from), 422, "self_payment"},
		{"amount 0", a.with("amount", 0), 422, "amount_out_of_range"},
		{"amount below 0", a.with("amount", -5), 422, "amount_out_of_range"},
		{"amount 2^53", a.with("amount", json.Number("9007199254740992")), 422, "amount_out_of_range"},
		{"amount beyond 64 bits", a.with("amount", json.Number("99999999999999999999999")), 422, "amount_out_of_range"},
		{"amount with a fraction", a.with("amount", json.Number("5.5")), 400, "invalid_json"},
		{"amount with an exponent", a.with("amount", json.Number("1e2")), 400, "invalid_json"},
		{"amount as text", a.with("amount", "5"), 400, "invalid_json"},
		{"amount null", a.with("amount", json.RawMessage("null")), 400, "invalid_json"},
		{"no amount", a.with("amount", nil), 422, "missing_field"},
		{"unlock in 0 s", a.with("unlock_in_seconds", 0), 422, "unlock_at_out_of_range"},
		{"unlock before now", a.with("unlock_in_seconds", -1), 422, "unlock_at_out_of_range"},
		{"unlock in 90 days and 1 s", a.with("unlock_in_seconds", 7_776_001), 422, "unlock_at_out_of_range"},
		{"unlock_at in the past", at(in(-time.Minute)), 422, "unlock_at_out_of_range"},
		{"unlock_at 91 days ahead", at(in(91 * 24 * time.Hour)), 422, "unlock_at_out_of_range"},
		{"unlock_at is no time", at("tomorrow"), 422, "invalid_field"},
		{"unlock_at without a zone", at("2031-01-01T00:00:00"), 422, "invalid_field"},
		{"unlock_at is a number", at(1893456000), 400, "invalid_json"},
		{"both unlock fields", a.with("unlock_at", in(time.Hour)), 422, "invalid_field"},
		{"neither unlock field", at(nil), 422, "missing_field"},
		{"unknown currency", a.with("currency", "XYZ"), 422, "unknown_currency"},
		{"a long reference", a.with("reference", strings.Repeat("é", 65)), 422, "reference_too_long"},
		{"a reference with U+0000", a.with("reference", "a\x00b"), 422, "invalid_field"},
		{"sender is no id", a.with("sender_id", "x"), 422, "invalid_id"},
		{"recipient is no id", a.with("recipient_id", a.to.String()+"0"), 422, "invalid_id"},
		{"recipient is the nil UUID", a.with("recipient_id", holdfast.UserID{}), 422, "invalid_id"},
		{"not JSON", a.post("sender_id=1"), 400, "invalid_json"},
		{"an array", a.post("[" + good + "]"), 400, "invalid_json"},
		{"nothing", a.post("", "Content-Type", "application/json"), 400, "invalid_json"},
		{"half a document", a.post(good[:len(good)-1]), 400, "invalid_json"},
		{"text after it", a.post(good + "{}"), 400, "invalid_json"},
		{"bad UTF-8", a.post(strings.Replace(good, "key-", "key-\xff", 1)), 400, "invalid_json"},
		{"an unknown field", a.with("amuont", 5), 400, "unknown_field"},
		{"a field in the wrong case", a.post(strings.Replace(good, `"amount"`, `"Amount"`, 1)), 400, "unknown_field"},
		{"a field twice", a.post(`{"amount":6,` + good[1:]), 400, "duplicate_field"},
		{"a field twice, once escaped", a.post(`{"\u0061mount":6,` + good[1:]), 400, "duplicate_field"},
		{"over 16 KiB", a.post(good[:len(good)-1] + strings.Repeat(" ", 16<<10) + "}"), 413, "body_too_large"},
		{"text/plain", a.post(good, "Content-Type", "text/plain"), 415, "unsupported_media_type"},
		{"no media type", a.post(good, "Content-Type", ""), 415, "unsupported_media_type"},
		{"another character set", a.post(good, "Content-Type", "application/json; charset=latin1"), 415, "unsupported_media_type"},
		{"a content encoding", a.post(good, "Content-Encoding", "gzip"), 415, "unsupported_media_type"},
	} {
		a.refused(row.name, row.ask, row.status, row.code, false)
	}
	a.wantBalance(a.from, 1000, 0)
	a.created(a.post(good)) // whose key no refusal has taken
}

// Who may ask for what.
func TestTokens(t *testing.T) {
	t.Parallel()
	a := newAPI(t, Options{})
	user := func(o auth.MintOptions) string { o.Sub = a.from.String(); return a.token(o) }
	h := a.created(ask{"POST", "/v1/holds", a.sender, a.doc(nil), nil})
	hold, account := "/v1/holds/"+h.ID.String(), "/v1/accounts/"+a.from.String()
	create := func(token string) ask { return ask{"POST", "/v1/holds", token, a.doc(nil), nil} }
	expired := user(auth.MintOptions{Now: time.Now().Add(-2 * time.Hour)})
	recipient := a.token(auth.MintOptions{Sub: a.to.String()})
	stranger := a.token(auth.MintOptions{Sub: a.banned.String()})
	reader := user(auth.MintOptions{Scopes: []string{auth.HoldsRead, auth.AccountsRead}})
	person := a.token(auth.MintOptions{Service: "s", Scopes: []string{auth.AdminRead}})
	parts := strings.Split(a.sender, ".")
	for _, row := range []struct {
		name   string
		ask    ask
		status int
		code   string
	}{
		{"no token", create(""), 401, "unauthenticated"},
		{"no token for a read", ask{"GET", hold, "", "", nil}, 401, "unauthenticated"},
		{"not a token", create("abc"), 401, "unauthenticated"},
		{"expired", create(expired), 401, "unauthenticated"},
		{"another issuer", create(user(auth.MintOptions{Issuer: "else"})), 401, "unauthenticated"},
		{"another audience", create(user(auth.MintOptions{Audience: "else"})), 401, "unauthenticated"},
		{"a changed signature", create(parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2]))), 401, "unauthenticated"},
		{"no algorithm", create("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0." + parts[1] + "."), 401, "unauthenticated"},
		{"another scheme", ask{"GET", hold, "", "", []string{"Authorization", "Basic " + a.sender}}, 401, "unauthenticated"},
		{"create without its scope", create(reader), 403, "insufficient_scope"},
		{"cancel without its scope", ask{"DELETE", hold, reader, "", nil}, 403, "insufficient_scope"},
		{"read without its scope", ask{"GET", hold, person, "", nil}, 403, "insufficient_scope"},
		{"open without its scope", ask{"PUT", account, reader, "", nil}, 403, "insufficient_scope"},
		{"ban without its scope", ask{"PATCH", account, a.service, `{"status":"banned","reason":"x"}`, nil}, 403, "insufficient_scope"},
		{"spending for another", create(recipient), 403, "forbidden_sender"},
		{"listing another's holds", ask{"GET", "/v1/holds?sender_id=" + a.from.String(), recipient, "", nil}, 403, "forbidden_sender"},
		{"another's account", ask{"GET", account, recipient, "", nil}, 403, "forbidden_account"},
		{"another's statement", ask{"GET", account + "/entries", recipient, "", nil}, 403, "forbidden_account"},
		{"a deposit for another", ask{"POST", account + "/deposits", recipient, `{"amount":1,"idempotency_key":"x"}`, nil}, 403, "forbidden_account"},
		{"the recipient cancels", ask{"DELETE", hold, recipient, "", nil}, 403, "forbidden_cancel"},
		{"a stranger cancels", ask{"DELETE", hold, stranger, "", nil}, 404, "hold_not_found"},
		{"a stranger reads", ask{"GET", hold, stranger, "", nil}, 404, "hold_not_found"},
	} {
		a.refused(row.name, row.ask, row.status, row.code, false)
	}
	for name, token := range map[string]string{"sender": a.sender, "recipient": recipient, "service": a.service, "reader": reader} {
		if got := a.send(ask{"GET", hold, token, "", nil}); got.status != 200 {
			t.Errorf("the %s reads the hold: %d %s", name, got.status, got.body)
		}
	}
	for sent, kept := range map[string]bool{"req-1.A_b": true, "with space": false, strings.Repeat("x", 65): false} {
		got := a.send(ask{"GET", hold, a.sender, "", []string{"X-Request-Id", sent}}).header.Get("X-Request-Id")
		if got == "" || (got == sent) != kept {
			t.Errorf("request id %q came back as %q", sent, got)
		}
	}
}
