package hostile

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/problem"
)

const (
	answerTime = 30 * time.Second // beyond it a request hangs
	maxAnswer  = 8 << 20
	omit       = "\x00omit" // the value of a header or a field that is not sent
)

// probe is one request and the one answer that is right. It is written to a
// socket as it stands, because clients of the standard library mend or refuse
// what is meant to be wrong.
type probe struct {
	name         string
	method, path string
	token        string   // none when empty
	headers      []string // name and value in turn; a name can come twice
	body         string
	admin        bool
	status       int
	code         string // of a problem; empty: any success, or an answer of the HTTP server itself
	contains     string // in the answer's head or body
	elsewhere    bool   // right as well: this process does not run the role that knows
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   []byte
	doc    struct {
		Type, Title, Detail, Instance, Code string
		Status                              any
		RequestID                           string `json:"request_id"`
	}
}

func (s *suite) host(admin bool) string {
	base := s.API
	if admin {
		base = s.Admin
	}
	host, _ := hostOf(base) // checked by setUp
	return host
}

func (s *suite) text(p probe) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\n", p.method, p.path)
	set := map[string]bool{}
	for i := 0; i+1 < len(p.headers); i += 2 {
		set[http.CanonicalHeaderKey(p.headers[i])] = true
		if p.headers[i+1] != omit {
			fmt.Fprintf(&b, "%s: %s\r\n", p.headers[i], p.headers[i+1])
		}
	}
	add := func(name, value string) {
		if !set[name] {
			fmt.Fprintf(&b, "%s: %s\r\n", name, value)
		}
	}
	add("Host", s.host(p.admin))
	if p.token != "" {
		add("Authorization", "Bearer "+p.token)
	}
	if p.body != "" || p.method == "POST" {
		add("Content-Type", "application/json")
		if !set["Transfer-Encoding"] {
			add("Content-Length", strconv.Itoa(len(p.body)))
		}
	}
	return b.String() + "\r\n" + p.body
}

// send writes a probe to a connection of its own and reads one answer.
func (s *suite) send(p probe) (answer, error) {
	return s.exchange(p.admin, p.method, s.text(p))
}

func (s *suite) exchange(admin bool, method, text string) (a answer, err error) {
	conn, err := net.DialTimeout("tcp", s.host(admin), answerTime)
	if err != nil {
		return a, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return a, err
	}
	written := make(chan struct{})
	go func() { // the server may answer before it has read everything
		defer close(written)
		_, _ = io.WriteString(conn, text)
	}()
	a, err = read(bufio.NewReader(conn), method)
	conn.Close()
	<-written
	return a, err
}

// read reads one answer.
func read(r *bufio.Reader, method string) (a answer, err error) {
	res, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		return a, err
	}
	defer res.Body.Close()
	a.status, a.header = res.StatusCode, res.Header
	if a.body, err = io.ReadAll(io.LimitReader(res.Body, maxAnswer)); err != nil {
		return a, fmt.Errorf("the answer broke off: %w", err)
	}
	_ = json.Unmarshal(a.body, &a.doc)
	return a, nil
}

// try sends a probe and judges the answer.
func (s *suite) try(p probe) answer {
	s.report.Probes++
	a, err := s.send(p)
	if err != nil {
		var late net.Error
		if errors.As(err, &late) && late.Timeout() {
			err = fmt.Errorf("no answer within %s", answerTime)
		}
		s.found(p.name, "%v", err)
		return a
	}
	if p.elsewhere && a.doc.Code == problem.NotServedHere {
		p.status, p.code = http.StatusNotFound, problem.NotServedHere
	}
	if a.status != p.status || a.doc.Code != p.code && p.method != http.MethodHead && p.status >= 400 {
		s.found(p.name, "%d %s, want %d %s: %s", a.status, a.doc.Code, p.status, p.code, short(a.body))
	}
	if p.contains != "" && !bytes.Contains(a.body, []byte(p.contains)) && !strings.Contains(fmt.Sprint(a.header), p.contains) {
		s.found(p.name, "the answer lacks %q: %v %s", p.contains, a.header, short(a.body))
	}
	for _, bad := range judge(a, p.method, p.code == "" && p.status >= 400) {
		s.found(p.name, "%s", bad)
	}
	return a
}

// judge says what is wrong with an answer, whatever the request was. plain:
// the answer is the HTTP server's own, which knows no problem documents.
func judge(a answer, method string, plain bool) (bad []string) {
	if a.status >= 500 && !(plain && (a.status == http.StatusNotImplemented || a.status == http.StatusHTTPVersionNotSupported)) {
		bad = append(bad, fmt.Sprintf("a 5xx: %d %s", a.status, short(a.body)))
	}
	metrics := strings.HasPrefix(a.header.Get("Content-Type"), "text/plain; version=") // which are about the inside
	if m := leak.FindString(secretive(a)); m != "" && !metrics {
		bad = append(bad, fmt.Sprintf("the answer tells of the inside: %q in %s", m, short(a.body)))
	}
	if plain {
		return bad
	}
	if a.header.Get(problem.RequestID) == "" || a.header.Get("X-Content-Type-Options") != "nosniff" || a.header.Get("Cache-Control") != "no-store" {
		bad = append(bad, fmt.Sprintf("headers are missing: %v", a.header))
	}
	if a.status < 400 || method == http.MethodHead {
		return bad
	}
	if a.header.Get("Content-Type") != problem.MediaType || a.doc.Title == "" || a.doc.Type != "urn:holdfast:problem:"+a.doc.Code ||
		!problem.Known(a.doc.Code) || a.doc.Status != float64(a.status) || a.doc.RequestID != a.header.Get(problem.RequestID) {
		bad = append(bad, fmt.Sprintf("not a whole problem document: %v %s", a.header, short(a.body)))
	}
	if (a.status == http.StatusUnauthorized) != (a.header.Get("WWW-Authenticate") != "") && a.status != http.StatusForbidden {
		bad = append(bad, fmt.Sprintf("%d with WWW-Authenticate %q", a.status, a.header.Get("WWW-Authenticate")))
	}
	if a.status == http.StatusMethodNotAllowed && a.header.Get("Allow") == "" {
		bad = append(bad, "405 without Allow")
	}
	for _, word := range []string{"FAILURE", "ONGOING"} {
		if bytes.Contains(a.body, []byte(word)) {
			bad = append(bad, "a word that the dtm protocol looks for: "+word)
		}
	}
	return bad
}

// leak is what no answer may contain: traces and types of Go, SQL, paths of
// the machine, words of the libraries inside.
var leak = regexp.MustCompile(`goroutine \d|panic|\.go\b|runtime\.|\*?(coordinator|participants|scheduler|strictjson|branch|holdfast|http|json|auth|jwt|strconv)\.[A-Z]\w+|` +
	`SQLSTATE|pgx|pgconn|pq:|\b(SELECT|INSERT|UPDATE|DELETE) |holdfast_app|relation "|violates|PostgreSQL|redis|` +
	`/(root|home|usr|tmp|etc|var|proc)/|invalid character|cannot unmarshal|looking for beginning|signature is invalid|segments|0x[0-9a-f]{6,}`)

// secretive is the answer without what the client itself sent: the path comes
// back as instance, as RFC 9457 has it.
func secretive(a answer) string {
	text := string(a.body)
	if i := a.doc.Instance; i != "" {
		quoted, _ := json.Marshal(i)
		text = strings.ReplaceAll(text, string(quoted), `""`)
	}
	var heads strings.Builder
	for name, values := range a.header {
		if name != "Allow" {
			fmt.Fprintln(&heads, name, values)
		}
	}
	return heads.String() + text
}

func short(b []byte) string {
	if len(b) > 400 {
		return string(b[:400]) + "…"
	}
	return string(b)
}
