package coordinator

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// body is a create that is accepted, with changes: pairs of field and raw JSON,
// where an empty value leaves the field out.
func body(changes ...string) string {
	fields := []string{"sender_id", `"` + alice.String() + `"`, "recipient_id", `"` + bob.String() + `"`,
		"amount", "100", "unlock_in_seconds", "60", "idempotency_key", `"k1"`}
	for i := 0; i < len(changes); i += 2 {
		found := false
		for j := 0; j < len(fields); j += 2 {
			if fields[j] == changes[i] {
				fields[j+1], found = changes[i+1], true
			}
		}
		if !found {
			fields = append(fields, changes[i], changes[i+1])
		}
	}
	var parts []string
	for j := 0; j < len(fields); j += 2 {
		if fields[j+1] != "" {
			parts = append(parts, fmt.Sprintf("%q:%s", fields[j], fields[j+1]))
		}
	}
	return "{" + strings.Join(parts, ",") + "}"
}

func quoted(s string) string { return `"` + s + `"` }

// TestCreateRefusedBeforeShards: what is wrong in itself never reaches a shard.
func TestCreateRefusedBeforeShards(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("é", 256)
	for name, c := range map[string]struct {
		body    string
		status  int
		code    string
		headers []string
	}{
		"no json":                {`nonsense`, 400, "invalid_json", nil},
		"array":                  {`[]`, 400, "invalid_json", nil},
		"trailing text":          {body() + "x", 400, "invalid_json", nil},
		"bad utf-8":              {body("reference", "\"\xff\""), 400, "invalid_json", nil},
		"lone surrogate":         {body("reference", `"\ud800"`), 400, "invalid_json", nil},
		"unknown field":          {body("depends_on", `"x"`), 400, "unknown_field", nil},
		"unknown field echoes":   {body("<b>ONGOING", `1`), 400, "unknown_field", nil},
		"unknown field FAILURE":  {body("FAILURE", `1`), 400, "unknown_field", nil},
		"wrongly cased field":    {body("Amount", `1`), 400, "unknown_field", nil},
		"duplicate field":        {strings.TrimSuffix(body(), "}") + `,"amount":100}`, 400, "duplicate_field", nil},
		"duplicate, nested":      {body("amount", `{"a":1,"a":2}`), 400, "duplicate_field", nil},
		"amount text":            {body("amount", `"5"`), 400, "invalid_json", nil},
		"amount fraction":        {body("amount", `1.0`), 400, "invalid_json", nil},
		"amount exponent":        {body("amount", `1e3`), 400, "invalid_json", nil},
		"amount null":            {body("amount", `null`), 400, "invalid_json", nil},
		"amount zero":            {body("amount", `0`), 422, "amount_out_of_range", nil},
		"amount negative":        {body("amount", `-1`), 422, "amount_out_of_range", nil},
		"amount above 2^53-1":    {body("amount", `9007199254740992`), 422, "amount_out_of_range", nil},
		"amount of many digits":  {body("amount", strings.Repeat("9", 400)), 422, "amount_out_of_range", nil},
		"amount missing":         {body("amount", ""), 422, "missing_field", nil},
		"sender malformed":       {body("sender_id", `"x"`), 422, "invalid_id", nil},
		"sender nil":             {body("sender_id", quoted(holdfast.UserID{}.String())), 422, "invalid_id", nil},
		"sender missing":         {body("sender_id", ""), 422, "missing_field", nil},
		"recipient malformed":    {body("recipient_id", `"{0190c1d2-1111-7000-8000-00000000000}"`), 422, "invalid_id", nil},
		"recipient number":       {body("recipient_id", `7`), 400, "invalid_json", nil},
		"self payment":           {body("recipient_id", quoted(strings.ToUpper(alice.String()))), 422, "self_payment", nil},
		"no unlock":              {body("unlock_in_seconds", ""), 422, "missing_field", nil},
		"both unlocks":           {body("unlock_at", `"2030-01-01T00:00:00Z"`), 422, "invalid_field", nil},
		"unlock in 0":            {body("unlock_in_seconds", "0"), 422, "unlock_at_out_of_range", nil},
		"unlock in 90 d + 1 s":   {body("unlock_in_seconds", "7776001"), 422, "unlock_at_out_of_range", nil},
		"unlock in aeons":        {body("unlock_in_seconds", strings.Repeat("9", 30)), 422, "unlock_at_out_of_range", nil},
		"unlock in 1.5":          {body("unlock_in_seconds", "1.5"), 400, "invalid_json", nil},
		"unlock at 1970":         {body("unlock_in_seconds", "", "unlock_at", `"1970-01-01T00:00:00Z"`), 422, "unlock_at_out_of_range", nil},
		"unlock at no time":      {body("unlock_in_seconds", "", "unlock_at", `"tomorrow"`), 422, "invalid_field", nil},
		"unlock at comma":        {body("unlock_in_seconds", "", "unlock_at", `"2030-01-01T00:00:00,5Z"`), 422, "invalid_field", nil},
		"unlock at number":       {body("unlock_in_seconds", "", "unlock_at", `1900000000`), 400, "invalid_json", nil},
		"currency unknown":       {body("currency", `"EUR"`), 422, "unknown_currency", nil},
		"currency empty":         {body("currency", `""`), 422, "unknown_currency", nil},
		"reference of 65":        {body("reference", quoted(strings.Repeat("é", 65))), 422, "reference_too_long", nil},
		"reference with U+0000":  {body("reference", `"a\u0000"`), 422, "invalid_field", nil},
		"key missing":            {body("idempotency_key", ""), 400, "idempotency_key_missing", nil},
		"key empty":              {body("idempotency_key", `""`), 400, "idempotency_key_missing", nil},
		"key of 256":             {body("idempotency_key", quoted(long)), 400, "idempotency_key_invalid", nil},
		"key with a control":     {body("idempotency_key", `"a\u0007"`), 400, "idempotency_key_invalid", nil},
		"key differs":            {body(), 400, "idempotency_key_conflict", []string{"X-Idempotency-Key", "k2"}},
		"headers differ":         {body("idempotency_key", ""), 400, "idempotency_key_conflict", []string{"X-Idempotency-Key", "a", "Idempotency-Key", "b"}},
		"header twice, differs":  {body("idempotency_key", ""), 400, "idempotency_key_conflict", []string{"Idempotency-Key", "a\nb"}},
		"header is not UTF-8":    {body("idempotency_key", ""), 400, "idempotency_key_invalid", []string{"Idempotency-Key", "\xff"}},
		"body too large":         {body("reference", quoted(strings.Repeat("x", 17<<10))), 413, "body_too_large", nil},
		"media type":             {body(), 415, "unsupported_media_type", []string{"Content-Type", "text/plain"}},
		"media type missing":     {body(), 415, "unsupported_media_type", []string{"Content-Type", ""}},
		"media type twice":       {body(), 415, "unsupported_media_type", []string{"Content-Type", "application/json\napplication/json"}},
		"media type latin":       {body(), 415, "unsupported_media_type", []string{"Content-Type", "application/json; charset=latin1"}},
		"content encoding":       {body(), 415, "unsupported_media_type", []string{"Content-Encoding", "identity"}},
		"no token":               {body(), 401, "unauthenticated", []string{"Authorization", ""}},
		"token is no token":      {body(), 401, "unauthenticated", []string{"Authorization", "Bearer x"}},
		"token of another kind":  {body(), 401, "unauthenticated", []string{"Authorization", "Basic eDp5"}},
		"token is checked first": {`nonsense`, 401, "unauthenticated", []string{"Authorization", "Bearer x"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAPI(t)
			a.want(a.send(http.MethodPost, "/v1/holds", c.body, c.headers...), c.status, c.code)
			if len(a.shards.sent) != 0 {
				t.Errorf("shards were asked: %v", a.shards.sent)
			}
		})
	}
}

func TestCreateForAnotherUser(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(a.send(http.MethodPost, "/v1/holds", body(), "Authorization", "Bearer "+a.user(bob)), 403, "forbidden_sender")
	// Who may not ask is not told what is wrong with the rest either.
	a.want(a.send(http.MethodPost, "/v1/holds", body("amount", "0"), "Authorization", "Bearer "+a.user(bob)), 403, "forbidden_sender")
	a.want(a.send(http.MethodPost, "/v1/holds", body(), "Authorization", "Bearer "+a.user(alice)), 201, "")
}

func TestCreate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string][]string{
		"key in the body":       {body()},
		"key in a header":       {body("idempotency_key", ""), "X-Idempotency-Key", "k1"},
		"key everywhere":        {body(), "X-Idempotency-Key", "k1", "Idempotency-Key", "k1\nk1"},
		"key of 255 letters":    {body("idempotency_key", quoted(strings.Repeat("é", 255)))},
		"charset":               {body(), "Content-Type", "Application/JSON; charset=UTF-8"},
		"everything there is":   {body("currency", `"RBX"`, "reference", quoted(strings.Repeat("é", 64)))},
		"the largest amount":    {body("amount", "9007199254740991")},
		"the longest delay":     {body("unlock_in_seconds", "7776000")},
		"a time with an offset": {body("unlock_in_seconds", "", "unlock_at", `"2030-01-01T02:00:00+02:00"`)},
		"reference with words":  {body("reference", `"FAILURE and ONGOING"`)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAPI(t)
			r := a.want(a.send(http.MethodPost, "/v1/holds", c[0], c[1:]...), 201, "")
			id := aHold(holdfast.Pending).ID
			if r.Header().Get("Location") != "/v1/holds/"+id.String() || r.Header().Get("Idempotent-Replayed") != "" {
				t.Errorf("headers %v", r.Header())
			}
			if r.doc["hold_id"] != id.String() || r.doc["status"] != "PENDING" || r.doc["unlock_at"] != "2030-01-01T00:00:00Z" {
				t.Errorf("document %s", r.Body)
			}
			if len(a.created) != 1 || a.created[0] != id {
				t.Errorf("announced %v", a.created)
			}
		})
	}
}

// TestUnlockIsRoundedUp: a hold never matures before the time asked for.
func TestUnlockIsRoundedUp(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	var got branch.TryItem
	a.shards.on(branch.OpTry, each(func(i branch.TryItem) branch.TryResult {
		got = i
		return branch.TryResult{Code: branch.CodeOK, Hold: holdOf(i)}
	}))
	for at, want := range map[string]int64{
		"2030-01-01T00:00:00Z":           unlock.UnixMilli(),
		"2030-01-01T00:00:00.000000001Z": unlock.UnixMilli() + 1,
		"2030-01-01T00:00:00.001Z":       unlock.UnixMilli() + 1,
		"9999-12-31T23:59:59.9999Z":      253402300800000,
	} {
		a.want(a.send(http.MethodPost, "/v1/holds", body("unlock_in_seconds", "", "unlock_at", quoted(at))), 201, "")
		if got.UnlockAtMS != want || got.DelayMS != 0 {
			t.Errorf("%s: %d ms and delay %d, want %d", at, got.UnlockAtMS, got.DelayMS, want)
		}
	}
}

func TestChunkedBodyIsBounded(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for _, c := range []struct {
		size, status int
		code         string
	}{{17 << 10, 413, "body_too_large"}, {100, 201, ""}} {
		r := httptest.NewRequest(http.MethodPost, "/v1/holds",
			iotest.OneByteReader(strings.NewReader(body()+strings.Repeat(" ", c.size))))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+a.service())
		r.ContentLength = -1
		a.want(a.do(r), c.status, c.code)
	}
}

// TestRequestHash: the same request has the same hash however it is written,
// and each part of it counts.
func TestRequestHash(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	hashes := map[[32]byte]string{}
	a.shards.on(branch.OpTry, each(func(i branch.TryItem) branch.TryResult {
		hashes[i.RequestHash] += "."
		return branch.TryResult{Code: branch.CodeOK, Hold: holdOf(i)}
	}))
	for _, same := range []string{body(), body("idempotency_key", `"other"`), " " + body("currency", `"RBX"`) + "\n",
		body("sender_id", quoted(strings.ToUpper(alice.String()))), body("reference", `""`)} {
		a.want(a.send(http.MethodPost, "/v1/holds", same), 201, "")
	}
	if len(hashes) != 1 {
		t.Errorf("%d hashes of one request", len(hashes))
	}
	others := []string{body("sender_id", quoted(carol.String())), body("recipient_id", quoted(carol.String())), body("amount", "101"),
		body("unlock_in_seconds", "61"), body("reference", `"r"`), body("unlock_in_seconds", "", "unlock_at", `"2030-01-01T00:00:00Z"`)}
	for _, other := range others {
		a.want(a.send(http.MethodPost, "/v1/holds", other), 201, "")
	}
	if len(hashes) != 1+len(others) {
		t.Errorf("%d hashes of %d requests", len(hashes), 1+len(others))
	}
}

func BenchmarkReadHold(b *testing.B) {
	a := newAPI(b)
	who, err := a.cfg.Auth.Verify(a.service())
	if err != nil {
		b.Fatal(err)
	}
	doc := []byte(body("currency", `"RBX"`))
	b.ReportAllocs()
	for b.Loop() {
		var v holdValues
		if err := fieldsOf(doc, holdFields, v[:]); err != nil {
			b.Fatal(err)
		}
		if _, err := a.readHold(&v, http.Header{}, who); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCreate is a whole create but for the connection and the shards.
func BenchmarkCreate(b *testing.B) {
	a := newAPI(b, func(c *Config) { c.Created = nil })
	token, doc := "Bearer "+a.service(), body("idempotency_key", "")
	var workers atomic.Int64
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		key := []string{strconv.FormatInt(workers.Add(1), 10)}
		for pb.Next() {
			r := httptest.NewRequest(http.MethodPost, "/v1/holds", strings.NewReader(doc))
			r.Header["Content-Type"], r.Header["Authorization"] = []string{"application/json"}, []string{token}
			r.Header["X-Idempotency-Key"] = key
			w := httptest.NewRecorder()
			if a.public.ServeHTTP(w, r); w.Code != 201 {
				b.Fatal(w.Body)
			}
		}
	})
}
