package apiclient

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/holdfast-escrow/holdfast"
)

func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return &Client{API: s.URL, Admin: s.URL, Token: "secret-token"}
}

func TestCreateSendsTheBodyOfTheContract(t *testing.T) {
	t.Parallel()
	var body, auth, kind string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		body, auth, kind = string(b), r.Header.Get("Authorization"), r.Header.Get("Content-Type")
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, `{"hold_id":"01990000-0000-8123-8000-000000000001","status":"PENDING","amount":5}`)
	})
	h, err := c.Create(context.Background(), CreateHold{Sender: "a", Recipient: "b", Amount: 5, UnlockInSeconds: 10, Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	if h.Status != holdfast.Pending || h.Amount != 5 {
		t.Errorf("read %+v", h)
	}
	const want = `{"sender_id":"a","recipient_id":"b","amount":5,"unlock_in_seconds":10,"idempotency_key":"k"}`
	if body != want {
		t.Errorf("sent %s, want %s", body, want)
	}
	if auth != "Bearer secret-token" || kind != "application/json" {
		t.Errorf("headers %q, %q", auth, kind)
	}
}

func TestProblemBecomesAnErrorWithItsCode(t *testing.T) {
	t.Parallel()
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusPaymentRequired)
		io.WriteString(w, `{"code":"insufficient_funds","detail":"not enough coins","status":402}`)
	})
	_, err := c.Account(context.Background(), "u")
	p := AsProblem(err)
	if p == nil || p.Code != "insufficient_funds" || p.Status != 402 {
		t.Fatalf("got %v", err)
	}
	if s := err.Error(); s != "not enough coins (402 insufficient_funds)" {
		t.Errorf("the error reads %q", s)
	}
}

func TestAnswerThatIsNoProblemIsNamedUnexpected(t *testing.T) {
	t.Parallel()
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadGateway)
		io.WriteString(w, "<html>")
	})
	_, err := c.Hold(context.Background(), "x")
	if p := AsProblem(err); p == nil || p.Code != "unexpected_answer" || p.Status != 502 {
		t.Errorf("got %v", err)
	}
}

func TestNobodyListening(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	base := "http://" + l.Addr().String()
	l.Close()
	_, err = (&Client{API: base}).Hold(context.Background(), "x")
	if err == nil || !strings.Contains(err.Error(), "nothing listens at "+base) || AsProblem(err) != nil {
		t.Errorf("got %v", err)
	}
}

func TestBaseURL(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"127.0.0.1:8080": "http://127.0.0.1:8080", ":8080": "http://127.0.0.1:8080",
		"0.0.0.0:1": "http://127.0.0.1:1", "[::]:2": "http://127.0.0.1:2",
		"https://pay.example/": "https://pay.example", "host:5": "http://host:5",
	} {
		if got := BaseURL(in); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}
