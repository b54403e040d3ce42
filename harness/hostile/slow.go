package hostile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

const (
	slowClients = 60
	grace       = 10 * time.Second // beyond a timeout of the server
	giant       = 1 << 30          // bytes announced
	mostRead    = 64 << 20         // of them that may leave before the answer: buffers on the way
)

func asTimeout(err error, late *net.Error) bool { return errors.As(err, late) && (*late).Timeout() }

// giants announces or sends bodies without end: refused before they were read.
func giants(s *suite) {
	for name, head := range map[string]string{
		"a body of 1 GiB":         s.post("", fmt.Sprintf("Content-Length: %d", giant)),
		"chunks without end":      s.post("", "Transfer-Encoding: chunked"),
		"a batch without end":     strings.Replace(s.post("", "Transfer-Encoding: chunked"), "/v1/holds", "/v1/holds:batchCreate", 1),
		"a DELETE with 1 GiB":     "DELETE /v1/holds/no-id HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + s.user + fmt.Sprintf("\r\nContent-Length: %d\r\n\r\n", giant),
		"1 GiB without a token":   strings.Replace(s.post("", fmt.Sprintf("Content-Length: %d", giant)), "Authorization", "X-No", 1),
		"1 GiB to nowhere":        strings.Replace(s.post("", fmt.Sprintf("Content-Length: %d", giant)), "/v1/holds", "/v1/nowhere", 1),
		"1 GiB of headers":        strings.TrimSuffix(s.get(), "\r\n") + "X-Giant: ",
		"a request line of 1 GiB": "GET /",
	} {
		s.report.Probes++
		chunk := strings.Repeat("x", 64<<10)
		if strings.Contains(name, "without end") {
			chunk = "10000\r\n" + strings.Repeat(" ", 64<<10) + "\r\n"
		}
		sent, a, err := s.pour(head, chunk)
		want := map[string]int{"a DELETE with 1 GiB": 422, "1 GiB without a token": 401, "1 GiB to nowhere": 404, "1 GiB of headers": 431, "a request line of 1 GiB": 431}[name]
		if want == 0 {
			want = 413
		}
		// A server that hangs up on somebody who goes on sending may lose the
		// answer on the way; what counts is that it stopped reading.
		if sent > mostRead || err == nil && a.status != want {
			s.found(name, "answer %d, want %d, after %d MiB had left: %v", a.status, want, sent>>20, err)
		}
	}
}

// pour writes head and then chunks until there is an answer, an error or the
// end of the patience.
func (s *suite) pour(head, chunk string) (sent int64, a answer, err error) {
	conn, err := net.DialTimeout("tcp", s.host(false), answerTime)
	if err != nil {
		return 0, a, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(answerTime))
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		a, err = read(bufio.NewReader(conn), "POST")
	}()
	if _, werr := io.WriteString(conn, head); werr == nil {
		for sent = 0; sent < giant; {
			n, werr := io.WriteString(conn, chunk)
			sent += int64(n)
			if werr != nil {
				break
			}
			select {
			case <-answered:
				return sent, a, err
			default:
			}
		}
	}
	<-answered
	return sent, a, err
}

// drip is a client that sends too slowly.
type drip struct {
	name   string
	text   string
	more   string // a byte of it now and then
	within time.Duration
	hangUp bool // leaves in the middle
}

// slow opens many connections that send next to nothing, checks that others
// are served meanwhile, and that the server ends them all.
func slow(s *suite) {
	drips := []drip{
		{name: "nothing at all", within: s.HeaderTimeout},
		{name: "half a request line", text: "GET /v1/ho", within: s.HeaderTimeout},
		{name: "a header that never ends", text: "GET /v1/holds HTTP/1.1\r\nHost: x\r\nX-A: ", more: "a", within: s.HeaderTimeout},
		{name: "headers that never end", text: "GET /v1/holds HTTP/1.1\r\nHost: x\r\n", more: "X-A: a\r\n", within: s.HeaderTimeout},
		{name: "a body that never comes", text: s.post("", "Content-Length: 100"), within: s.BodyTimeout},
		{name: "a body that drips", text: s.post("{", "Content-Length: 10000"), more: " ", within: s.BodyTimeout},
		{name: "a chunk that never comes", text: s.post("", "Transfer-Encoding: chunked"), within: s.BodyTimeout},
		{name: "chunks that drip", text: s.post("", "Transfer-Encoding: chunked"), more: "1\r\n \r\n", within: s.BodyTimeout},
		{name: "hung up in the header", text: "GET /v1/holds HTTP/1.1\r\nHo", hangUp: true},
		{name: "hung up in the body", text: s.post(s.doc()[:30], "Content-Length: 300"), hangUp: true},
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	bad := map[string]string{}
	for i := range slowClients {
		d := drips[i%len(drips)]
		s.report.Probes++
		all.Go(func() {
			if why := s.dripOn(d); why != "" {
				mu.Lock()
				bad[d.name] = why
				mu.Unlock()
			}
		})
	}
	ended := make(chan struct{})
	go func() { all.Wait(); close(ended) }()
	for served := 0; ; served++ {
		select {
		case <-ended:
			for name, why := range bad {
				s.found(name, "%s", why)
			}
			if served == 0 {
				s.found("others", "nobody was served meanwhile")
			}
			return
		default:
		}
		if a, err := s.send(probe{method: "GET", path: "/v1/holds/" + s.hold, token: s.user}); err != nil || a.status != 200 {
			s.found("others", "not served while the slow ones hang: %d %v", a.status, err)
		}
		s.pause()
	}
}

func (s *suite) dripOn(d drip) string {
	conn, err := net.DialTimeout("tcp", s.host(false), answerTime)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, d.text); err != nil {
		return "cannot send: " + err.Error()
	}
	if d.hangUp {
		return ""
	}
	ended := make(chan struct{})
	if d.more != "" {
		go func() {
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-ended:
					return
				case <-tick.C:
					if _, err := io.WriteString(conn, d.more); err != nil {
						return
					}
				}
			}
		}()
	}
	defer close(ended)
	_ = conn.SetReadDeadline(time.Now().Add(d.within + grace))
	text, err := io.ReadAll(io.LimitReader(conn, maxAnswer))
	var late net.Error
	if asTimeout(err, &late) {
		return fmt.Sprintf("still connected %s after the server's timeout of %s", grace, d.within)
	}
	if len(text) > 0 && !strings.HasPrefix(string(text), "HTTP/1.1 4") {
		return "answered " + short(text)
	}
	return ""
}
