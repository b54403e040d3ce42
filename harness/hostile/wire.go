package hostile

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"
)

// talk writes text to a connection and reads whatever comes back until the
// server ends it or says nothing more. half closes the sending side after it.
func (s *suite) talk(admin bool, text string, half bool) (answers []answer, closed bool) {
	conn, err := net.DialTimeout("tcp", s.host(admin), answerTime)
	if err != nil {
		return nil, false
	}
	defer conn.Close()
	written := make(chan struct{})
	go func() {
		defer close(written)
		_ = conn.SetWriteDeadline(time.Now().Add(answerTime))
		_, _ = io.WriteString(conn, text)
		if half {
			_ = conn.(*net.TCPConn).CloseWrite()
		}
	}()
	r := bufio.NewReader(conn)
	for {
		// The first answer may take its time. A second one that nobody asked
		// for would be there at once.
		wait := answerTime
		if len(answers) > 0 {
			wait = 500 * time.Millisecond
		}
		_ = conn.SetReadDeadline(time.Now().Add(wait))
		a, err := read(r, "GET")
		if err != nil {
			var late net.Error
			closed = !asTimeout(err, &late)
			break
		}
		answers = append(answers, a)
	}
	conn.Close()
	<-written
	return answers, closed
}

// raw is a piece of HTTP as it stands on the wire, and what may come back.
type raw struct {
	name, text string
	want       []int // statuses of the first answer; 0: the connection ends without one
	answers    int   // at most; zero: one
	admin      bool
	half       bool
}

func (s *suite) tryRaw(w raw) {
	s.report.Probes++
	answers, closed := s.talk(w.admin, w.text, w.half)
	first := 0
	if len(answers) > 0 {
		first = answers[0].status
	} else if !closed {
		s.found(w.name, "neither an answer nor an end within %s", answerTime)
		return
	}
	if !slices.Contains(w.want, first) {
		body := []byte("nothing")
		if first > 0 {
			body = answers[0].body
		}
		s.found(w.name, "%d, want one of %v: %s", first, w.want, short(body))
	}
	if len(answers) > max(w.answers, 1) {
		s.found(w.name, "%d answers to one request, the second: %d %s", len(answers), answers[1].status, short(answers[1].body))
	}
	for _, a := range answers {
		own := a.header.Get("X-Request-Id") == "" // the HTTP server's, not ours
		for _, bad := range judge(a, "GET", own) {
			s.found(w.name, "%s", bad)
		}
	}
}

// get is a good request with a line or two more.
func (s *suite) get(lines ...string) string {
	return "GET /v1/holds/" + s.hold + " HTTP/1.1\r\nHost: " + s.host(false) + "\r\nAuthorization: Bearer " + s.user + "\r\n" + strings.Join(append(lines, ""), "\r\n") + "\r\n"
}

// post is a request that must be refused, with a body framed by the lines.
func (s *suite) post(body string, lines ...string) string {
	return "POST /v1/holds HTTP/1.1\r\nHost: " + s.host(false) + "\r\nContent-Type: application/json\r\nAuthorization: Bearer " + s.service + "\r\n" + strings.Join(append(lines, ""), "\r\n") + "\r\n" + body
}

// wire is what clients of the standard library cannot send.
func wire(s *suite) {
	host := "Host: " + s.host(false) + "\r\n"
	path := "GET /v1/holds/" + s.hold
	auth := "Authorization: Bearer " + s.user + "\r\n"
	bad := []int{400}
	for _, w := range []raw{
		{name: "HTTP/1.0", text: path + " HTTP/1.0\r\n" + auth + "\r\n", want: []int{200}},
		{name: "HTTP/0.9", text: "GET /v1/holds\r\n\r\n", want: bad},
		{name: "HTTP/2 preface", text: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", want: []int{0, 400, 404, 505}},
		{name: "HTTP/3.0", text: path + " HTTP/3.0\r\n" + host + "\r\n", want: []int{400, 505}},
		{name: "HTTP/1.2", text: path + " HTTP/1.2\r\n" + host + auth + "\r\n", want: []int{200, 400, 505}},
		{name: "HTTP/11", text: path + " HTTP/11\r\n" + host + "\r\n", want: bad},
		{name: "http/1.1", text: path + " http/1.1\r\n" + host + "\r\n", want: bad},
		{name: "no version", text: path + "\r\n" + host + "\r\n", want: bad},
		{name: "two spaces", text: strings.Replace(path, " ", "  ", 1) + " HTTP/1.1\r\n" + host + "\r\n", want: []int{400, 404}},
		{name: "a tab for a space", text: strings.Replace(path, " ", "\t", 1) + " HTTP/1.1\r\n" + host + "\r\n", want: bad},
		{name: "a path with a space", text: "GET /v1/ho lds HTTP/1.1\r\n" + host + "\r\n", want: []int{400}},
		{name: "a path with a NUL", text: "GET /v1/\x00holds HTTP/1.1\r\n" + host + "\r\n", want: bad},
		{name: "an absolute target", text: "GET http://evil.example/v1/holds/" + s.hold + " HTTP/1.1\r\n" + host + auth + "\r\n", want: []int{200, 400}},
		{name: "a target of another scheme", text: "GET gopher://x/ HTTP/1.1\r\n" + host + "\r\n", want: []int{400, 404}},
		{name: "no target", text: "GET HTTP/1.1\r\n" + host + "\r\n", want: bad},
		{name: "no Host", text: path + " HTTP/1.1\r\n" + auth + "\r\n", want: bad},
		{name: "two Hosts", text: s.get("Host: evil.example"), want: bad},
		{name: "a Host with a space", text: path + " HTTP/1.1\r\nHost: a b\r\n" + auth + "\r\n", want: bad},
		{name: "a Host with a NUL", text: path + " HTTP/1.1\r\nHost: a\x00b\r\n" + auth + "\r\n", want: bad},
		{name: "an empty Host", text: path + " HTTP/1.1\r\nHost:\r\n" + auth + "\r\n", want: []int{200, 400}},
		{name: "bare line feeds", text: strings.ReplaceAll(s.get(), "\r\n", "\n"), want: []int{200, 400}},
		{name: "bare carriage returns", text: strings.ReplaceAll(s.get(), "\r\n", "\r"), half: true, want: []int{0, 400}},
		{name: "a folded header", text: s.get("X-Fold: a", " b"), want: []int{200, 400}},
		{name: "a header without a colon", text: s.get("nonsense"), want: bad},
		{name: "a space before the colon", text: s.get("X-Space : a"), want: bad},
		{name: "a space in a name", text: s.get("X Space: a"), want: bad},
		{name: "an empty name", text: s.get(": a"), want: bad},
		{name: "a NUL in a value", text: s.get("X-Nul: a\x00b"), want: bad},
		{name: "a carriage return in a value", text: s.get("X-Cr: a\rb"), want: bad},
		{name: "a header of 64 KiB", text: s.get("X-Long: " + strings.Repeat("x", 64<<10)), want: []int{431}},
		{name: "5,000 headers", text: s.get(slices.Repeat([]string{"X-Many: 0123456789"}, 5000)...), want: []int{431}},
		{name: "a path of 64 KiB", text: "GET /" + strings.Repeat("x", 64<<10) + " HTTP/1.1\r\n" + host + "\r\n", want: []int{431, 414, 400}},
		{name: "a method of 64 KiB", text: strings.Repeat("X", 64<<10) + " / HTTP/1.1\r\n" + host + "\r\n", want: []int{431, 400}},
		{name: "TLS", text: "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("\x00", 500) + "\r\n\r\n", half: true, want: []int{0, 400}},
		{name: "noise", text: strings.Repeat("\xde\xad\xbe\xef", 500) + "\r\n\r\n", half: true, want: bad},
		{name: "nothing", text: "", half: true, want: []int{0}},
		{name: "half a request line", text: "GET /v1", half: true, want: []int{0, 400}},
		{name: "half a body", text: s.post(`{"amount":`, "Content-Length: 500"), half: true, want: bad},
		{name: "an expectation", text: s.post("", "Content-Length: 0", "Expect: 200-ok"), want: []int{417}},
		{name: "100-continue without a token", text: strings.Replace(s.post("", "Content-Length: 1000000", "Expect: 100-continue"), "Authorization", "X-No", 1), want: []int{401}},
		{name: "100-continue of too much", text: s.post("", "Content-Length: 1073741824", "Expect: 100-continue"), want: []int{413}},
		{name: "OPTIONS *", text: "OPTIONS * HTTP/1.1\r\n" + host + "\r\n", want: []int{200, 400, 404, 405}},
		{name: "CONNECT", text: "CONNECT 127.0.0.1:22 HTTP/1.1\r\n" + host + "\r\n", want: []int{400, 404, 405}},
	} {
		s.tryRaw(w)
	}
	s.pipeline()
}

// pipeline sends many requests at once and wants the answers in their order.
func (s *suite) pipeline() {
	s.report.Probes++
	const n = 60
	var text strings.Builder
	for i := range n {
		text.WriteString(s.get(fmt.Sprintf("X-Request-Id: pipe-%d", i)))
	}
	answers, _ := s.talk(false, text.String(), false)
	if len(answers) != n {
		s.found("pipelining", "%d answers to %d requests", len(answers), n)
	}
	for i, a := range answers {
		if a.status != 200 || a.header.Get("X-Request-Id") != fmt.Sprintf("pipe-%d", i) {
			s.found("pipelining", "answer %d: %d %v", i, a.status, a.header)
			return
		}
	}
}

// smuggling hides a cancel of the hold behind a body that two readers of the
// same bytes would end at different places.
func smuggling(s *suite) {
	hidden := "DELETE /v1/holds/" + s.hold + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + s.user + "\r\n\r\n"
	chunks := "0\r\n\r\n" + hidden
	length := fmt.Sprintf("Content-Length: %d", len(chunks))
	te := "Transfer-Encoding: chunked"
	tries := map[string]string{
		"length and chunks": s.post(chunks, length, te), "chunks and length": s.post(chunks, te, length),
		"two equal lengths and more": s.post(hidden, "Content-Length: 2", fmt.Sprintf("Content-Length: %d", len(hidden))),
		"lengths in a list":          s.post(hidden, fmt.Sprintf("Content-Length: 2, %d", len(hidden))),
		"two codings":                s.post(chunks, length, te, "Transfer-Encoding: identity"),
		"codings in a list":          s.post(chunks, length, "Transfer-Encoding: chunked, identity"),
		"chunked twice":              s.post(chunks, length, "Transfer-Encoding: chunked, chunked"),
		"an unknown coding":          s.post(chunks, length, "Transfer-Encoding: xchunked"),
		"a space before the colon":   s.post(chunks, length, "Transfer-Encoding : chunked"),
		"a tab before the coding":    s.post(chunks, length, "Transfer-Encoding:\tchunked"),
		"a folded coding":            s.post(chunks, length, "Transfer-Encoding:", " chunked"),
		"a vertical tab":             s.post(chunks, length, "Transfer-Encoding: \vchunked"),
		"a quoted coding":            s.post(chunks, length, `Transfer-Encoding: "chunked"`),
		"capitals":                   s.post(chunks, length, "TRANSFER-ENCODING: CHUNKED"),
		"HTTP/1.0 with chunks":       strings.Replace(s.post(chunks, length, te), "HTTP/1.1", "HTTP/1.0", 1),
		"a chunk with a sign":        s.post("+0\r\n\r\n"+hidden, te), "a chunk in 0x": s.post("0x0\r\n\r\n"+hidden, te),
		"a chunk below zero":    s.post("-1\r\n\r\n"+hidden, te),
		"a chunk beyond":        s.post("FFFFFFFFFFFFFFFFF\r\n"+hidden, te),
		"a chunk that is empty": s.post("\r\n\r\n"+hidden, te), "a chunk of spaces": s.post("   \r\n\r\n"+hidden, te),
		"a GET with chunks and length": strings.Replace(s.post(chunks, length, te), "POST /v1/holds ", "GET /v1/holds/"+s.hold+" ", 1),
	}
	for _, n := range []string{"-1", "+2", "0x2", "2 3", "2.0", "1e1", "99999999999999999999", "9223372036854775808", "", "two", "２"} {
		tries["Content-Length "+n] = s.post(hidden, "Content-Length: "+n)
	}
	for name, text := range tries {
		s.tryRaw(raw{name: name, text: text, want: []int{0, 200, 400, 411, 413, 415, 501}})
		a, err := s.send(probe{method: "GET", path: "/v1/holds/" + s.hold, token: s.user})
		if err != nil || !strings.Contains(string(a.body), `"PENDING"`) {
			s.found(name, "the hidden cancel was carried out: %s, %v", short(a.body), err)
			return
		}
	}
}
