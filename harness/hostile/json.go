package hostile

import (
	"fmt"
	"strings"
)

// withBody are the routes that read a document, with a document that could be
// good as far as its fields go.
func (s *suite) withBody() map[string]probe {
	route := func(method, path, token, body string, admin bool) probe {
		return probe{method: method, path: path, token: token, body: body, admin: admin}
	}
	account := "/v1/accounts/" + s.sender
	bans := s.sign(claims{"sub": "hostile", "act": "service"})
	list := map[string]probe{
		"create":      route("POST", "/v1/holds", s.service, s.doc(), false),
		"batch":       route("POST", "/v1/holds:batchCreate", s.service, `{"holds":[`+s.doc()+`]}`, false),
		"deposit":     route("POST", account+"/deposits", s.service, `{"amount":1,"idempotency_key":`+quote(s.key())+`}`, false),
		"withdrawal":  route("POST", account+"/withdrawals", s.service, `{"amount":1,"idempotency_key":`+quote(s.key())+`}`, false),
		"open":        route("PUT", account, s.service, `{"currency":"RBX"}`, false),
		"status":      route("PATCH", account, bans, `{"status":"banned","reason":"x"}`, false),
		"releaseMany": route("POST", "/admin/v1/holds:release", s.operator, `{"hold_ids":[`+quote(s.hold)+`],"reason":"x"}`, true),
		"release":     route("POST", "/admin/v1/holds/"+s.hold+":release", s.operator, `{"reason":"x"}`, true),
	}
	for _, act := range []string{"retry", "refund", "resolve", "close"} {
		list[act] = route("POST", "/admin/v1/dead-letters/"+s.hold+":"+act, s.operator, `{"reason":"x"}`, true)
	}
	return list
}

// documents that are no good JSON, sent to everything that reads JSON.
func documents(s *suite) (list []probe) {
	for route, p := range s.withBody() {
		good := p.body
		open, rest := good[:len(good)-1], good[1:]
		for name, c := range map[string]struct{ body, code string }{
			"an array":                      {"[" + good + "]", "invalid_json"},
			"null":                          {"null", "invalid_json"},
			"a string":                      {quote(good), "invalid_json"},
			"a number":                      {"7", "invalid_json"},
			"white space":                   {" \n\t ", "invalid_json"},
			"half a document":               {open, "invalid_json"},
			"text after it":                 {good + "x", "invalid_json"},
			"two documents":                 {good + good, "invalid_json"},
			"two lines of documents":        {good + "\n" + good, "invalid_json"},
			"a comment":                     {"/* hello */" + good, "invalid_json"},
			"a comment in it":               {"{// hello\n" + rest, "invalid_json"},
			"a comment after it":            {good + "# hello", "invalid_json"},
			"a trailing comma":              {open + ",}", "invalid_json"},
			"a leading comma":               {"{," + rest, "invalid_json"},
			"a byte order mark":             {"\ufeff" + good, "invalid_json"},
			"UTF-16":                        {"\xff\xfe{\x00}\x00", "invalid_json"},
			"single quotes":                 {strings.ReplaceAll(good, `"`, `'`), "invalid_json"},
			"names without quotes":          {strings.ReplaceAll(good, `"`, ``), "invalid_json"},
			"a NUL after it":                {good + "\x00", "invalid_json"},
			"a NUL in it":                   {"{\x00" + rest, "invalid_json"},
			"a form":                        {"a=b&c=d", "invalid_json"},
			"XML":                           {`<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>`, "invalid_json"},
			"bad UTF-8":                     {open + ",\"x\":\"\xff\"}", "invalid_json"},
			"UTF-8 of a surrogate":          {open + ",\"x\":\"\xed\xa0\x80\"}", "invalid_json"},
			"overlong UTF-8":                {open + ",\"x\":\"\xc0\x80\"}", "invalid_json"},
			"a bare control character":      {open + ",\"x\":\"a\nb\"}", "invalid_json"},
			"a bad escape":                  {open + `,"x":"\x41"}`, "invalid_json"},
			"half an escape":                {open + `,"x":"\u12"}`, "invalid_json"},
			"a vertical tab between":        {"{\v" + rest, "invalid_json"},
			"a no-break space between":      {"{\u00a0" + rest, "invalid_json"},
			"NaN":                           {open + `,"x":NaN}`, "invalid_json"},
			"an unknown field":              {open + `,"nonsense":1}`, "unknown_field"},
			"an unknown field first":        {`{"nonsense":1,` + rest, "unknown_field"},
			"a field with an empty name":    {open + `,"":1}`, "unknown_field"},
			"a name with a lone surrogate":  {open + `,"\ud800":1}`, "invalid_json"},
			"a name with markup":            {open + `,"<script>":1}`, "unknown_field"},
			"a name of 10,000 letters":      {open + `,"` + strings.Repeat("n", 10_000) + `":1}`, "unknown_field"},
			"a thousand unknown fields":     {open + strings.Repeat(`,"z":1`, 1000) + "}", "unknown_field"},
			"a field twice":                 {`{` + firstField(good) + `,` + rest, "duplicate_field"},
			"a field twice, once escaped":   {`{` + escaped(firstField(good)) + `,` + rest, "duplicate_field"},
			"a field in capitals":           {"{" + strings.ToUpper(firstName(good)) + good[1+len(firstName(good)):], "unknown_field"},
			"8,000 open brackets":           {strings.Repeat("[", 8000), "invalid_json"},
			"3,000 open objects":            {strings.Repeat(`{"a":`, 3000), "invalid_json"},
			"nested deeply in an odd field": {open + `,"x":` + strings.Repeat("[", 7000) + strings.Repeat("]", 7000) + "}", "invalid_json"},
		} {
			q := p
			q.name, q.body, q.status, q.code = route+": "+name, c.body, 400, c.code
			list = append(list, q)
		}
		big := p
		big.name, big.body, big.status, big.code = route+": 100,000 open brackets", strings.Repeat("[", 100_000), 413, "body_too_large"
		if route == "batch" || route == "releaseMany" {
			big.status, big.code = 400, "invalid_json"
		}
		list = append(list, big)
	}
	return append(list, surrogates(s)...)
}

// surrogates: text that JSON can write and no database can keep.
func surrogates(s *suite) (list []probe) {
	for _, raw := range []string{`"\ud800"`, `"a\udc00b"`, `"\udfff\ud800"`, `"\ud83d"`} {
		for _, field := range []string{"reference", "idempotency_key", "currency", "sender_id", "unlock_at"} {
			list = append(list, s.create(fmt.Sprintf("%s is a lone surrogate %s", field, raw), s.doc(field, raw), 400, "invalid_json"))
		}
	}
	return list
}

// firstField is the first name with its value, firstName the name alone, as
// they stand in the document.
func firstField(doc string) string {
	name := firstName(doc)
	value := doc[1+len(name):]
	depth, inText := 0, false
	for i := 0; i < len(value); i++ {
		switch c := value[i]; {
		case c == '"':
			inText = !inText
		case inText:
		case c == '[' || c == '{':
			depth++
		case (c == ']' || c == '}') && depth > 0:
			depth--
		case (c == ',' || c == '}') && depth == 0:
			return name + value[:i]
		}
	}
	return name + value
}

func firstName(doc string) string {
	end := strings.IndexByte(doc[2:], '"') + 3
	return doc[1:end]
}

func escaped(field string) string {
	return fmt.Sprintf(`"\u%04x%s`, field[1], field[2:])
}
