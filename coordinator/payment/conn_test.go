package payment

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/paysim"
)

func TestSending(t *testing.T) {
	t.Parallel()
	pipe := func() *watchedConn {
		here, there := net.Pipe()
		t.Cleanup(func() { here.Close(); there.Close() })
		go io.Copy(io.Discard, there)
		return &watchedConn{Conn: here}
	}
	t.Run("unwritten is sealed", func(t *testing.T) {
		t.Parallel()
		c := pipe()
		c.Write([]byte("an earlier request"))
		var way sending
		way.gotConn(httptrace.GotConnInfo{Conn: c, Reused: true})
		if !way.sure() {
			t.Error("what was written before us counts as ours")
		}
		if n, err := c.Write([]byte("late")); n != 0 || !errors.Is(err, errSealed) {
			t.Errorf("a late write went out: %d, %v", n, err)
		}
	})
	t.Run("written is remembered over a second connection", func(t *testing.T) {
		t.Parallel()
		c := pipe()
		var way sending
		way.gotConn(httptrace.GotConnInfo{Conn: c})
		c.Write([]byte("P"))
		way.gotConn(httptrace.GotConnInfo{Conn: pipe()})
		for range 2 {
			if way.sure() {
				t.Error("a written byte is forgotten")
			}
		}
	})
	t.Run("a connection that cannot be asked proves nothing", func(t *testing.T) {
		t.Parallel()
		var way sending
		way.gotConn(httptrace.GotConnInfo{Conn: pipe().Conn})
		if way.sure() {
			t.Error("sure without a proof")
		}
	})
}

func TestTLS(t *testing.T) {
	t.Parallel()
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err == nil && r.Method == "POST" {
			<-r.Context().Done()
			return
		}
		io.WriteString(w, good(nil))
	}))
	t.Cleanup(srv.Close)
	c := newClient(t, Config{URL: srv.URL, Timeout: 300 * time.Millisecond})
	if got := c.Pay(t.Context(), testHold); got.Outcome != Unknown || !got.SureNotSent {
		t.Errorf("certificate of a stranger: %+v", got)
	}
	c = newClient(t, Config{URL: srv.URL, Timeout: 300 * time.Millisecond})
	c.transport.TLSClientConfig = srv.Client().Transport.(*http.Transport).TLSClientConfig
	expect(t, "look-up", c.Lookup(t.Context(), testHold), Succeeded, "")
	if got := c.Pay(t.Context(), testHold); got.Outcome != Unknown || got.SureNotSent {
		t.Errorf("sent through TLS and not answered: %+v", got)
	}
}

// TestAgainstSimulator holds both sides of the contract against each other.
func TestAgainstSimulator(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name         string
		faults       paysim.Faults
		pay, lookup  Outcome
		after, again Outcome // look-up and payment when the faults are gone
		effects      int     // before "again"
	}{
		{"ok", paysim.Faults{}, Succeeded, Succeeded, Succeeded, Succeeded, 1},
		{"banned", paysim.Faults{Banned: []holdfast.UserID{testHold.Recipient}}, Refused, Refused, Refused, Refused, 0},
		{"down", paysim.Faults{Mode: paysim.ModeDown}, Unknown, Unknown, NeverSeen, Succeeded, 0},
		{"hang", paysim.Faults{Mode: paysim.ModeHang}, Unknown, Unknown, NeverSeen, Succeeded, 0},
		{"lost response", paysim.Faults{Mode: paysim.ModeLostResponse}, Unknown, Succeeded, Succeeded, Succeeded, 1},
		{"unauthorized", paysim.Faults{Mode: paysim.ModeUnauthorized}, Unknown, Unknown, NeverSeen, Succeeded, 0},
		{"garbage", paysim.Faults{Mode: paysim.ModeGarbage}, Unknown, Unknown, Succeeded, Succeeded, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			sim, err := paysim.New(paysim.Config{})
			if err != nil {
				t.Fatal(err)
			}
			srv := httptest.NewServer(sim)
			t.Cleanup(func() { sim.Close(); srv.Close() })
			client := newClient(t, Config{URL: srv.URL, Timeout: time.Second})
			want := func(what string, got Answer, outcome Outcome) {
				t.Helper()
				if got.Outcome != outcome || got.SureNotSent {
					t.Errorf("%s: got %+v, want %v", what, got, outcome)
				}
			}
			if got := client.Lookup(t.Context(), testHold); got.Outcome != NeverSeen {
				t.Errorf("before: %+v", got)
			}
			if err := sim.SetFaults(c.faults); err != nil {
				t.Fatal(err)
			}
			want("pay", client.Pay(t.Context(), testHold), c.pay)
			want("look-up", client.Lookup(t.Context(), testHold), c.lookup)
			if n := sim.Effects(testHold.ID).Effects; n != c.effects {
				t.Errorf("%d effects, want %d", n, c.effects)
			}
			if err := sim.SetFaults(paysim.Faults{}); err != nil {
				t.Fatal(err)
			}
			want("look-up after", client.Lookup(t.Context(), testHold), c.after)
			want("pay again", client.Pay(t.Context(), testHold), c.again)
			if n := sim.Totals().Doubles; n != 0 {
				t.Errorf("%d payments too many", n)
			}
		})
	}
}

func BenchmarkPay(b *testing.B) {
	sim, err := paysim.New(paysim.Config{})
	if err != nil {
		b.Fatal(err)
	}
	srv := httptest.NewServer(sim)
	client, err := New(Config{URL: srv.URL})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { client.Close(); sim.Close(); srv.Close() }()
	b.ReportAllocs()
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if a := client.Pay(b.Context(), testHold); a.Outcome != Succeeded {
				b.Fatalf("%+v", a)
			}
		}
	})
}
