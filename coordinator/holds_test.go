package coordinator

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/auth"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// TestCreateAsShardsDecide: each code of a shard has its row in the contract.
func TestCreateAsShardsDecide(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		check, try branch.Code
		refusal    branch.Code // remembered under the key
		status     int
		code       string
		refused    branch.Code // what the Try was sent with
	}{
		"created":                        {"ok", "ok", "", 201, "", ""},
		"replayed":                       {"ok", "replay", "", 201, "", ""},
		"replayed refusal":               {"ok", "replay", "insufficient_funds", 402, "insufficient_funds", ""},
		"key reused":                     {"ok", "idempotency_key_reused", "", 422, "idempotency_key_reused", ""},
		"no funds":                       {"ok", "insufficient_funds", "", 402, "insufficient_funds", ""},
		"no sender":                      {"ok", "unknown_sender", "", 422, "unknown_sender", ""},
		"sender banned":                  {"ok", "sender_not_active", "", 422, "sender_not_active", ""},
		"unlock out of range":            {"ok", "unlock_at_out_of_range", "", 422, "unlock_at_out_of_range", ""},
		"no recipient":                   {"unknown_recipient", "unknown_recipient", "", 422, "unknown_recipient", "unknown_recipient"},
		"recipient banned":               {"recipient_not_payable", "recipient_not_payable", "", 422, "recipient_not_payable", "recipient_not_payable"},
		"recipient banned since":         {"recipient_not_payable", "replay", "", 201, "", "recipient_not_payable"},
		"recipient's shard away":         {"shard_unavailable", "shard_unavailable", "", 503, "shard_unavailable", "shard_unavailable"},
		"recipient's shard hangs":        {"outcome_unknown", "shard_unavailable", "", 503, "shard_unavailable", "shard_unavailable"},
		"recipient's shard away, replay": {"shard_unavailable", "replay", "", 201, "", "shard_unavailable"},
		"both away":                      {"shard_unavailable", "outcome_unknown", "", 503, "shard_unavailable", "shard_unavailable"},
		"recipient's shard busy":         {"overloaded", "overloaded", "", 503, "overloaded", "overloaded"},
		"sender's shard away":            {"ok", "shard_unavailable", "", 503, "shard_unavailable", ""},
		"sender's shard busy":            {"ok", "overloaded", "", 503, "overloaded", ""},
		"unknown":                        {"ok", "outcome_unknown", "", 500, "outcome_unknown", ""},
		"item broken":                    {"ok", "item_broken", "", 500, "internal_error", ""},
		"a code nobody knows":            {"ok", "surprise", "", 500, "internal_error", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAPI(t)
			a.shards.on(branch.OpCheck, says([]branch.CheckResult{{Code: c.check}}))
			var sent branch.TryItem
			a.shards.on(branch.OpTry, each(func(i branch.TryItem) branch.TryResult {
				sent = i
				return branch.TryResult{Code: c.try, Refusal: c.refusal, Hold: holdOf(i)}
			}))
			r := a.want(a.send(http.MethodPost, "/v1/holds", body()), c.status, c.code)
			if sent.Refusal != c.refused {
				t.Errorf("the Try was sent with refusal %q, want %q", sent.Refusal, c.refused)
			}
			if replayed := r.Header().Get("Idempotent-Replayed") == "true"; replayed != (c.try == "replay") {
				t.Errorf("Idempotent-Replayed %v", replayed)
			}
			if (len(a.created) == 1) != (c.try == "ok") {
				t.Errorf("announced %v", a.created)
			}
			if c.code == "outcome_unknown" && r.doc["retryable"] != true {
				t.Errorf("an unknown outcome must be retryable: %s", r.Body)
			}
			if c.code == "internal_error" && (r.doc["detail"] != nil || !strings.Contains(a.log.String(), `"level":"ERROR"`)) {
				t.Errorf("a bare 500 and a line in the log: %s, %s", r.Body, a.log)
			}
		})
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	id := aHold(holdfast.Pending).ID
	for name, c := range map[string]struct {
		code   branch.Code
		status holdfast.Status
		want   int
		err    string
		hold   bool
	}{
		"cancelled":        {"ok", holdfast.Cancelled, 200, "", true},
		"again":            {"already", holdfast.Cancelled, 200, "", true},
		"matured":          {"hold_matured", holdfast.Pending, 409, "hold_matured", true},
		"executing":        {"hold_matured", holdfast.Executing, 409, "hold_matured", true},
		"executed":         {"hold_already_executed", holdfast.Executed, 409, "hold_already_executed", true},
		"failed":           {"hold_failed", holdfast.Failed, 409, "hold_failed", true},
		"not there":        {"hold_not_found", 0, 404, "hold_not_found", false},
		"by the recipient": {"forbidden_cancel", 0, 403, "forbidden_cancel", false},
		"shard away":       {"shard_unavailable", 0, 503, "shard_unavailable", false},
		"unknown":          {"outcome_unknown", 0, 500, "outcome_unknown", false},
		"impossible":       {"impossible_state", 0, 500, "internal_error", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAPI(t)
			h := holdfast.Hold{}
			if c.hold {
				h = aHold(c.status)
			}
			var actor holdfast.UserID
			a.shards.on(branch.OpCancel, each(func(i branch.CancelItem) branch.HoldResult {
				actor = i.Actor
				return branch.HoldResult{Code: c.code, Hold: h}
			}))
			r := a.want(a.send(http.MethodDelete, "/v1/holds/"+id.String(), "", "Authorization", "Bearer "+a.user(alice)), c.want, c.err)
			if actor != alice {
				t.Errorf("cancelled in the name of %s", actor)
			}
			if inside, _ := r.doc["hold"].(map[string]any); c.want == 409 && inside["status"] != c.status.String() {
				t.Errorf("the 409 carries %v", r.doc["hold"])
			}
			a.send(http.MethodDelete, "/v1/holds/"+id.String(), "")
			if !actor.IsZero() {
				t.Errorf("a service cancelled in the name of %s", actor)
			}
		})
	}
}

// TestForeignHolds: who is no party to a hold learns nothing of it.
func TestForeignHolds(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	path := "/v1/holds/" + aHold(holdfast.Pending).ID.String()
	nobody := a.token(auth.MintOptions{Sub: carol.String(), Scopes: auth.AllScopes()})
	for _, who := range []string{a.user(alice), a.user(bob), a.service()} {
		a.want(a.send(http.MethodGet, path, "", "Authorization", "Bearer "+who), 200, "")
		a.want(a.send(http.MethodHead, path, "", "Authorization", "Bearer "+who), 200, "")
	}
	foreign := a.want(a.send(http.MethodGet, path, "", "Authorization", "Bearer "+nobody), 404, "hold_not_found")
	a.answerHold(branch.OpCancel, branch.CodeMatured, aHold(holdfast.Pending))
	a.want(a.send(http.MethodDelete, path, "", "Authorization", "Bearer "+nobody), 404, "hold_not_found")
	a.answerHold(branch.OpGet, branch.CodeNotFound, holdfast.Hold{})
	absent := a.want(a.send(http.MethodGet, path, "", "Authorization", "Bearer "+nobody), 404, "hold_not_found")
	delete(foreign.doc, "request_id")
	delete(absent.doc, "request_id")
	if fmt.Sprint(foreign.doc) != fmt.Sprint(absent.doc) {
		t.Errorf("a foreign hold differs from none: %v, %v", foreign.doc, absent.doc)
	}
}

func TestHoldIDs(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for id, want := range map[string]struct {
		status int
		code   string
	}{
		"x":                                      {422, "invalid_id"},
		alice.String():                           {404, "hold_not_found"}, // version 7: no hold has it
		"00000000-0000-0000-0000-000000000000":   {404, "hold_not_found"},
		"{01b8dac5-b400-8906-8000-00000000007}":  {422, "invalid_id"},
		"01b8dac5b40089068000000000000007":       {422, "invalid_id"},
		"01b8dac5-b400-8906-8000-00000000000%2F": {422, "invalid_id"},
	} {
		a.want(a.send(http.MethodGet, "/v1/holds/"+id, ""), want.status, want.code)
		a.want(a.send(http.MethodDelete, "/v1/holds/"+id, ""), want.status, want.code)
	}
	if len(a.shards.sent) != 0 {
		t.Errorf("shards were asked: %v", a.shards.sent)
	}
}

func TestListHolds(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	var got branch.ListRequest
	a.shards.on(branch.OpList, func(_ int, in any) (any, error) {
		got = in.(branch.ListRequest)
		if got.Before == "pos 2" {
			return branch.ListAnswer{}, nil
		}
		return branch.ListAnswer{Holds: []holdfast.Hold{aHold(holdfast.Pending)}, Next: "pos 2"}, nil
	})
	list := "/v1/holds?sender_id=" + alice.String()
	r := a.want(a.send(http.MethodGet, list, ""), 200, "")
	if got.Limit != 50 || got.Sender != alice || len(r.doc["holds"].([]any)) != 1 {
		t.Errorf("asked %+v, got %s", got, r.Body)
	}
	token := r.doc["next_page_token"].(string)
	r = a.want(a.send(http.MethodGet, list+"&page_token="+token, ""), 200, "")
	if got.Before != "pos 2" || r.doc["next_page_token"] != nil || !strings.Contains(r.Body.String(), `"holds":[]`) {
		t.Errorf("second page: asked %+v, got %s", got, r.Body)
	}
	a.want(a.send(http.MethodGet, list+"&status=FAILED&idempotency_key=k%201&page_size=200", ""), 200, "")
	if got.Status != holdfast.Failed || got.Key != "k 1" || got.Limit != 200 {
		t.Errorf("asked %+v", got)
	}
	for query, want := range map[string]struct {
		status int
		code   string
	}{
		"":                            {422, "missing_field"},
		"sender_id=x":                 {422, "invalid_id"},
		list[10:] + "&status=pending": {422, "invalid_field"},
		list[10:] + "&status=":        {422, "invalid_field"},
		list[10:] + "&page_size=0":    {422, "invalid_field"},
		list[10:] + "&page_size=201":  {422, "invalid_field"},
		list[10:] + "&page_size=x":    {422, "invalid_field"},
		list[10:] + "&page_token=x":   {422, "invalid_page_token"},
		list[10:] + "&page_token=":    {422, "invalid_page_token"},
		list[10:] + "&status=FAILED&page_token=" + token:     {422, "invalid_page_token"},
		"sender_id=" + bob.String() + "&page_token=" + token: {422, "invalid_page_token"},
		list[10:] + "&recipient_id=" + bob.String():          {400, "unknown_field"},
		list[10:] + "&" + list[10:]:                          {400, "duplicate_field"},
		list[10:] + "&idempotency_key=":                      {400, "idempotency_key_missing"},
		list[10:] + "&idempotency_key=%00":                   {400, "idempotency_key_invalid"},
		list[10:] + "&idempotency_key=%ff":                   {422, "invalid_field"},
		list[10:] + "&%zz":                                   {422, "invalid_field"},
	} {
		if r := a.send(http.MethodGet, "/v1/holds?"+query, ""); r.Code != want.status || r.code() != want.code {
			t.Errorf("%s: %d %s, want %d %s", query, r.Code, r.code(), want.status, want.code)
		}
	}
	a.want(a.send(http.MethodGet, list, "", "Authorization", "Bearer "+a.user(bob)), 403, "forbidden_sender")
	a.shards.on(branch.OpList, breaks(holdfast.ErrShardUnavailable))
	a.want(a.send(http.MethodGet, list, ""), 503, "shard_unavailable")
	a.shards.on(branch.OpList, breaks(errors.New("connection reset")))
	a.want(a.send(http.MethodGet, list, ""), 503, "shard_unavailable")
}

func TestBatchCreate(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.shards.on(branch.OpTry, each(func(i branch.TryItem) branch.TryResult {
		switch i.Key {
		case "poor":
			return branch.TryResult{Code: branch.CodeInsufficientFunds}
		case "known":
			return branch.TryResult{Code: branch.CodeReplay, Hold: holdOf(i)}
		}
		return branch.TryResult{Code: branch.CodeOK, Hold: holdOf(i)}
	}))
	items := []string{body(), body("idempotency_key", `"poor"`), body("Amount", "1"), body("amount", "0"), `7`, body("idempotency_key", ""),
		body("sender_id", quoted(bob.String()), "recipient_id", quoted(carol.String())), body("idempotency_key", `"known"`), `{"amount":1,"amount":1}`}
	r := a.want(a.send(http.MethodPost, "/v1/holds:batchCreate", `{"holds":[`+strings.Join(items, ",")+`]}`,
		"Authorization", "Bearer "+a.user(alice)), 200, "")
	var doc struct {
		Atomic  bool
		Results []struct {
			Status   int
			Hold     *holdfast.Hold
			Problem  *struct{ Code string }
			Replayed bool `json:"idempotent_replayed"`
		}
	}
	if err := json.Unmarshal(r.Body.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range doc.Results {
		code := ""
		if i.Problem != nil {
			code = i.Problem.Code
		}
		if (i.Hold != nil) != (i.Status == 201) || (i.Hold == nil) != (i.Problem != nil) {
			t.Errorf("neither hold nor problem, or both: %+v", i)
		}
		got = append(got, strings.TrimSpace(fmt.Sprint(i.Status, " ", code)))
	}
	want := "201|402 insufficient_funds|400 unknown_field|422 amount_out_of_range|400 invalid_json|400 idempotency_key_missing|" +
		"403 forbidden_sender|201|400 duplicate_field"
	if s := strings.Join(got, "|"); s != want {
		t.Errorf("results\n%s, want\n%s", s, want)
	}
	if !doc.Results[7].Replayed || doc.Results[0].Replayed || doc.Atomic || len(a.created) != 1 {
		t.Errorf("replayed, atomic or announced is wrong: %s, %v", r.Body, a.created)
	}
	if n := a.shards.count(branch.OpTry); n != 1 {
		t.Errorf("%d Try calls for one shard", n)
	}
}

func TestBatchCreateAsAWhole(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	many := func(n int) string { return `{"holds":[` + strings.Repeat(body()+",", n-1) + body() + `]}` }
	for _, c := range []struct {
		body    string
		status  int
		code    string
		headers []string
	}{
		{many(100), 200, "", nil},
		{many(101), 422, "batch_too_large", nil},
		{`{"holds":[]}`, 422, "invalid_field", nil},
		{`{}`, 422, "missing_field", nil},
		{`{"holds":{}}`, 400, "invalid_json", nil},
		{`{"holds":[` + body() + `],"x":1}`, 400, "unknown_field", nil},
		{`{"holds":[` + body() + `]`, 400, "invalid_json", nil},
		{`{"holds":[` + body("reference", quoted(strings.Repeat("x", 257<<10))) + `]}`, 413, "body_too_large", nil},
		{many(1), 400, "idempotency_key_conflict", []string{"Idempotency-Key", "k1"}},
		{many(1), 415, "unsupported_media_type", []string{"Content-Type", "text/json"}},
	} {
		a.want(a.send(http.MethodPost, "/v1/holds:batchCreate", c.body, c.headers...), c.status, c.code)
	}
	if n := a.shards.count(branch.OpTry); n != 1 {
		t.Errorf("%d Try calls", n)
	}
}
