package coordinator

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// awayOn lets every shard answer but one.
func awayOn(dead int, f func(shard int, in any) any) func(int, any) (any, error) {
	return func(shard int, in any) (any, error) {
		if shard == dead {
			return nil, fmt.Errorf("dial: %w", holdfast.ErrShardUnavailable)
		}
		return f(shard, in), nil
	}
}

func TestAdminHolds(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	asked := make(chan branch.AdminListRequest, 16)
	a.shards.on(branch.OpAdminHolds, awayOn(2, func(shard int, in any) any {
		r := in.(branch.AdminListRequest)
		asked <- r
		h := aHold(holdfast.Pending)
		h.CreatedAt = h.CreatedAt.Add(time.Duration(shard) * time.Minute)
		next := fmt.Sprint("after ", shard)
		if shard == 0 || r.Before != "" {
			next = ""
		}
		return branch.ListAnswer{Holds: []holdfast.Hold{h}, Next: next}
	}))
	r := a.want(a.send(http.MethodGet, "/admin/v1/holds?status=PENDING&overdue=true&page_size=10", ""), 200, "")
	if q := <-asked; q.Status != holdfast.Pending || !q.Overdue || q.Limit != 3 {
		t.Errorf("asked %+v", q)
	}
	if fmt.Sprint(r.doc["shards_unavailable"]) != "[2]" || len(r.doc["holds"].([]any)) != 3 {
		t.Errorf("%s", r.Body)
	}
	<-asked
	<-asked
	r = a.want(a.send(http.MethodGet, "/admin/v1/holds?status=PENDING&overdue=true&page_token="+r.doc["next_page_token"].(string), ""), 200, "")
	if len(asked) != 2 || r.doc["next_page_token"] != nil {
		t.Errorf("%d shards asked for a second page: %s", len(asked), r.Body)
	}
	for len(asked) > 0 {
		if q := <-asked; !strings.HasPrefix(q.Before, "after ") {
			t.Errorf("asked %+v", q)
		}
	}
	r = a.want(a.send(http.MethodGet, "/admin/v1/holds?shard=3", ""), 200, "")
	if len(asked) != 1 || len(r.doc["holds"].([]any)) != 1 {
		t.Errorf("%d shards asked for one shard's holds", len(asked))
	}
	for _, query := range []string{"status=x", "overdue=1", "shard=4", "shard=-1", "shard=x", "page_size=0"} {
		a.want(a.send(http.MethodGet, "/admin/v1/holds?"+query, ""), 422, "invalid_field")
	}
	a.want(a.send(http.MethodGet, "/admin/v1/holds?x=1", ""), 400, "unknown_field")
	a.want(a.send(http.MethodGet, "/admin/v1/holds?page_token=eA", ""), 422, "invalid_page_token")
}

func TestDeadLettersAndAudit(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	asked := make(chan branch.AdminListRequest, 16)
	a.shards.on(branch.OpDeadLetters, awayOn(1, func(_ int, in any) any {
		asked <- in.(branch.AdminListRequest)
		return branch.DeadLetterAnswer{DeadLetters: []branch.DeadLetter{{HoldID: aHold(4).ID, Code: "recipient_banned", Detail: "FAILURE"}}}
	}))
	r := a.want(a.send(http.MethodGet, "/admin/v1/dead-letters?code=recipient_banned", ""), 200, "")
	if q := <-asked; !q.Open || q.Code != "recipient_banned" {
		t.Errorf("asked %+v", q)
	}
	if len(r.doc["dead_letters"].([]any)) != 3 || fmt.Sprint(r.doc["shards_unavailable"]) != "[1]" {
		t.Errorf("%s", r.Body)
	}
	a.shards.on(branch.OpAudit, awayOn(0, func(shard int, _ any) any {
		return branch.AuditAnswer{Rows: []branch.AuditRow{{At: unlock, Actor: "me", Action: "retry", Shard: shard}}}
	}))
	if r := a.want(a.send(http.MethodGet, "/admin/v1/audit", ""), 200, ""); len(r.doc["audit"].([]any)) != 3 {
		t.Errorf("%s", r.Body)
	}
}

func TestOverviewAndShards(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.shards.on(branch.OpStatus, awayOn(3, func(shard int, _ any) any {
		return branch.ShardStatus{Up: shard != 1, Holds: map[string]int64{"PENDING": 2}, OldestOverdueS: float64(shard),
			OpenDeadLetters: map[string]int64{"outcome_unknown": 1}}
	}))
	r := a.want(a.send(http.MethodGet, "/admin/v1/overview", ""), 200, "")
	if holds := r.doc["holds"].(map[string]any); holds["PENDING"] != 6.0 || holds["FAILED"] != 0.0 {
		t.Errorf("holds %v", holds)
	}
	if r.doc["oldest_overdue_seconds"] != 2.0 || fmt.Sprint(r.doc["shards_unavailable"]) != "[1 3]" {
		t.Errorf("%s", r.Body)
	}
	r = a.want(a.send(http.MethodGet, "/admin/v1/shards", ""), 200, "")
	if len(r.doc["shards"].([]any)) != 4 || r.doc["map_epoch"] != 1.0 {
		t.Errorf("%s", r.Body)
	}
	a.want(a.send(http.MethodGet, "/admin/v1/breaker", ""), 404, "not_served_here")
	a.want(a.send(http.MethodGet, "/admin/v1/scheduler", ""), 404, "not_served_here")
	a = newAPI(t, func(c *Config) { c.Scheduler = func(context.Context) any { return map[string]int{"x": 1} } })
	if r := a.want(a.send(http.MethodGet, "/admin/v1/scheduler", ""), 200, ""); r.doc["x"] != 1.0 {
		t.Errorf("%s", r.Body)
	}
}

func TestAdminHold(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	h := aHold(holdfast.Executed)
	h.ClaimedAt, h.DecidedAt, h.ExecutedAt, h.Verdict, h.PaymentID = unlock, unlock.Add(1), unlock.Add(2), holdfast.Paid, "p1"
	other := a.cfg.Map.OfUser(bob)
	if other == a.cfg.Map.OfHold(h.ID) {
		t.Fatal("the test needs two shards")
	}
	a.shards.on(branch.OpDetail, func(shard int, in any) (any, error) {
		if r := in.(branch.DetailRequest); shard == other {
			if r.Recipient != bob || r.Currency != "RBX" {
				t.Errorf("asked the recipient's shard %+v", r)
			}
			return branch.DetailAnswer{Code: "ok", Barrier: []branch.BarrierRow{{Branch: "02", Op: "confirm"}}}, nil
		}
		return branch.DetailAnswer{Code: "ok", Hold: h, Attempts: 2, Barrier: []branch.BarrierRow{{Branch: "01", Op: "try"}}}, nil
	})
	path := "/admin/v1/holds/" + h.ID.String()
	r := a.want(a.send(http.MethodGet, path, ""), 200, "")
	var what []string
	for _, e := range r.doc["timeline"].([]any) {
		what = append(what, e.(map[string]any)["what"].(string))
	}
	if strings.Join(what, " ") != "created claimed paid executed" || len(r.doc["barrier"].([]any)) != 2 {
		t.Errorf("%s", r.Body)
	}
	a.shards.on(branch.OpDetail, says(branch.DetailAnswer{Code: branch.CodeNotFound}))
	a.want(a.send(http.MethodGet, path, ""), 404, "hold_not_found")
	a.shards.on(branch.OpDetail, breaks(errors.New("reset")))
	a.want(a.send(http.MethodGet, path, ""), 503, "shard_unavailable")
}

// TestActsNeedAReason: nothing is done for an operator who does not say why.
func TestActsNeedAReason(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	id := aHold(holdfast.Pending).ID.String()
	long := strings.Repeat("x", 501)
	for _, path := range []string{"holds/" + id + ":release", "dead-letters/" + id + ":retry", "dead-letters/" + id + ":refund",
		"dead-letters/" + id + ":close"} {
		path = "/admin/v1/" + path
		a.want(a.send(http.MethodPost, path, `{}`), 422, "reason_missing")
		a.want(a.send(http.MethodPost, path, `{"reason":" "}`), 422, "reason_missing")
		a.want(a.send(http.MethodPost, path, `{"reason":"`+long+`"}`), 422, "invalid_field")
		a.want(a.send(http.MethodPost, path, `{"reason":"a\u0000"}`), 422, "invalid_field")
		a.want(a.send(http.MethodPost, path, `{"reason":1}`), 400, "invalid_json")
		a.want(a.send(http.MethodPost, path, `{"reason":"x","y":1}`), 400, "unknown_field")
		a.want(a.send(http.MethodPost, path, ""), 415, "unsupported_media_type")
		a.want(a.send(http.MethodPost, strings.Replace(path, id, "x", 1), `{"reason":"x"}`), 422, "invalid_id")
	}
	resolve := "/admin/v1/dead-letters/" + id + ":resolve"
	a.want(a.send(http.MethodPost, resolve, `{"evidence":"e"}`), 422, "invalid_field")
	a.want(a.send(http.MethodPost, resolve, `{"outcome":"maybe","evidence":"e"}`), 422, "invalid_field")
	a.want(a.send(http.MethodPost, resolve, `{"outcome":"paid"}`), 422, "evidence_missing")
	many := "/admin/v1/holds:release"
	a.want(a.send(http.MethodPost, many, `{"hold_ids":["`+id+`"]}`), 422, "reason_missing")
	a.want(a.send(http.MethodPost, many, `{"hold_ids":[],"reason":"x"}`), 422, "invalid_field")
	a.want(a.send(http.MethodPost, many, `{"reason":"x"}`), 422, "missing_field")
	a.want(a.send(http.MethodPost, many, `{"hold_ids":["x"],"reason":"x"}`), 422, "invalid_id")
	a.want(a.send(http.MethodPost, many, `{"hold_ids":[`+strings.Repeat(quoted(id)+",", 1000)+quoted(id)+`],"reason":"x"}`), 422, "batch_too_large")
	if len(a.shards.sent) != 0 {
		t.Errorf("shards were asked: %v", a.shards.sent)
	}
}

func TestRelease(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	id := aHold(holdfast.Pending).ID.String()
	var got branch.CancelItem
	a.shards.on(branch.OpCancel, each(func(i branch.CancelItem) branch.HoldResult {
		got = i
		return branch.HoldResult{Code: "ok", Hold: aHold(holdfast.Cancelled)}
	}))
	path := "/admin/v1/holds/" + id + ":release"
	r := a.want(a.send(http.MethodPost, path, `{"reason":"shop is closed"}`), 200, "")
	if got.Operator != "shop" || got.Reason != "shop is closed" || !got.Actor.IsZero() || r.doc["status"] != "CANCELLED" {
		t.Errorf("asked %+v, got %s", got, r.Body)
	}
	many := `{"hold_ids":["` + id + `","` + alice.String() + `"],"reason":"x"}`
	r = a.want(a.send(http.MethodPost, "/admin/v1/holds:release", many), 200, "")
	results := r.doc["results"].([]any)
	if first, second := results[0].(map[string]any), results[1].(map[string]any); first["status"] != 200.0 || first["hold"] == nil ||
		second["status"] != 404.0 || second["problem"].(map[string]any)["code"] != "hold_not_found" {
		t.Errorf("%s", r.Body)
	}
	for code, status := range map[branch.Code]int{branch.CodeNotMatured: 409, branch.CodeMatured: 409, branch.CodeExecuted: 409,
		branch.CodeFailed: 409, branch.CodeNotFound: 404, branch.CodeShardUnavailable: 503, branch.CodeOutcomeUnknown: 500} {
		a.answerHold(branch.OpCancel, code, aHold(holdfast.Executing))
		a.want(a.send(http.MethodPost, path, `{"reason":"x"}`), status, string(code))
	}
}

func TestRetryRefundClose(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.closed = true // so that a nudge drives nothing
	path := "/admin/v1/dead-letters/" + aHold(holdfast.Failed).ID.String()
	const why = `{"reason":"asked by support"}`
	for op, act := range map[string]string{branch.OpRetry: ":retry", branch.OpClose: ":close"} {
		var got branch.OperatorRequest
		code := branch.CodeOK
		a.shards.on(op, func(_ int, in any) (any, error) {
			got = in.(branch.OperatorRequest)
			return branch.CodeResult{Code: code}, nil
		})
		r := a.want(a.send(http.MethodPost, path+act, why), 200, "")
		if got.Actor != "shop" || got.Reason != "asked by support" || got.Outcome != "" || r.doc["hold_id"] != aHold(0).ID.String() {
			t.Errorf("%s: asked %+v, got %s", act, got, r.Body)
		}
		for c, status := range map[branch.Code]int{branch.CodeNotRetryable: 409, branch.CodeNoDeadLetter: 404, branch.CodeStillExecuting: 409, branch.CodeBusy: 409, branch.CodeNotFound: 404} {
			code = c
			a.want(a.send(http.MethodPost, path+act, why), status, string(c))
		}
		a.shards.on(op, breaks(holdfast.ErrShardUnavailable))
		a.want(a.send(http.MethodPost, path+act, why), 503, "shard_unavailable")
		a.shards.on(op, breaks(errors.New("reset")))
		a.want(a.send(http.MethodPost, path+act, why), 500, "outcome_unknown")
	}
	a.shards.on(branch.OpClose, func(_ int, in any) (any, error) {
		if got := in.(branch.OperatorRequest); got.Outcome != branch.ByRefund || got.Reason != "asked by support" {
			t.Errorf("a refund closes with %+v; a payment that turned up since must stay open", got)
		}
		return branch.CodeResult{Code: branch.CodeNoDeadLetter}, nil
	})
	for code, status := range map[branch.Code]int{branch.CodeOK: 200, branch.CodeAlready: 200, branch.CodeNotRefundable: 409,
		branch.CodeNotFound: 404, branch.CodeOutcomeUnknown: 500} {
		a.answerHold(branch.OpRefund, code, aHold(holdfast.Failed))
		if r := a.send(http.MethodPost, path+":refund", why); r.Code != status {
			t.Errorf("refund answered %s: %d %s", code, r.Code, r.Body)
		}
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		outcome   string
		resolve   branch.Code
		verdict   branch.Code
		status    int
		code      string
		committed string // the step that gave the verdict
	}{
		"paid":                    {"paid", "ok", "ok", 200, "", branch.OpSettle},
		"not paid":                {"not_paid", "ok", "ok", 200, "", branch.OpRefuse},
		"nothing to resolve":      {"paid", "not_resolvable", "ok", 409, "not_resolvable", ""},
		"has the other verdict":   {"not_paid", "ok", "verdict_is_other", 409, "verdict_is_other", branch.OpRefuse},
		"verdict is unknown":      {"paid", "ok", "outcome_unknown", 500, "outcome_unknown", branch.OpSettle},
		"no such hold":            {"paid", "hold_not_found", "ok", 404, "hold_not_found", ""},
		"shard went away between": {"paid", "ok", "shard_unavailable", 503, "shard_unavailable", branch.OpSettle},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAPI(t)
			a.closed = true // so that a nudge drives nothing
			a.shards.on(branch.OpResolve, says(branch.CodeResult{Code: c.resolve}))
			a.shards.on(branch.OpSettle, each(func(i branch.SettleItem) branch.HoldResult {
				if i.PaymentID != "bank says 17" || i.Recipient != bob {
					t.Errorf("settled %+v", i)
				}
				return branch.HoldResult{Code: c.verdict}
			}))
			a.shards.on(branch.OpRefuse, each(func(i branch.RefuseItem) branch.HoldResult {
				if i.Reason != "not_paid" || i.Detail != "bank says 17" || !i.Watch {
					t.Errorf("refused %+v", i)
				}
				return branch.HoldResult{Code: c.verdict}
			}))
			a.want(a.send(http.MethodPost, "/admin/v1/dead-letters/"+aHold(2).ID.String()+":resolve",
				`{"outcome":"`+c.outcome+`","evidence":"bank says 17"}`), c.status, c.code)
			for _, op := range []string{branch.OpSettle, branch.OpRefuse} {
				if (a.shards.count(op) == 1) != (op == c.committed) {
					t.Errorf("%s was sent %d times", op, a.shards.count(op))
				}
			}
		})
	}
}

func TestReady(t *testing.T) {
	t.Parallel()
	redis := "up"
	for _, c := range []struct {
		name   string
		dead   func(shard int) bool
		code   branch.Code
		redis  string
		status int
		word   string
	}{
		{"all up", func(int) bool { return false }, "", "up", 200, "ready"},
		{"one shard away", func(s int) bool { return s == 1 }, branch.CodeShardUnavailable, "up", 200, "degraded"},
		{"one shard hangs", func(s int) bool { return s == 1 }, branch.CodeOutcomeUnknown, "up", 200, "degraded"},
		{"all busy", func(int) bool { return true }, branch.CodeOverloaded, "up", 200, "ready"},
		{"redis away", func(int) bool { return false }, "", "down", 200, "degraded"},
		{"all away", func(int) bool { return true }, branch.CodeShardUnavailable, "up", 503, "down"},
	} {
		redis = c.redis
		a := newAPI(t, func(cfg *Config) {
			cfg.Ready = func(context.Context) map[string]string { return map[string]string{"redis": redis} }
		})
		a.shards.on(branch.OpCheck, func(shard int, _ any) (any, error) {
			if c.dead(shard) {
				return []branch.CheckResult{{Code: c.code}}, nil
			}
			return []branch.CheckResult{{Code: branch.CodeUnknownRecipient}}, nil
		})
		r := a.send(http.MethodGet, "/readyz", "")
		if r.Code != c.status || r.doc["status"] != c.word || len(r.doc["shards"].(map[string]any)) != 4 {
			t.Errorf("%s: %d %s", c.name, r.Code, r.Body)
		}
		a.send(http.MethodHead, "/readyz", "")
		if n := a.shards.count(branch.OpCheck); n != 4 {
			t.Errorf("%s: two probes in a row asked %d times", c.name, n)
		}
	}
}
