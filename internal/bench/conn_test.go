package bench

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestConn(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 20_000)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/chunked":
			w.(http.Flusher).Flush()
			io.WriteString(w, "first ")
			w.(http.Flusher).Flush()
			io.WriteString(w, "second")
		case "/long":
			w.Header().Set("Content-Length", "20000")
			io.WriteString(w, long)
		case "/close":
			w.Header().Set("Connection", "close")
			io.WriteString(w, "bye")
		case "/none":
			w.WriteHeader(http.StatusNoContent)
		case "/empty":
		case "/echo":
			b, _ := io.ReadAll(r.Body)
			w.WriteHeader(http.StatusCreated)
			w.Write(append([]byte(r.Method+" "+r.Header.Get("Content-Type")+" "), b...))
		}
	}))
	t.Cleanup(s.Close)
	c, err := newConn(s.URL, "", 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	for range 2 { // the second round goes over kept and renewed connections
		for path, want := range map[string]string{"/chunked": "first second", "/long": long, "/close": "bye", "/none": "", "/empty": ""} {
			if _, got, err := c.do("GET", path, nil); err != nil || string(got) != want {
				t.Errorf("%s: got %q, %v", path, got, err)
			}
		}
	}
	status, got, err := c.do("POST", "/echo", []byte(`{"a":1}`))
	if err != nil || status != 201 || string(got) != `POST application/json {"a":1}` {
		t.Errorf("got %d %q, %v", status, got, err)
	}
}

func TestConnRefusesGarbage(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{
		"nonsense\r\n\r\n": "garbled_answer",
		"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n":                "garbled_answer",
		"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n":      "garbled_answer",
		"HTTP/1.1 200 OK\r\n\r\n":                                     "garbled_answer",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n": "garbled_answer",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab":              "connection_lost",
		"": "connection_lost",
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			defer nc.Close()
			http.ReadRequest(bufio.NewReader(nc))
			io.WriteString(nc, answer)
		}()
		c, err := newConn("http://"+l.Addr().String(), "", 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.do("GET", "/", nil); err == nil || errorCode(err) != want {
			t.Errorf("%q gives %v, want %s", answer, err, want)
		}
		c.close()
		l.Close()
	}
}

func TestConnSpeaksPlainHTTPOnly(t *testing.T) {
	t.Parallel()
	if _, err := newConn("https://example.org", "", time.Second); err == nil {
		t.Error("https was accepted")
	}
}

func TestErrorCode(t *testing.T) {
	t.Parallel()
	if got := errorCode(errors.New("x")); got != "network_error" {
		t.Errorf("got %s", got)
	}
}

func TestField(t *testing.T) {
	t.Parallel()
	for doc, want := range map[string]string{
		`{"hold_id":"abc"}`: "abc", `{"a":1,"hold_id": "abc","b":2}`: "abc",
		`{"hold_id":5}`: "", `{"hold_id":"abc`: "", `{}`: "", `{"hold_id":`: "",
	} {
		if got := field([]byte(doc), "hold_id"); got != want {
			t.Errorf("%s gives %q, want %q", doc, got, want)
		}
	}
}
