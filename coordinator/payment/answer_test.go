package payment

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/holdfast-escrow/holdfast"
)

// good is the answer that means paid, with some fields changed or, with nil, left out.
func good(changed map[string]any) string {
	m := map[string]any{"payment_id": "pay_1", "status": "succeeded", "hold_id": testHold.ID,
		"amount": testHold.Amount, "recipient_id": testHold.Recipient}
	for k, v := range changed {
		if m[k] = v; v == nil {
			delete(m, k)
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func with(k string, v any) string { return good(map[string]any{k: v}) }

// expect compares an answer with what it must be: code is the refusal's.
func expect(t *testing.T, what string, got Answer, want Outcome, code string) {
	t.Helper()
	paymentID := ""
	if want == Succeeded {
		paymentID = "pay_1"
	}
	if got.Outcome != want || got.Code != code || got.PaymentID != paymentID {
		t.Errorf("%s: got %+v, want %v %q", what, got, want, code)
	}
	if (got.Err != nil) != (want == Unknown) {
		t.Errorf("%s: %v comes with the error %v", what, got.Outcome, got.Err)
	}
	if got.Err != nil && len(got.Err.Error()) > 500 {
		t.Errorf("%s: the error has %d bytes", what, len(got.Err.Error()))
	}
}

const banned = `{"code":"recipient_banned"}`

var foreign = holdfast.NewHoldID(1, 2, 3)

// answers is what each answer means to a payment and to a look-up.
var answers = []struct {
	name        string
	status      int
	body        string
	pay, lookup Outcome
	code        string
}{
	{"paid 200", 200, good(nil), Succeeded, Succeeded, ""},
	{"paid 201", 201, good(nil), Succeeded, Succeeded, ""},
	{"paid, more fields", 200, good(map[string]any{"currency": "RBX", "sender_id": testHold.Sender, "x": []int{1}}), Succeeded, Succeeded, ""},
	{"paid, upper-case id", 200, with("hold_id", strings.ToUpper(testHold.ID.String())), Succeeded, Succeeded, ""},
	{"accepted 202", 202, good(nil), Unknown, Unknown, ""},
	{"no content 204", 204, "", Unknown, Unknown, ""},
	{"empty", 200, "", Unknown, Unknown, ""},
	{"cut off", 200, good(nil)[:40], Unknown, Unknown, ""},
	{"trailing text", 200, good(nil) + "{}", Unknown, Unknown, ""},
	{"array", 200, "[" + good(nil) + "]", Unknown, Unknown, ""},
	{"null", 200, "null", Unknown, Unknown, ""},
	{"not UTF-8", 200, `{"x":"` + "\xff" + `",` + good(nil)[1:], Unknown, Unknown, ""},
	{"status twice", 200, `{"status":"failed",` + good(nil)[1:], Unknown, Unknown, ""},
	{"wrong case", 200, strings.Replace(good(nil), "hold_id", "Hold_ID", 1), Unknown, Unknown, ""},
	{"HTML", 200, "<html>ok</html>", Unknown, Unknown, ""},
	{"no status", 200, with("status", nil), Unknown, Unknown, ""},
	{"status failed", 200, with("status", "failed"), Unknown, Unknown, ""},
	{"status pending", 200, with("status", "pending"), Unknown, Unknown, ""},
	{"no payment_id", 200, with("payment_id", nil), Unknown, Unknown, ""},
	{"empty payment_id", 200, with("payment_id", " "), Unknown, Unknown, ""},
	{"long payment_id", 200, with("payment_id", strings.Repeat("ä", 129)), Unknown, Unknown, ""},
	{"payment_id with NUL", 200, with("payment_id", "pay\x00"), Unknown, Unknown, ""},
	{"payment_id with newline", 200, with("payment_id", "pay\n1"), Unknown, Unknown, ""},
	{"payment_id a number", 200, with("payment_id", 7), Unknown, Unknown, ""},
	{"no hold_id", 200, with("hold_id", nil), Unknown, Unknown, ""},
	{"other hold_id", 200, with("hold_id", foreign), Unknown, Unknown, ""},
	{"hold_id no id", 200, with("hold_id", "x"), Unknown, Unknown, ""},
	{"no amount", 200, with("amount", nil), Unknown, Unknown, ""},
	{"other amount", 200, with("amount", testHold.Amount-1), Unknown, Unknown, ""},
	{"amount a string", 200, with("amount", "9007199254740991"), Unknown, Unknown, ""},
	{"amount a fraction", 200, with("amount", json.Number("9007199254740991.0")), Unknown, Unknown, ""},
	{"amount null", 200, strings.Replace(good(nil), "9007199254740991", "null", 1), Unknown, Unknown, ""},
	{"no recipient_id", 200, with("recipient_id", nil), Unknown, Unknown, ""},
	{"other recipient_id", 200, with("recipient_id", testHold.Sender), Unknown, Unknown, ""},
	{"other sender_id", 200, with("sender_id", testHold.Recipient), Unknown, Unknown, ""},
	{"other currency", 200, with("currency", "EUR"), Unknown, Unknown, ""},

	{"refused 403", 403, banned, Refused, Refused, "recipient_banned"},
	{"refused 422", 422, `{"code":"recipient_closed","detail":"x"}`, Refused, Refused, "recipient_closed"},
	{"refused 400", 400, `{"code":"payment_forbidden"}`, Refused, Refused, "payment_forbidden"},
	{"refused 404", 404, banned, Refused, Refused, "recipient_banned"},
	{"refused, echoing", 403, good(map[string]any{"status": "refused", "code": "recipient_banned"}), Refused, Refused, "recipient_banned"},
	{"refused, another hold", 403, good(map[string]any{"status": "refused", "code": "recipient_banned", "hold_id": foreign}), Unknown, Unknown, ""},
	{"refused, code twice", 403, `{"code":"x","code":"recipient_banned"}`, Unknown, Unknown, ""},
	{"refused, cut off", 403, banned[:len(banned)-1], Unknown, Unknown, ""},
	{"refused in a 200", 200, good(map[string]any{"status": "refused", "code": "recipient_banned"}), Unknown, Refused, "recipient_banned"},
	{"refused in a 200, other code", 200, good(map[string]any{"status": "refused", "code": "x"}), Unknown, Unknown, ""},
	{"refused code in a 500", 500, banned, Unknown, Unknown, ""},
	{"refused code in a 302", 302, banned, Unknown, Unknown, ""},
	{"code in another case", 403, `{"code":"Recipient_Banned"}`, Unknown, Unknown, ""},
	{"code nested", 403, `{"error":{"code":"recipient_banned"}}`, Unknown, Unknown, ""},
	{"code not listed", 403, `{"code":"insufficient_scope"}`, Unknown, Unknown, ""},
	{"huge code not listed", 403, `{"code":"` + strings.Repeat("x\\u0000", 5000) + `"}`, Unknown, Unknown, ""},
	{"no code", 403, `{}`, Unknown, Unknown, ""},
	{"401", 401, `{"code":"unauthenticated"}`, Unknown, Unknown, ""},
	{"409", 409, `{"code":"idempotency_in_flight"}`, Unknown, Unknown, ""},
	{"422 key reused", 422, `{"code":"idempotency_key_reused"}`, Unknown, Unknown, ""},
	{"429", 429, "", Unknown, Unknown, ""},
	{"500", 500, good(nil), Unknown, Unknown, ""},
	{"503", 503, "", Unknown, Unknown, ""},

	{"404 empty", 404, "", Unknown, NeverSeen, ""},
	{"404 problem", 404, `{"code":"payment_not_found"}`, Unknown, NeverSeen, ""},
	{"404 numeric code", 404, `{"code":404}`, Unknown, NeverSeen, ""},
	{"404 plain text", 404, "404 page not found\n", Unknown, NeverSeen, ""},
	{"404 HTML", 404, "\n<!doctype html><title>nginx</title>", Unknown, Unknown, ""},
	{"410", 410, "", Unknown, Unknown, ""},
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	for _, c := range answers {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			url := serve(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(c.status)
				io.WriteString(w, c.body)
			})
			client := newClient(t, Config{URL: url})
			for op, want := range map[operation]Outcome{opPay: c.pay, opLookup: c.lookup} {
				code := ""
				if want == Refused {
					code = c.code
				}
				got := client.call(t.Context(), op, testHold)
				expect(t, string(op), got, want, code)
				if got.SureNotSent {
					t.Errorf("%s: an answered request was not sent: %+v", op, got)
				}
				if pending := errors.Is(got.Err, ErrPending); pending != (c.name == "status pending" && op == opLookup) {
					t.Errorf("%s: pending is %v", op, pending)
				}
			}
		})
	}
}

func TestHTML404ByItsType(t *testing.T) {
	t.Parallel()
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(404)
	})
	expect(t, "look-up", newClient(t, Config{URL: url}).Lookup(t.Context(), testHold), Unknown, "")
}
