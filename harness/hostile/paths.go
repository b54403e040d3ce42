package hostile

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/holdfast-escrow/holdfast/coordinator"
	"github.com/holdfast-escrow/holdfast/internal/auth"
)

// paths that lead nowhere: nothing is cleaned, decoded or redirected.
func paths(s *suite) (list []probe) {
	hold, account := "/v1/holds/"+s.hold, "/v1/accounts/"+s.sender
	for _, path := range []string{"/", "/v1", "/v1/", "/v1/holds/", hold + "/", "/v1//holds/" + s.hold, "//v1/holds", "///", "/v1/./holds", "/v1/../v1/holds", "/v1/x/../holds/" + s.hold,
		"/..", "/../../etc/passwd", "/v1/holds/../../admin/v1/overview", "/V1/holds", "/v1/Holds", "/v1/holds;a=b", "/v1/holds.json", "/v1%2fholds/" + s.hold, "/%76%31/holds",
		"/v1/%2e%2e/v1/holds", "/v1/holds%00", "/v1/holds%20", hold + "/entries", hold + ":cancel", hold + "/../" + s.hold, "/admin/v1/overview", "/metrics", "/debug/pprof/", "/livez",
		"/branch/v1/0/try", "/drive/v1/0", "/sim/effects", "/.git/config", "/.env", "/v1/holds:batchcreate", "/v1/holds:", "/v1/holds:x", account + ":deposits", "/v2/holds", "/*", "/v1/holds\\x",
		"/" + strings.Repeat("a", 8000), "/v1/" + strings.Repeat("../", 2000), "/%ff%fe", "/ONGOING", "/FAILURE", "/<script>", "/'%20OR%201=1--", "/v1/accounts", "/v1/accounts/"} {
		list = append(list, probe{name: "path " + short([]byte(path)), method: "GET", path: path, token: s.service, status: 404, code: "not_found"})
	}
	for _, path := range []string{"/v1/holds", "/v1/accounts/" + s.sender, "/admin/v2/overview", "/admin/v1", "/admin/v1/overview/", "/admin/v1//overview", "/admin/v1/breaker:forceOpen", "/admin/v1/../v1/overview", "/ADMIN/v1/overview"} {
		list = append(list, probe{name: "admin path " + path, method: "GET", path: path, token: s.operator, admin: true, status: 404, code: "not_found"})
	}
	for _, id := range badIDs(s.hold) {
		if id = url.PathEscape(id); id == "" || strings.Contains(id, ":") {
			continue
		}
		list = append(list,
			probe{name: "hold " + short([]byte(id)), method: "GET", path: "/v1/holds/" + id, token: s.service, status: 422, code: "invalid_id"},
			probe{name: "cancel " + short([]byte(id)), method: "DELETE", path: "/v1/holds/" + id, token: s.service, status: 422, code: "invalid_id"},
			probe{name: "account " + short([]byte(id)), method: "GET", path: "/v1/accounts/" + id, token: s.service, status: 422, code: "invalid_id"},
			probe{name: "open " + short([]byte(id)), method: "PUT", path: "/v1/accounts/" + id, token: s.service, status: 422, code: "invalid_id"},
			probe{name: "timeline of " + short([]byte(id)), method: "GET", path: "/admin/v1/holds/" + id, token: s.operator, admin: true, status: 422, code: "invalid_id"})
	}
	for _, id := range []string{"%2e%2e", "%2E%2E%2f", "..%2f..%2fadmin", "%00", "%", "%zz", "%25", "a%2fb", "%c0%af", s.hold + "%20", s.hold[:35] + "%30%30", "{id}", "$(id)", "..", "*"} {
		p := probe{name: "id " + id, method: "GET", path: "/v1/holds/" + id, token: s.service, status: 422, code: "invalid_id"}
		if id == "%" || id == "%zz" {
			p.status, p.code = 400, "" // no URL at all: the HTTP server refuses it
		}
		list = append(list, p)
	}
	for _, id := range []string{"00000000-0000-0000-0000-000000000000", newUser(), s.hold[:14] + "4" + s.hold[15:], s.hold[:14] + "7" + s.hold[15:], s.hold[:19] + "0" + s.hold[20:], s.hold[:19] + "f" + s.hold[20:],
		"ffffffff-ffff-ffff-ffff-ffffffffffff", "ffffffff-ffff-8fff-bfff-ffffffffffff", "00000000-0000-8000-8000-000000000000"} {
		list = append(list,
			probe{name: "nobody's hold " + id, method: "GET", path: "/v1/holds/" + id, token: s.user, status: 404, code: "hold_not_found"},
			probe{name: "cancel nobody's hold " + id, method: "DELETE", path: "/v1/holds/" + id, token: s.user, status: 404, code: "hold_not_found"})
	}
	return append(list, probe{name: "the nil user", method: "GET", path: "/v1/accounts/00000000-0000-0000-0000-000000000000", token: s.service, status: 422, code: "invalid_id"},
		probe{name: "nobody's account", method: "GET", path: "/v1/accounts/" + newUser(), token: s.service, status: 404, code: "account_not_found"},
		probe{name: "the hold in capitals", method: "GET", path: "/v1/holds/" + strings.ToUpper(s.hold), token: s.user, status: 200})
}

// wanted is which scope each route asks for. A route that is not in it is a
// finding: somebody must decide first who may use it.
var wanted = map[string]string{
	"POST /v1/holds": auth.HoldsCreate, "POST /v1/holds:batchCreate": auth.HoldsCreate,
	"GET /v1/holds": auth.HoldsRead, "GET /v1/holds/{id}": auth.HoldsRead, "DELETE /v1/holds/{id}": auth.HoldsCancel,
	"PUT /v1/accounts/{id}": auth.AccountsWrite, "GET /v1/accounts/{id}": auth.AccountsRead, "PATCH /v1/accounts/{id}": auth.AccountsAdmin,
	"POST /v1/accounts/{id}/deposits": auth.AccountsWrite, "POST /v1/accounts/{id}/withdrawals": auth.AccountsWrite, "GET /v1/accounts/{id}/entries": auth.AccountsRead,
	"GET /livez": "", "GET /readyz": "", "GET /metrics": "",
	"GET /admin/v1/overview": auth.AdminRead, "GET /admin/v1/holds": auth.AdminRead, "GET /admin/v1/holds/{id}": auth.AdminRead, "GET /admin/v1/dead-letters": auth.AdminRead,
	"GET /admin/v1/shards": auth.AdminRead, "GET /admin/v1/ledger/proof": auth.AdminRead, "GET /admin/v1/breaker": auth.AdminRead, "GET /admin/v1/scheduler": auth.AdminRead,
	"GET /admin/v1/audit": auth.AdminRead, "POST /admin/v1/holds:release": auth.AdminWrite, "POST /admin/v1/holds/{id}:release": auth.AdminWrite,
	"POST /admin/v1/dead-letters/{id}:retry": auth.AdminWrite, "POST /admin/v1/dead-letters/{id}:refund": auth.AdminWrite,
	"POST /admin/v1/dead-letters/{id}:resolve": auth.AdminWrite, "POST /admin/v1/dead-letters/{id}:close": auth.AdminWrite,
}

// scopes walks over every route with every scope. The one that opens a route
// is sent with nothing that could be done.
func scopes(s *suite) (list []probe) {
	left := maps.Clone(wanted)
	for _, r := range coordinator.Routes() {
		name := r.Method + " " + r.Path
		scope, known := wanted[name]
		delete(left, name)
		if !known || scope != r.Scope {
			s.found(name, "asks for the scope %q; the table of this suite says %q (a row: %t)", r.Scope, scope, known)
			continue
		}
		p := probe{method: r.Method, path: strings.ReplaceAll(r.Path, "{id}", "no-id"), admin: r.Admin}
		if scope == "" {
			p.name, p.status = name+" is open", http.StatusOK
			list = append(list, p)
			continue
		}
		p.name, p.status, p.code = name+" without a token", 401, "unauthenticated"
		list = append(list, p)
		for _, other := range append(auth.AllScopes(), "", "*", "admin", "admin:*", strings.ToUpper(scope), scope+":x", scope[:len(scope)-1]) {
			for who, act := range map[string]any{"a service": "service", "a user": nil} {
				q := p
				q.token = s.sign(claims{"act": act, "scope": other})
				if other == scope {
					continue
				}
				q.name, q.status, q.code, q.contains = name+" by "+who+" with the scope "+other, 403, "insufficient_scope", scope
				list = append(list, q)
			}
		}
		q := p
		q.token = s.sign(claims{"act": "service", "scope": scope})
		q.name, q.contains = name+" with its scope", ""
		q.status, q.code = opened(name)
		q.elsewhere = name == "GET /admin/v1/scheduler"
		list = append(list, q)
	}
	for name := range left {
		s.found(name, "is in the table of this suite and no route")
	}
	return list
}

// opened is what a route says to a request with its scope and nothing else.
func opened(name string) (status int, code string) {
	switch {
	case strings.Contains(name, "{id}"):
		return 422, "invalid_id"
	case strings.HasPrefix(name, "POST"):
		return 400, "invalid_json"
	case name == "GET /v1/holds":
		return 422, "missing_field"
	}
	return 200, ""
}

// methods walks over every path with every method that it does not have.
func methods(s *suite) (list []probe) {
	has := map[string][]string{}
	admin := map[string]bool{}
	for _, r := range coordinator.Routes() {
		has[r.Path] = append(has[r.Path], r.Method)
		admin[r.Path] = r.Admin
	}
	for path, known := range has {
		for _, m := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "BREW", "GET,POST", strings.Repeat("M", 200)} {
			p := probe{name: m + " " + path, method: m, path: strings.ReplaceAll(path, "{id}", s.hold), token: s.operator, admin: admin[path], status: 405, code: "method_not_allowed"}
			switch {
			case slices.Contains(known, m), m == "HEAD" && slices.Contains(known, "GET"):
				continue
			case m == "GET,POST": // no method at all: the HTTP server refuses it
				p.status, p.code = 400, ""
			}
			list = append(list, p)
		}
	}
	for _, h := range []string{"X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"} {
		list = append(list,
			probe{name: h + " on GET", method: "GET", path: "/v1/holds/" + s.hold, token: s.user, headers: []string{h, "DELETE"}, status: 200, contains: `"PENDING"`},
			probe{name: h + " on POST", method: "POST", path: "/v1/holds/" + s.hold, token: s.user, headers: []string{h, "DELETE"}, status: 405, code: "method_not_allowed"})
	}
	return append(list, probe{name: "_method in the query", method: "POST", path: "/v1/holds/" + s.hold + "?_method=DELETE", token: s.user, status: 405, code: "method_not_allowed"},
		probe{name: "HEAD of a hold", method: http.MethodHead, path: "/v1/holds/" + s.hold, token: s.user, status: 200},
		probe{name: "HEAD without a token", method: http.MethodHead, path: "/v1/holds/" + s.hold, status: 401, code: "unauthenticated"},
		probe{name: "a GET with a body", method: "GET", path: "/v1/holds/" + s.hold, token: s.user, body: "DELETE /v1/holds/" + s.hold, status: 200})
}

// queries of every list, and page tokens.
func queries(s *suite) (list []probe) {
	for _, l := range []struct {
		path, token string
		admin       bool
	}{
		{"/v1/holds?sender_id=" + s.sender + "&", s.user, false}, {"/v1/accounts/" + s.sender + "/entries?", s.user, false},
		{"/admin/v1/holds?", s.operator, true}, {"/admin/v1/dead-letters?", s.operator, true}, {"/admin/v1/audit?", s.operator, true},
	} {
		add := func(query string, status int, code string) {
			list = append(list, probe{name: l.path + short([]byte(query)), method: "GET", path: l.path + query, token: l.token, admin: l.admin, status: status, code: code})
		}
		for _, n := range []string{"0", "-1", "201", "1e9", "1000000000", "99999999999999999999", "x", "", "1.5", "0x10", "+-1", "%D9%A5", "1%00", "%201"} {
			add("page_size="+n, 422, "invalid_field")
		}
		for _, t := range []string{"", "x", "garbage", "AAAA", strings.Repeat("A", 20), strings.Repeat("A", 64), strings.Repeat("A", 7000), "%00", "%ff", "' OR 1=1", "..%2f", "bnVsbA==", "0", "-1"} {
			t = strings.ReplaceAll(t, " ", "%20")
			code := "invalid_page_token"
			if t == "%ff" {
				code = "invalid_field"
			}
			add("page_token="+t, 422, code)
		}
		add("nonsense=1", 400, "unknown_field")
		add("page_size=1&page_size=1", 400, "duplicate_field")
		add("Page_Size=1", 400, "unknown_field")
		add("%zz", 422, "invalid_field")
		add("a;b", 422, "invalid_field")
		add("page_size=200", 200, "")
	}
	own := "/v1/holds?sender_id="
	list = append(list, foreignPages(s)...)
	return append(list,
		probe{name: "no sender", method: "GET", path: "/v1/holds", token: s.service, status: 422, code: "missing_field"},
		probe{name: "an empty sender", method: "GET", path: own, token: s.service, status: 422, code: "invalid_id"},
		probe{name: "two senders", method: "GET", path: own + s.sender + "&sender_id=" + s.stranger, token: s.service, status: 400, code: "duplicate_field"},
		probe{name: "a status of its own", method: "GET", path: own + s.sender + "&status=PENDING%27--", token: s.service, status: 422, code: "invalid_field"},
		probe{name: "status in small letters", method: "GET", path: own + s.sender + "&status=pending", token: s.service, status: 422, code: "invalid_field"},
		probe{name: "a key with a control character", method: "GET", path: own + s.sender + "&idempotency_key=a%0ab", token: s.service, status: 400, code: "idempotency_key_invalid"},
		probe{name: "an empty key", method: "GET", path: own + s.sender + "&idempotency_key=", token: s.service, status: 400, code: "idempotency_key_missing"},
		probe{name: "a currency of nowhere", method: "GET", path: "/v1/accounts/" + s.sender + "?currency=XYZ", token: s.service, status: 422, code: "unknown_currency"},
		probe{name: "a shard beyond", method: "GET", path: "/admin/v1/holds?shard=99", token: s.operator, admin: true, status: 422, code: "invalid_field"},
		probe{name: "a shard before", method: "GET", path: "/admin/v1/holds?shard=-1", token: s.operator, admin: true, status: 422, code: "invalid_field"},
		probe{name: "overdue maybe", method: "GET", path: "/admin/v1/holds?overdue=maybe", token: s.operator, admin: true, status: 422, code: "invalid_field"})
}

// foreignPages uses the page token of one list for another.
func foreignPages(s *suite) []probe {
	var page struct {
		Next string `json:"next_page_token"`
	}
	statement := "/v1/accounts/" + s.sender + "/entries?page_size=1"
	if err := s.must(probe{method: "GET", path: statement, token: s.user}, 200, &page); err != nil || page.Next == "" {
		s.found("page token", "no second page of the statement: %v", err)
		return nil
	}
	other := "/v1/accounts/" + s.stranger + "/entries?page_token="
	flipped := "A"
	if strings.HasPrefix(page.Next, "A") {
		flipped = "B"
	}
	return []probe{
		{name: "its own page token", method: "GET", path: statement + "&page_token=" + page.Next, token: s.user, status: 200},
		{name: "another user's page token", method: "GET", path: other + page.Next, token: s.other, status: 422, code: "invalid_page_token"},
		{name: "another list's page token", method: "GET", path: "/v1/holds?sender_id=" + s.sender + "&page_token=" + page.Next, token: s.user, status: 422, code: "invalid_page_token"},
		{name: "a changed page token", method: "GET", path: statement + "&page_token=" + flipped + page.Next[1:], token: s.user, status: 422, code: "invalid_page_token"},
		{name: "a longer page token", method: "GET", path: statement + "&page_token=" + page.Next + "AA", token: s.user, status: 422, code: "invalid_page_token"},
	}
}
