package hostile

import (
	"crypto/ed25519"
	"encoding/base64"
	"strings"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/auth"
)

// headers around a good document.
func headers(s *suite) (list []probe) {
	const media = "unsupported_media_type"
	for _, t := range []string{omit, "", "text/plain", "text/json", "application/xml", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
		"application/json; charset=latin1", "application/json; charset=utf-16", "application/json; charset=utf-8; charset=latin1", "application/json, application/json",
		"application/json; a=b", "application/problem+json", "application/vnd.api+json", "*/*", "application/*", "application/json;;", "json", "APPLICATION", ";",
		"application/json; charset", "application/jsonx", strings.Repeat("a", 5000), "application/json; charset=" + strings.Repeat("u", 5000), "\xff/json"} {
		list = append(list, s.create("Content-Type "+short([]byte(t)), s.doc(), 415, media, "Content-Type", t))
	}
	list = append(list, s.create("two Content-Types", s.doc(), 415, media, "Content-Type", "application/json", "Content-Type", "application/json"))
	for _, e := range []string{"gzip", "deflate", "br", "identity", "", "gzip, gzip", "x", "GZIP"} {
		list = append(list, s.create("Content-Encoding "+e, s.doc(), 415, media, "Content-Encoding", e))
	}
	many := []string{}
	for range 300 {
		many = append(many, "X-Many", "x")
	}
	bad := s.doc("amount", "0")
	for name, h := range map[string][]string{
		"300 headers": many, "a forwarded host": {"X-Forwarded-Host", "evil.example", "X-Forwarded-Proto", "gopher", "Forwarded", "host=evil.example"},
		"another host": {"Host", "evil.example"}, "an override": {"X-HTTP-Method-Override", "DELETE"}, "a rewritten path": {"X-Original-URL", "/admin/v1/overview", "X-Rewrite-URL", "/admin"},
		"a client address": {"X-Forwarded-For", "127.0.0.1", "X-Real-Ip", "::1"}, "an origin": {"Origin", "https://evil.example"}, "a cookie": {"Cookie", strings.Repeat("a=b;", 500)},
		"an upgrade": {"Connection", "Upgrade, HTTP2-Settings", "Upgrade", "h2c", "HTTP2-Settings", "AAMAAABkAAQAAP__"}, "a range": {"Range", "bytes=0-1,0-2,0-3"},
		"conditions": {"If-Match", "*", "If-None-Match", "*", "If-Modified-Since", "x"}, "another language": {"Accept", "text/html", "Accept-Language", "xx", "Accept-Encoding", "gzip;q=1"},
		"a hop that is not": {"Connection", "Authorization, close"}, "odd bytes": {"X-Odd", "\x80\xff"}, "a request id of markup": {"X-Request-Id", "<script>"},
		"two request ids": {"X-Request-Id", "a", "X-Request-Id", "b"}, "a long request id": {"X-Request-Id", strings.Repeat("x", 5000)},
	} {
		list = append(list, s.create(name, bad, 422, "amount_out_of_range", h...))
	}
	return list
}

// tokens that are none, for a create and for an operator's read.
func tokens(s *suite) (list []probe) {
	now := time.Now().Unix()
	header := func(h claims) string {
		h["typ"] = "JWT"
		if _, there := h["alg"]; !there {
			h["alg"] = "HS256"
		}
		return s.signAs(h, nil)
	}
	good := s.sign(nil)
	parts := strings.Split(good, ".")
	none := func(alg string) string { return part(claims{"alg": alg, "typ": "JWT"}) + "." + parts[1] + "." }
	public, private, _ := ed25519.GenerateKey(nil)
	foreign := part(claims{"alg": "EdDSA", "typ": "JWT", "jwk": claims{"kty": "OKP", "crv": "Ed25519", "x": base64.RawURLEncoding.EncodeToString(public)}}) + "." + parts[1]
	foreign += "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(private, []byte(foreign)))
	for name, token := range map[string]string{
		"not a token": "abc", "dots": "..", "two parts": parts[0] + "." + parts[1], "four parts": good + ".x", "a cut signature": good[:len(good)-2],
		"a changed claim": parts[0] + "." + part(claims{"sub": s.sender}) + "." + parts[2], "no signature": parts[0] + "." + parts[1] + ".",
		"alg none": none("none"), "alg None": none("None"), "alg NONE": none("NONE"), "alg none, signed": none("none") + parts[2], "no alg": none(""),
		"alg HS384": header(claims{"alg": "HS384"}), "alg RS256": header(claims{"alg": "RS256"}), "alg as a number": header(claims{"alg": 256}),
		"a critical extension": header(claims{"crit": []string{"exp"}}), "a key of the token's own": foreign,
		"another secret": s.seal(parts[0]+"."+parts[1], []byte(strings.Repeat("k", 40))), "an empty secret": s.seal(parts[0]+"."+parts[1], nil),
		"padding": good + "==", "standard base64": strings.ReplaceAll(parts[0], "-", "+") + "=." + parts[1] + "." + parts[2],
		"another audience": s.sign(claims{"aud": "else"}), "no audience": s.sign(claims{"aud": nil}), "audience as a number": s.sign(claims{"aud": 7}),
		"an empty list of audiences": s.sign(claims{"aud": []string{}}), "another issuer": s.sign(claims{"iss": "else"}), "no issuer": s.sign(claims{"iss": nil}),
		"issuer in a list": s.sign(claims{"iss": []string{s.Issuer}}), "expired": s.sign(claims{"iat": now - 7200, "exp": now - 3600}),
		"no end": s.sign(claims{"exp": nil}), "an end as text": s.sign(claims{"exp": "9999999999"}), "an end of 1e300": s.sign(claims{"exp": 1e300}), "an end before the beginning": s.sign(claims{"exp": -1}),
		"not yet": s.sign(claims{"nbf": now + 1800}), "issued in the future": s.sign(claims{"iat": now + 1800, "exp": now + 3600}),
		"a lifetime above 1 h": s.sign(claims{"iat": now, "exp": now + 3700}), "a lifetime of years": s.sign(claims{"iat": nil, "exp": now + 86400*365}),
		"no subject": s.sign(claims{"sub": nil}), "an empty subject": s.sign(claims{"sub": ""}), "subject as a number": s.sign(claims{"sub": 7}), "a long subject": s.sign(claims{"sub": strings.Repeat("s", 200)}),
		"scope as a list": s.sign(claims{"scope": auth.AllScopes()}), "scope as a number": s.sign(claims{"scope": 7}), "scope as true": s.sign(claims{"scope": true}),
		"an unknown act": s.sign(claims{"act": "root"}), "act as an object": s.sign(claims{"act": claims{"sub": "x"}}), "a huge token": s.sign(claims{"x": strings.Repeat("x", 9000)}),
		"a claim twice":    s.seal(parts[0]+"."+base64.RawURLEncoding.EncodeToString([]byte(`{"exp":1,"exp":9999999999}`)), s.Secret),
		"claims as a list": s.seal(parts[0]+"."+base64.RawURLEncoding.EncodeToString([]byte(`[]`)), s.Secret), "claims null": s.seal(parts[0]+"."+base64.RawURLEncoding.EncodeToString([]byte(`null`)), s.Secret),
	} {
		for _, p := range []probe{
			{method: "POST", path: "/v1/holds", body: s.doc("amount", "0"), name: "create: "},
			{method: "GET", path: "/admin/v1/overview", admin: true, name: "operator: "},
		} {
			p.name, p.token, p.status, p.code, p.contains = p.name+name, token, 401, "unauthenticated", "Www-Authenticate"
			list = append(list, p)
		}
	}
	for name, value := range map[string]string{"Basic": "Basic dXNlcjpwYXNz", "Basic with a token": "Basic " + good, "no scheme": good, "an empty one": "", "only Bearer": "Bearer", "Bearer and spaces": "Bearer   ",
		"two in one": "Bearer " + good + ", Bearer " + good, "DPoP": "DPoP " + good, "Bearer twice": "Bearer Bearer " + good} {
		list = append(list, probe{name: "Authorization: " + name, method: "POST", path: "/v1/holds", body: s.doc("amount", "0"),
			headers: []string{"Authorization", value}, status: 401, code: "unauthenticated"})
	}
	list = append(list,
		probe{name: "two Authorization headers", method: "GET", path: "/v1/holds/" + s.hold, headers: []string{"Authorization", "Bearer " + good, "Authorization", "Bearer " + good}, status: 401, code: "unauthenticated"},
		probe{name: "a token in the query", method: "GET", path: "/v1/holds/" + s.hold + "?access_token=" + good, status: 401, code: "unauthenticated"},
		probe{name: "a token in a cookie", method: "GET", path: "/v1/holds/" + s.hold, headers: []string{"Cookie", "token=" + good}, status: 401, code: "unauthenticated"})
	return append(list, who(s, header)...)
}

// who are tokens that are good, for something else.
func who(s *suite, header func(claims) string) (list []probe) {
	account := "/v1/accounts/" + s.sender
	for name, token := range map[string]string{
		"a subject that is no user": s.sign(claims{"sub": "root"}), "a subject of SQL": s.sign(claims{"sub": "' OR 1=1 --"}), "the nil UUID": s.sign(claims{"sub": "00000000-0000-0000-0000-000000000000"}),
		"an URN of the sender": s.sign(claims{"sub": "urn:uuid:" + s.sender}), "another user": s.other, "a path as kid": s.signAs(claims{"alg": "HS256", "kid": "../../../dev/null"}, claims{"sub": s.stranger}),
	} {
		list = append(list,
			probe{name: name + " spends", method: "POST", path: "/v1/holds", token: token, body: s.doc(), status: 403, code: "forbidden_sender"},
			probe{name: name + " lists", method: "GET", path: "/v1/holds?sender_id=" + s.sender, token: token, status: 403, code: "forbidden_sender"},
			probe{name: name + " looks", method: "GET", path: account, token: token, status: 403, code: "forbidden_account"},
			probe{name: name + " reads the statement", method: "GET", path: account + "/entries", token: token, status: 403, code: "forbidden_account"},
			probe{name: name + " deposits", method: "POST", path: account + "/deposits", token: token, body: `{"amount":1,"idempotency_key":"x"}`, status: 403, code: "forbidden_account"},
			probe{name: name + " withdraws", method: "POST", path: account + "/withdrawals", token: token, body: `{"amount":1,"idempotency_key":"x"}`, status: 403, code: "forbidden_account"},
			probe{name: name + " reads the hold", method: "GET", path: "/v1/holds/" + s.hold, token: token, status: 404, code: "hold_not_found"},
			probe{name: name + " cancels", method: "DELETE", path: "/v1/holds/" + s.hold, token: token, status: 404, code: "hold_not_found"})
	}
	recipient := s.sign(claims{"sub": s.recipient})
	for name, token := range map[string]string{"a kid of SQL": header(claims{"kid": "' UNION SELECT 1 --"}), "an URL of keys": header(claims{"jku": "http://127.0.0.1:1/keys", "x5u": "http://127.0.0.1:1/x"}),
		"the subject in capitals": s.sign(claims{"sub": strings.ToUpper(s.sender)}), "several audiences": s.sign(claims{"aud": []string{"else", s.Audience}})} {
		list = append(list, probe{name: name, method: "GET", path: "/v1/holds/" + s.hold, token: token, status: 200})
	}
	return append(list,
		probe{name: "the recipient reads", method: "GET", path: "/v1/holds/" + s.hold, token: recipient, status: 200},
		probe{name: "the recipient cancels", method: "DELETE", path: "/v1/holds/" + s.hold, token: recipient, status: 403, code: "forbidden_cancel"})
}
