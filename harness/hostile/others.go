package hostile

import (
	"fmt"
	"strings"
)

// accounts: opening, changing and moving cash.
func accounts(s *suite) (list []probe) {
	admin := s.sign(claims{"sub": "hostile", "act": "service"})
	account := "/v1/accounts/" + s.sender
	patch := func(name, body string, status int, code string) {
		list = append(list, probe{name: name, method: "PATCH", path: account, token: admin, body: body, status: status, code: code})
	}
	for _, status := range []string{`""`, `"BANNED"`, `"deleted"`, `"open "`, `"banned\u0000"`, `"closed;open"`} {
		patch("status "+status, `{"status":`+status+`,"reason":"x"}`, 422, "invalid_field")
	}
	for _, raw := range []string{"null", "1", "true", "[]", `{"a":1}`} {
		patch("status "+raw, `{"status":`+raw+`,"reason":"x"}`, 400, "invalid_json")
	}
	patch("no status", `{"reason":"x"}`, 422, "missing_field")
	patch("an empty document", `{}`, 422, "missing_field")
	patch("a long reason", `{"status":"banned","reason":`+quote(strings.Repeat("é", 501))+`}`, 422, "invalid_field")
	patch("a reason with U+0000", `{"status":"banned","reason":"a\u0000b"}`, 422, "invalid_field")
	patch("close with coins", `{"status":"closed","reason":"x"}`, 409, "account_not_empty")
	patch("an unknown currency", `{"status":"banned","reason":"x","currency":"XYZ"}`, 422, "unknown_currency")
	patch("a balance", `{"status":"open","reason":"x","available":1000000}`, 400, "unknown_field")
	list = append(list,
		probe{name: "ban oneself open", method: "PATCH", path: account, token: s.sign(claims{"scope": "accounts:write"}), body: `{"status":"open"}`, status: 403, code: "insufficient_scope"},
		probe{name: "ban nobody", method: "PATCH", path: "/v1/accounts/" + newUser(), token: admin, body: `{"status":"banned","reason":"x"}`, status: 404, code: "account_not_found"},
		probe{name: "open another's", method: "PUT", path: "/v1/accounts/" + newUser(), token: s.user, status: 403, code: "forbidden_account"},
		probe{name: "open in another currency", method: "PUT", path: account, token: s.service, body: `{"currency":"EUR"}`, status: 422, code: "unknown_currency"},
		probe{name: "open again", method: "PUT", path: account, token: s.service, status: 200},
		probe{name: "a body to open that is not JSON", method: "PUT", path: account, token: s.service, body: "x", headers: []string{"Content-Type", "text/plain"}, status: 415, code: "unsupported_media_type"})
	for _, way := range []string{"deposits", "withdrawals"} {
		cash := func(name, body string, status int, code string) {
			list = append(list, probe{name: way + " " + name, method: "POST", path: account + "/" + way, token: s.service, body: body, status: status, code: code})
		}
		cash("without an amount", `{"idempotency_key":"k"}`, 422, "missing_field")
		cash("of another currency", `{"amount":1,"currency":"EUR","idempotency_key":"k"}`, 422, "unknown_currency")
		cash("with a recipient", `{"amount":1,"idempotency_key":"k","recipient_id":"`+s.stranger+`"}`, 400, "unknown_field")
		list = append(list, probe{name: way + " to nobody", method: "POST", path: "/v1/accounts/" + newUser() + "/" + way, token: s.service,
			body: `{"amount":1,"idempotency_key":"k"}`, status: 404, code: "account_not_found"})
	}
	list = append(list, probe{name: "a deposit key with another amount", method: "POST", path: account + "/deposits", token: s.service,
		body: `{"amount":7,"idempotency_key":"hostile"}`, status: 422, code: "idempotency_key_reused"})
	return list
}

// batches that are refused as a whole, or in each of their items.
func batches(s *suite) (list []probe) {
	add := func(name, body string, status int, code string, headers ...string) {
		list = append(list, probe{name: name, method: "POST", path: "/v1/holds:batchCreate", token: s.service, body: body, status: status, code: code, headers: headers})
	}
	many := func(n int, item string) string {
		return `{"holds":[` + strings.TrimSuffix(strings.Repeat(item+",", n), ",") + `]}`
	}
	add("no items", `{"holds":[]}`, 422, "invalid_field")
	add("no list", `{}`, 422, "missing_field")
	for _, raw := range []string{"null", "{}", `"x"`, "7", "true"} {
		add("holds "+raw, `{"holds":`+raw+`}`, 400, "invalid_json")
	}
	add("101 items", many(101, s.doc("amount", "0")), 422, "batch_too_large")
	add("10,000 empty items", many(10_000, "{}"), 422, "batch_too_large")
	add("256 KiB of white space", `{"holds":[`+strings.Repeat(" ", 256<<10)+`]}`, 413, "body_too_large")
	add("items twice", `{"holds":[],"holds":[]}`, 400, "duplicate_field")
	add("a key in a header", many(1, s.doc("amount", "0")), 400, "idempotency_key_conflict", "Idempotency-Key", "a")
	add("a torn item", `{"holds":[`+s.doc()+`,{]}`, 400, "invalid_json")
	add("a lone surrogate in an item that is no text", `{"holds":["\ud800"]}`, 400, "invalid_json")
	inside := func(name, item, code string) {
		list = append(list, probe{name: "item: " + name, method: "POST", path: "/v1/holds:batchCreate", token: s.service, body: many(1, item), status: 200, contains: `"code":"` + code + `"`})
	}
	for _, raw := range []string{"null", "7", `"x"`, "[]", "true"} {
		inside(raw, raw, "invalid_json")
	}
	inside("a fraction", s.doc("amount", "1.0"), "invalid_json")
	inside("too much", s.doc("amount", "9007199254740992"), "amount_out_of_range")
	inside("a field twice", `{"amount":1,`+s.doc()[1:], "duplicate_field")
	inside("an unknown field", s.doc("nonsense", "1"), "unknown_field")
	inside("no key", s.doc("idempotency_key", omit), "idempotency_key_missing")
	inside("no id", s.doc("sender_id", `"x"`), "invalid_id")
	inside("nobody", s.doc("recipient_id", quote(newUser())), "unknown_recipient")
	list = append(list, probe{name: "another's purse", method: "POST", path: "/v1/holds:batchCreate", token: s.other, body: many(3, s.doc()), status: 200, contains: `"forbidden_sender"`},
		probe{name: "100 bad items", method: "POST", path: "/v1/holds:batchCreate", token: s.service, body: many(100, s.doc("amount", "0")), status: 200, contains: `"amount_out_of_range"`})
	return list
}

// operators: the writes of the admin API, none of which can apply.
func operators(s *suite) (list []probe) {
	post := func(name, path, body string, status int, code string) {
		list = append(list, probe{name: path[9:] + " " + name, method: "POST", path: path, token: s.operator, admin: true, body: body, status: status, code: code})
	}
	nobody := strings.Replace(s.hold, s.hold[30:], "000000", 1)
	for act, code := range map[string]string{"retry": "not_retryable", "refund": "not_refundable", "close": "dead_letter_not_found"} {
		path := "/admin/v1/dead-letters/" + s.hold + ":" + act
		post("of a hold that waits", path, `{"reason":"x"}`, map[bool]int{true: 404, false: 409}[act == "close"], code)
		post("without a reason", path, `{}`, 422, "reason_missing")
		post("with an empty reason", path, `{"reason":" \t\n"}`, 422, "reason_missing")
		post("with a long reason", path, `{"reason":`+quote(strings.Repeat("x", 501))+`}`, 422, "invalid_field")
		post("with U+0000", path, `{"reason":"\u0000"}`, 422, "invalid_field")
		post("with a number", path, `{"reason":1}`, 400, "invalid_json")
		post("with an outcome", path, `{"reason":"x","outcome":"paid"}`, 400, "unknown_field")
		post("of nobody's hold", "/admin/v1/dead-letters/"+nobody+":"+act, `{"reason":"x"}`, 404, "hold_not_found")
		post("of an id", "/admin/v1/dead-letters/no-id:"+act, `{"reason":"x"}`, 422, "invalid_id")
	}
	resolve := "/admin/v1/dead-letters/" + s.hold + ":resolve"
	for _, outcome := range []string{`""`, `"PAID"`, `"refused"`, `"paid\u0000"`} {
		post("outcome "+outcome, resolve, `{"outcome":`+outcome+`,"evidence":"x"}`, 422, "invalid_field")
	}
	post("without an outcome", resolve, `{"evidence":"x"}`, 422, "invalid_field")
	post("without evidence", resolve, `{"outcome":"paid","reason":"x"}`, 422, "evidence_missing")
	post("a hold that waits", resolve, `{"outcome":"paid","evidence":"x"}`, 409, "not_resolvable")
	post("not paid, a hold that waits", resolve, `{"outcome":"not_paid","evidence":"x"}`, 409, "not_resolvable")
	release := "/admin/v1/holds/" + s.hold + ":release"
	post("before its time", release, `{"reason":"x"}`, 409, "hold_not_matured")
	post("without a reason", release, `{}`, 422, "reason_missing")
	post("without a document", release, "", 400, "invalid_json")
	post("of an unknown act", "/admin/v1/holds/"+s.hold+":explode", `{"reason":"x"}`, 404, "not_found")
	many := "/admin/v1/holds:release"
	post("of nothing", many, `{"reason":"x"}`, 422, "missing_field")
	post("without a reason", many, fmt.Sprintf(`{"hold_ids":[%q]}`, s.hold), 422, "reason_missing")
	post("of one id", many, fmt.Sprintf(`{"hold_ids":%q,"reason":"x"}`, s.hold), 400, "invalid_json")
	post("of numbers", many, `{"hold_ids":[1,2],"reason":"x"}`, 422, "invalid_id")
	post("of no ids", many, `{"hold_ids":["x"],"reason":"x"}`, 422, "invalid_id")
	return list
}
