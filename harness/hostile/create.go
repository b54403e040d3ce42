package hostile

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// amounts that are none, wherever an amount is read.
func amounts(s *suite) (list []probe) {
	const out, wrong = "amount_out_of_range", "invalid_json"
	for _, row := range []struct{ raw, code string }{
		{"0", out}, {"-0", out}, {"-1", out}, {"9007199254740992", out}, {"9007199254740993", out}, {"9223372036854775807", out},
		{"9223372036854775808", out}, {"-9223372036854775808", out}, {"-9223372036854775809", out}, {"18446744073709551616", out},
		{strings.Repeat("9", 5000), out}, {"-" + strings.Repeat("9", 5000), out},
		{"1.0", wrong}, {"1.5", wrong}, {"0.9999999999999999999999", wrong}, {"1e3", wrong}, {"1E3", wrong}, {"1e400", wrong}, {"1e-400", wrong},
		{"5e0", wrong}, {`"5"`, wrong}, {`""`, wrong}, {"null", wrong}, {"true", wrong}, {"[]", wrong}, {"[5]", wrong}, {"{}", wrong},
		{"007", wrong}, {"00", wrong}, {"-05", wrong}, {"+5", wrong}, {".5", wrong}, {"5.", wrong}, {"0x10", wrong}, {"0b1", wrong}, {"5_000", wrong},
		{"5,000", wrong}, {"٥", wrong}, {"５", wrong}, {"½", wrong}, {"NaN", wrong}, {"Infinity", wrong}, {"-Infinity", wrong}, {"-", wrong},
		{"5n", wrong}, {"5f", wrong}, {"", wrong}, {"5\x00", wrong}, {"1 2", wrong}, {"--5", wrong}, {"5e", wrong}, {"undefined", wrong},
	} {
		status := map[string]int{out: 422, wrong: 400}[row.code]
		name := "amount " + short([]byte(row.raw))
		list = append(list, s.create(name, s.doc("amount", row.raw), status, row.code))
		for _, way := range []string{"deposits", "withdrawals"} {
			list = append(list, probe{name: way + " " + name, method: "POST", path: "/v1/accounts/" + s.sender + "/" + way, token: s.service,
				body: `{"amount":` + row.raw + `,"idempotency_key":` + quote(s.key()) + `}`, status: status, code: row.code})
		}
	}
	return append(list, s.create("no amount", s.doc("amount", omit), 422, "missing_field"))
}

// times at which nothing can unlock.
func times(s *suite) (list []probe) {
	const out, field, wrong = "unlock_at_out_of_range", "invalid_field", "invalid_json"
	at := func(name, raw string, status int, code string) {
		list = append(list, s.create("unlock_at "+name, s.doc("unlock_in_seconds", omit, "unlock_at", raw), status, code))
	}
	ahead := func(d time.Duration, layout string) string { return quote(time.Now().Add(d).UTC().Format(layout)) }
	const day = 24 * time.Hour
	at("a minute ago", ahead(-time.Minute, time.RFC3339), 422, out)
	at("in 90 d and 1 min", ahead(90*day+time.Minute, time.RFC3339), 422, out)
	at("in 91 d of another zone", quote(time.Now().Add(91*day).In(time.FixedZone("", -11*3600)).Format(time.RFC3339)), 422, out)
	for _, t := range []string{"9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999999999-23:59", "0001-01-01T00:00:00Z", "0000-01-01T00:00:00Z",
		"1969-12-31T23:59:59Z", "1999-12-31T23:59:59Z", "2000-01-01T00:00:00Z", "0000-01-01T00:00:00+23:59"} {
		at(t, quote(t), 422, out)
	}
	for _, t := range []string{"", " ", "tomorrow", "now", "2031-01-01", "2031-01-01T00:00", "2031-01-01T00:00:00", "2031-01-01 00:00:00Z",
		"2031-01-01T00:00:60Z", "2016-12-31T23:59:60Z", "2031-01-01T24:00:00Z", "2031-02-30T00:00:00Z", "2031-13-01T00:00:00Z", "2031-00-01T00:00:00Z",
		"2031-01-01T00:00:00,5Z", "2031-01-01T0:00:00Z", "2031-01-01T00:00:00+24:00", "2031-01-01T00:00:00+0000", "2031-01-01T00:00:00UTC",
		"2031-01-01T00:00:00Z ", " 2031-01-01T00:00:00Z", "+2031-01-01T00:00:00Z", "-2031-01-01T00:00:00Z", "12031-01-01T00:00:00Z",
		"2031-W01-1T00:00:00Z", "20310101T000000Z", "1924992000", "２０３１-01-01T00:00:00Z", "2031-01-01T00:00:00.Z", "2031-01-01T00:00:00ZZ",
		"2031-01-01T00:00:00[UTC]", "2031-01-01T00:00:00Z\x00", "\u202e2031-01-01T00:00:00Z", strings.Repeat("2", 9000),
		"2031-01-01T00:00:00." + strings.Repeat("9", 5000) + "Y"} {
		at(short([]byte(t)), quote(t), 422, field)
	}
	for _, raw := range []string{"1924992000", "null", "true", "[]", "{}", `["2031-01-01T00:00:00Z"]`} {
		at(raw, raw, 400, wrong)
	}
	list = append(list,
		s.create("both unlock fields", s.doc("unlock_at", ahead(time.Hour, time.RFC3339)), 422, field),
		s.create("neither unlock field", s.doc("unlock_in_seconds", omit), 422, "missing_field"),
		s.create("both unlock fields, one null", s.doc("unlock_at", "null"), 400, wrong))
	for raw, code := range map[string]string{"0": out, "-1": out, "7776001": out, "9223372036854775807": out, "9223372036854776": out,
		"99999999999999999999": out, "1.5": wrong, "1e2": wrong, `"60"`: wrong, "null": wrong, "true": wrong, "[60]": wrong, "060": wrong, "٦": wrong} {
		list = append(list, s.create("unlock_in_seconds "+raw, s.doc("unlock_in_seconds", raw), map[string]int{out: 422, wrong: 400}[code], code))
	}
	return list
}

// fields other than amount, time, id and key.
func fields(s *suite) []probe {
	return []probe{
		s.create("unknown currency", s.doc("currency", `"XYZ"`), 422, "unknown_currency"),
		s.create("currency in lower case", s.doc("currency", `"rbx"`), 422, "unknown_currency"),
		s.create("empty currency", s.doc("currency", `""`), 422, "unknown_currency"),
		s.create("a currency of 10,000 letters", s.doc("currency", quote(strings.Repeat("R", 10_000))), 422, "unknown_currency"),
		s.create("a currency with U+0000", s.doc("currency", `"RBX\u0000"`), 422, "unknown_currency"),
		s.create("a currency with SQL", s.doc("currency", `"RBX'; DROP TABLE holds; --"`), 422, "unknown_currency"),
		s.create("currency null", s.doc("currency", "null"), 400, "invalid_json"),
		s.create("currency as a number", s.doc("currency", "7"), 400, "invalid_json"),
		s.create("a reference of 65 characters", s.doc("reference", quote(strings.Repeat("é", 65))), 422, "reference_too_long"),
		s.create("a reference with U+0000", s.doc("reference", `"a\u0000b"`), 422, "invalid_field"),
		s.create("reference null", s.doc("reference", "null"), 400, "invalid_json"),
		s.create("reference as an object", s.doc("reference", `{"a":1}`), 400, "invalid_json"),
		s.create("self payment", s.doc("recipient_id", quote(s.sender)), 422, "self_payment"),
		s.create("self payment in capitals", s.doc("recipient_id", quote(strings.ToUpper(s.sender))), 422, "self_payment"),
		s.create("unknown recipient", s.doc("recipient_id", quote(newUser())), 422, "unknown_recipient"),
		s.create("unknown sender", s.doc("sender_id", quote(newUser())), 422, "unknown_sender"),
		s.create("a status", s.doc("status", `"EXECUTED"`), 400, "unknown_field"),
		s.create("a hold id of the client's", s.doc("hold_id", quote(s.hold)), 400, "unknown_field"),
		s.create("a prototype", s.doc("__proto__", `{"amount":1}`), 400, "unknown_field"),
		s.create("metadata, which is for later", s.doc("metadata", `{"a":"b"}`), 400, "unknown_field"),
		s.create("depends_on, which is for later", s.doc("depends_on", quote(s.hold)), 400, "unknown_field"),
		s.create("a field of SQL", s.doc(`amount"; DROP TABLE holds; --`, "1"), 400, "unknown_field"),
	}
}

// badIDs are texts that are no id at all.
func badIDs(good string) []string {
	plain := strings.ReplaceAll(good, "-", "")
	return []string{"", " ", "x", "1", "null", plain, "{" + good + "}", "(" + good + ")", "urn:uuid:" + good, good + "0", good[:35], " " + good, good + " ",
		good + "\n", strings.Replace(good, "-", "_", 1), strings.Replace(good, "-", "", 1) + "0", good[:35] + "g", good[:35] + "０", good[:34] + "é",
		"0x" + plain, plain + "----", "%00" + good[3:], good[:33] + "\x00\x00\x00", "../" + good[3:], "' OR 1=1; --" + good[12:], strings.Repeat("a", 10_000),
		good + "," + good, "-" + good, "1e36", "00000000-0000-0000-0000-00000000000", "\ufeff" + good[1:]}
}

// ids in bodies.
func ids(s *suite) (list []probe) {
	for _, field := range []string{"sender_id", "recipient_id"} {
		for _, id := range append(badIDs(s.recipient), "00000000-0000-0000-0000-000000000000") {
			list = append(list, s.create(fmt.Sprintf("%s %.60q", field, id), s.doc(field, quote(id)), 422, "invalid_id"))
		}
		list = append(list, s.create(field+" missing", s.doc(field, omit), 422, "missing_field"))
		for _, raw := range []string{"null", "7", "true", "[]", "{}", `["` + s.recipient + `"]`} {
			list = append(list, s.create(field+" "+raw, s.doc(field, raw), 400, "invalid_json"))
		}
	}
	return list
}

// keys that are none, and keys that contradict one another.
func keys(s *suite) (list []probe) {
	const missing, invalid, conflict = "idempotency_key_missing", "idempotency_key_invalid", "idempotency_key_conflict"
	in := func(name, raw, code string, headers ...string) {
		list = append(list, s.create("key "+name, s.doc("idempotency_key", raw), 400, code, headers...))
	}
	in("none", omit, missing)
	in("empty", `""`, missing)
	in("empty header", omit, missing, "Idempotency-Key", "")
	in("null", "null", "invalid_json")
	in("number", "7", "invalid_json")
	in("array", `["k"]`, "invalid_json")
	in("of 256 characters", quote(strings.Repeat("k", 256)), invalid)
	in("of 256 wide characters", quote(strings.Repeat("語", 256)), invalid)
	in("of 10,000 characters", quote(strings.Repeat("k", 10_000)), invalid)
	in("of 256 in a header", omit, invalid, "Idempotency-Key", strings.Repeat("k", 256))
	for _, c := range []string{`\u0000`, `\u0001`, `\n`, `\r`, `\t`, `\u001b`, `\u007f`, `\u0085`} {
		in("with the control character "+c, `"a`+c+`b"`, invalid)
	}
	in("tab in a header", omit, invalid, "Idempotency-Key", "a\tb")
	in("not UTF-8 in a header", omit, invalid, "Idempotency-Key", "a\xffb")
	in("body against header", `"a"`, conflict, "Idempotency-Key", "b")
	in("body against the other header", `"a"`, conflict, "X-Idempotency-Key", "b")
	in("header against header", omit, conflict, "Idempotency-Key", "a", "X-Idempotency-Key", "b")
	in("the same header twice", omit, conflict, "Idempotency-Key", "a", "Idempotency-Key", "b")
	in("one of three differs", `"a"`, conflict, "Idempotency-Key", "a", "X-Idempotency-Key", "A")
	in("an empty header beside the body", `"a"`, conflict, "Idempotency-Key", "")
	in("an empty body beside the header", `""`, conflict, "Idempotency-Key", "a")
	in("a list in one header", `"a"`, conflict, "Idempotency-Key", "a, a")
	list = append(list, s.create("the key of another request", s.doc("idempotency_key", quote(s.mark+"-1")), 422, "idempotency_key_reused"))
	for _, way := range []string{"deposits", "withdrawals"} {
		list = append(list, probe{name: way + " without a key", method: "POST", path: "/v1/accounts/" + s.sender + "/" + way, token: s.service,
			body: `{"amount":1}`, status: 400, code: missing})
	}
	return list
}

// funds are refusals that are remembered under their key.
func funds(s *suite) []probe {
	poor := s.doc("amount", "9007199254740991")
	withdraw := probe{name: "withdraw too much", method: "POST", path: "/v1/accounts/" + s.sender + "/withdrawals", token: s.service,
		body: `{"amount":9007199254740991,"idempotency_key":` + quote(s.key()) + `}`, status: 402, code: "insufficient_funds"}
	again := withdraw
	again.name, again.contains = "withdraw too much again", "Idempotent-Replayed"
	last := s.create("too much again", poor, 402, "insufficient_funds")
	last.contains = "Idempotent-Replayed"
	return []probe{s.create("too much", poor, 402, "insufficient_funds"), last, withdraw, again,
		s.create("the key of a refusal", strings.Replace(poor, "9007199254740991", "1", 1), 422, "idempotency_key_reused"),
		{name: "spend from an empty purse", method: "POST", path: "/v1/holds", token: s.other, body: s.doc("sender_id", quote(s.stranger)), status: 402, code: "insufficient_funds"}}
}

// accepted are requests at the edge that are good: each must be taken, and the
// money comes back when it is cancelled.
func accepted(s *suite) {
	at := func(t string) string { return s.doc("unlock_in_seconds", omit, "unlock_at", quote(t)) }
	in := time.Now().UTC().Add(time.Hour)
	for name, p := range map[string]probe{
		"the smallest amount":          s.create("", s.doc("amount", "1"), 201, ""),
		"a key of 255 wide characters": s.create("", s.doc("idempotency_key", quote(s.key()+strings.Repeat("語", 240))), 201, ""),
		"a key of one space":           s.create("", s.doc("idempotency_key", quote(" ")), 201, ""),
		"a key in all three places":    s.create("", s.doc("idempotency_key", quote(s.mark+"-x")), 201, "", "Idempotency-Key", s.mark+"-x", "X-Idempotency-Key", s.mark+"-x"),
		"89 d 23 h":                    s.create("", s.doc("unlock_in_seconds", fmt.Sprint(90*86400)), 201, ""),
		"nanoseconds":                  s.create("", at(in.Format("2006-01-02T15:04:05")+".123456789Z"), 201, ""),
		"another zone":                 s.create("", at(in.In(time.FixedZone("", 5*3600+2700)).Format(time.RFC3339)), 201, ""),
		"small letters in the time":    s.create("", at(strings.ToLower(in.Format(time.RFC3339))), 201, ""),
		"ids in capitals":              s.create("", s.doc("sender_id", quote(strings.ToUpper(s.sender)), "recipient_id", quote(strings.ToUpper(s.recipient))), 201, ""),
		"a reference of 64 characters": s.create("", s.doc("reference", quote(strings.Repeat("語", 64))), 201, ""),
		"a reference of markup":        s.create("", s.doc("reference", quote(`<script>alert(1)</script>'"\u202e`)), 201, ""),
		"a reference that dtm greps":   s.create("", s.doc("reference", quote("FAILURE ONGOING")), 201, ""),
		"white space in the document":  s.create("", " \t\r\n"+s.doc()+"\n\n", 201, ""),
		"names with escapes":           s.create("", strings.Replace(s.doc(), `"amount"`, `"\u0061mount"`, 1), 201, ""),
		"a character set":              s.create("", s.doc(), 201, "", "Content-Type", `Application/JSON; Charset="UTF-8"`),
		"a body in chunks":             s.create("", s.chunked(), 201, "", "Transfer-Encoding", "chunked"),
		"a scheme in small letters":    {method: "POST", path: "/v1/holds", body: s.doc(), status: 201, headers: []string{"Authorization", "bearer " + s.service}},
	} {
		p.name = name
		a := s.try(p)
		where := a.header.Get("Location")
		if where == "" {
			s.found(name, "no Location: %d %s", a.status, short(a.body))
			continue
		}
		s.try(probe{name: name + ", cancelled", method: "DELETE", path: where, token: s.user, status: 200, contains: `"CANCELLED"`})
	}
	s.mixed()
	s.purse(purse-5, 5)
}

// mixed is a batch with one bad item among good ones: the bad one fails alone.
func (s *suite) mixed() {
	list := []string{s.doc(), s.doc("amount", "0"), s.doc(), s.doc("amount", "9007199254740991"), s.doc("recipient_id", quote(newUser())), s.doc()}
	a := s.try(probe{name: "one bad item among good ones", method: "POST", path: "/v1/holds:batchCreate", token: s.service,
		body: `{"holds":[` + strings.Join(list, ",") + `]}`, status: 200})
	var got struct {
		Results []struct {
			Status int
			Hold   struct {
				ID string `json:"hold_id"`
			}
		}
	}
	err := json.Unmarshal(a.body, &got)
	var statuses []int
	for _, r := range got.Results {
		if statuses = append(statuses, r.Status); r.Status == 201 {
			s.try(probe{name: "an item, cancelled", method: "DELETE", path: "/v1/holds/" + r.Hold.ID, token: s.user, status: 200, contains: `"CANCELLED"`})
		}
	}
	if want := []int{201, 422, 201, 402, 422, 201}; err != nil || !slices.Equal(statuses, want) {
		s.found("one bad item among good ones", "statuses %v, want %v: %v", statuses, want, err)
	}
}

// chunked is a good create as a chunked body.
func (s *suite) chunked() string {
	doc := s.doc()
	return fmt.Sprintf("%x\r\n%s\r\n%x;an=extension\r\n%s\r\n0\r\nX-Trailer: x\r\n\r\n", 7, doc[:7], len(doc)-7, doc[7:])
}
