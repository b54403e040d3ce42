package hostile

import (
	"bufio"
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Tests of the tester: what it must not let pass.

func answerOf(status int, contentType, body string) answer {
	rec := httptest.NewRecorder()
	for name, value := range map[string]string{"X-Request-Id": "r", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Content-Type": contentType} {
		rec.Header().Set(name, value)
	}
	rec.WriteHeader(status)
	rec.Body.WriteString(body)
	var text strings.Builder
	_ = rec.Result().Write(&text)
	a, _ := read(bufio.NewReader(strings.NewReader(text.String())), "GET")
	return a
}

func TestJudge(t *testing.T) {
	t.Parallel()
	doc := func(status, code, detail string) string {
		return `{"type":"urn:holdfast:problem:` + code + `","title":"x","status":` + status + `,"detail":"` + detail + `","instance":"/v1/holds/goroutine 7","code":"` + code + `","request_id":"r"}`
	}
	const problemType = "application/problem+json"
	if bad := judge(answerOf(422, problemType, doc("422", "invalid_id", "fine")), "GET", false); len(bad) != 0 {
		t.Errorf("a good answer: %v", bad)
	}
	for want, a := range map[string]answer{
		"a 5xx":             answerOf(500, problemType, doc("500", "internal_error", "x")),
		"goroutine 1":       answerOf(422, problemType, doc("422", "invalid_id", "goroutine 1 [running]")),
		"SQLSTATE":          answerOf(422, problemType, doc("422", "invalid_id", "SQLSTATE 23505")),
		"/usr/":             answerOf(422, problemType, doc("422", "invalid_id", "open /usr/lib/x")),
		"coordinator.Confi": answerOf(422, problemType, doc("422", "invalid_id", "*coordinator.Config")),
		"ONGOING":           answerOf(422, problemType, doc("422", "invalid_id", "ONGOING")),
		"not a whole":       answerOf(422, problemType, doc("400", "invalid_id", "another status")),
		"a whole problem":   answerOf(422, problemType, doc("422", "no_such_code", "x")),
		"problem document":  answerOf(422, "application/json", doc("422", "invalid_id", "x")),
		"WWW-Authenticate":  answerOf(401, problemType, doc("401", "unauthenticated", "x")),
		"without Allow":     answerOf(405, problemType, doc("405", "method_not_allowed", "x")),
	} {
		if bad := strings.Join(judge(a, "GET", false), "\n"); !strings.Contains(bad, want) {
			t.Errorf("want a finding with %q, got %q", want, bad)
		}
	}
}

// TestChangeIsFound: a change of one coin and a new table's row are seen, and a
// remembered key is only forgiven where it may be.
func TestChangeIsFound(t *testing.T) {
	t.Parallel()
	before := tables{"shard 0 accounts": "1", "shard 0 idempotency": "1", "shard 0 cash refused": "1"}
	now := tables{"shard 0 accounts": "1", "shard 0 idempotency": "2", "shard 0 cash refused": "2"}
	if got := differ(before, now, group{remembers: true}); got != "" {
		t.Errorf("remembered keys: %s", got)
	}
	if got := differ(before, now, group{}); got != "shard 0 cash refused, shard 0 idempotency" {
		t.Errorf("keys that may not be remembered: %s", got)
	}
	now["shard 0 accounts"] = "2"
	if got := differ(before, now, group{remembers: true}); got != "shard 0 accounts" {
		t.Errorf("a coin: %s", got)
	}
}

// TestNothingToAttack: a system that is not there is no clean report.
func TestNothingToAttack(t *testing.T) {
	t.Parallel()
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	defer broken.Close()
	for name, target := range map[string]Target{"no address": {}, "another system": {API: broken.URL, Admin: broken.URL, Secret: []byte("x")}} {
		if r := Run(context.Background(), target); r.OK() || len(r.Findings) == 0 || r.Findings[0].Section != "setup" {
			t.Errorf("%s: %+v", name, r)
		}
	}
}
