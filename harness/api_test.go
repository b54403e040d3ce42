package harness

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/coordinator"
	"github.com/holdfast-escrow/holdfast/coordinator/payment"
	"github.com/holdfast-escrow/holdfast/internal/auth"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/paysim"
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
