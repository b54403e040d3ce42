package workload

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// reply is what a server of these tests answers to one attempt: status 0 drops
// the connection, -1 cuts the answer in its middle.
type reply struct {
	status int
	body   string
	header string // Name: value
}

func problemOf(status int, code string) reply {
	return reply{status: status, body: fmt.Sprintf(`{"status":%d,"code":%q}`, status, code)}
}

// script answers attempt after attempt, the last reply for ever, and remembers
// the bodies.
type script struct {
	mu      sync.Mutex
	replies []reply
	bodies  []string
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	s.bodies = append(s.bodies, r.Method+" "+string(body)+r.Header.Get("Idempotency-Key"))
	now := s.replies[0]
	if len(s.replies) > 1 {
		s.replies = s.replies[1:]
	}
	s.mu.Unlock()
	switch now.status {
	case 0:
		panic(http.ErrAbortHandler)
	case -1:
		w.Header().Set("Content-Length", "100000")
		io.WriteString(w, `{"hold_id":`)
		panic(http.ErrAbortHandler)
	}
	if name, value, ok := strings.Cut(now.header, ": "); ok {
		w.Header().Set(name, value)
	}
	w.WriteHeader(now.status)
	io.WriteString(w, now.body)
}

// scripted is a world before one server that answers by the script.
func scripted(t *testing.T, replies ...reply) (*World, *script) {
	t.Helper()
	s := &script{replies: replies}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	w, err := newWorld(Config{APIs: []string{server.URL}, GiveUp: 250 * time.Millisecond, BackoffFirst: 2 * time.Millisecond, BackoffMost: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w, s
}

func holdJSON(h holdfast.Hold) string {
	b, _ := json.Marshal(h)
	return string(b)
}

// What a client may conclude from each answer, alone and after a lost one.
func TestAnswersBecomeOutcomes(t *testing.T) {
	t.Parallel()
	w0, _ := scripted(t, reply{})
	it := Item{Sender: 0, Recipient: 1, Amount: 5, Delay: time.Second}
	good := holdfast.Hold{ID: holdfast.NewHoldID(1000, 1, 1), Status: holdfast.Pending, Sender: w0.Users[0], Recipient: w0.Users[1], Amount: 5}
	other := good
	other.Amount = 6
	lost, created := reply{}, reply{201, holdJSON(good), ""}
	paid, waits := good, good
	paid.Status = holdfast.Executed
	late := func(h holdfast.Hold) reply {
		return reply{409, `{"status":409,"code":"hold_matured","hold":` + holdJSON(h) + `}`, ""}
	}
	for _, row := range []struct {
		name    string
		kind    string
		replies []reply
		want    Outcome
		code    string
		nothing bool
	}{
		{"created", KindCreate, []reply{created}, OK, "", false},
		{"created after a lost answer", KindCreate, []reply{lost, created}, OK, "", false},
		{"created after half an answer", KindCreate, []reply{{status: -1}, created}, OK, "", false},
		{"never answered", KindCreate, []reply{lost}, Unknown, "", false},
		{"a success that is no hold", KindCreate, []reply{{201, `{"hold_id":"x"}`, ""}}, Unknown, "", false},
		{"a success of another amount", KindCreate, []reply{{201, holdJSON(other), ""}}, OK, CodeMismatch, false},
		{"refused", KindCreate, []reply{problemOf(422, "recipient_not_payable")}, Refused, "recipient_not_payable", false},
		{"refused after a lost answer", KindCreate, []reply{lost, problemOf(422, "recipient_not_payable")}, Unknown, "recipient_not_payable", false},
		{"refused, remembered, after a lost answer", KindCreate, []reply{lost, problemOf(402, codeInsufficient)}, Refused, codeInsufficient, false},
		{"replayed refusal after a lost answer", KindCreate, []reply{lost, {422, `{"code":"x"}`, "Idempotent-Replayed: true"}}, Refused, "x", false},
		{"the key is another's after a lost answer", KindCreate, []reply{lost, problemOf(422, codeKeyReused)}, Refused, codeKeyReused, false},
		{"refused after nothing was done", KindCreate, []reply{problemOf(503, codeUnavailable), problemOf(403, "forbidden_sender")}, Refused, "forbidden_sender", false},
		{"overloaded for ever", KindCreate, []reply{problemOf(503, codeOverloaded)}, Unknown, codeOverloaded, true},
		{"over the rate for ever", KindCreate, []reply{problemOf(429, "rate_limited")}, Unknown, "rate_limited", true},
		{"in flight for ever", KindCreate, []reply{problemOf(409, codeInFlight)}, Unknown, codeInFlight, true},
		{"lost, then overloaded for ever", KindCreate, []reply{lost, problemOf(503, codeOverloaded)}, Unknown, codeOverloaded, false},
		{"503 without a promise", KindCreate, []reply{{503, "<html>", ""}}, Unknown, "", false},
		{"404 of somebody else", KindCreate, []reply{{404, "<html>", ""}}, Unknown, "", false},
		{"the body did not arrive", KindCreate, []reply{problemOf(408, "request_timeout")}, Unknown, "request_timeout", false},
		{"the server does not know", KindCreate, []reply{problemOf(500, "outcome_unknown")}, Unknown, "outcome_unknown", false},
		{"a redirect", KindCreate, []reply{{307, "", "Location: /elsewhere"}}, Unknown, "", false},
		{"too late to cancel", KindCancel, []reply{late(waits)}, Refused, "hold_matured", false},
		{"too late after a lost answer", KindCancel, []reply{lost, late(waits)}, Unknown, "hold_matured", false},
		{"paid after a lost answer", KindCancel, []reply{lost, late(paid)}, Refused, "hold_matured", false},
		{"cancelled, and still pending", KindCancel, []reply{{200, holdJSON(good), ""}}, OK, CodeMismatch, false},
		{"read", KindGet, []reply{lost, {200, holdJSON(paid), ""}}, OK, "", false},
		{"not found after a lost answer", KindGet, []reply{lost, problemOf(404, "hold_not_found")}, Refused, "hold_not_found", false},
		{"one key, two holds", KindList, []reply{{200, `{"holds":[` + holdJSON(good) + "," + holdJSON(other) + `]}`, ""}}, OK, CodeMismatch, false},
		{"listed, none", KindList, []reply{{200, `{"holds":[]}`, ""}}, OK, "", false},
		{"a list that is none", KindList, []reply{{200, `{}`, ""}}, Unknown, "", false},
		{"deposited", KindDeposit, []reply{lost, {201, `{"movement_id":"` + good.ID.String() + `"}`, ""}}, OK, "", false},
		{"withdrawn from a closed account after a lost answer", KindWithdraw, []reply{lost, problemOf(409, "account_closed")}, Unknown, "account_closed", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			w, s := scripted(t, row.replies...)
			ctx, l := context.Background(), newLane(&w.cfg, 1)
			about := seen{good.ID, "k", good.Sender, good.Recipient, good.Amount}
			var op Op
			switch row.kind {
			case KindCreate:
				op = w.create(ctx, l, w.bodyOf(it, "k"), 1)
			case KindGet:
				op = w.get(ctx, l, about)
			case KindCancel:
				op = w.cancel(ctx, l, about)
			case KindList:
				op = w.list(ctx, l, about)
			default:
				op = w.cash(ctx, l, row.kind, "k", good.Sender, 5)
			}
			if op.Outcome != row.want || op.Code != row.code || op.Nothing != row.nothing {
				t.Errorf("%+v", op)
			}
			if (op.Return == Never) != (row.want == Unknown) || op != w.History.Ops()[op.ID] {
				t.Errorf("recorded %+v, returned %+v", w.History.Ops()[op.ID], op)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if n := len(s.bodies); n != op.Attempts || row.want == Unknown && row.replies[0].status != 422 && len(row.replies) == 1 && n < 2 {
				t.Errorf("%d attempts recorded, %d seen", op.Attempts, n)
			}
			for _, b := range s.bodies {
				if b != s.bodies[0] {
					t.Errorf("a repetition is another request: %s, %s", b, s.bodies[0])
				}
			}
		})
	}
}

// A batch repeats only what was not answered item by item.
func TestBatchRepeatsTheOpenItems(t *testing.T) {
	t.Parallel()
	item := func(h holdfast.Hold) string { return `{"status":201,"hold":` + holdJSON(h) + `}` }
	const away = `{"status":503,"problem":{"status":503,"code":"shard_unavailable"}}`
	const poor = `{"status":402,"problem":{"status":402,"code":"insufficient_funds"}}`
	w, s := scripted(t, reply{})
	var bodies []holdBody
	var holds []holdfast.Hold
	for i := range 3 {
		bodies = append(bodies, w.bodyOf(Item{Sender: i, Recipient: 9, Amount: 5, Delay: time.Second}, fmt.Sprint("k", i)))
		holds = append(holds, holdfast.Hold{ID: holdfast.NewHoldID(1, 1, uint64(i)), Status: holdfast.Pending, Sender: w.Users[i], Recipient: w.Users[9], Amount: 5})
	}
	results := func(r ...string) reply { return reply{200, `{"results":[` + strings.Join(r, ",") + `]}`, ""} }
	s.replies = []reply{{}, results(item(holds[0]), away, poor), results(item(holds[1]))}
	ops := w.createBatch(context.Background(), newLane(&w.cfg, 1), bodies)
	for i, want := range []Outcome{OK, OK, Refused} {
		if ops[i].Outcome != want || ops[i].Kind != KindBatchItem || ops[i].Key != fmt.Sprint("k", i) {
			t.Errorf("item %d: %+v", i, ops[i])
		}
	}
	if ops[1].Hold != holds[1].ID || ops[1].Attempts != 3 || ops[0].Attempts != 2 {
		t.Errorf("holds and attempts: %+v", ops)
	}
	if strings.Count(s.bodies[1], "sender_id") != 3 || strings.Count(s.bodies[2], "sender_id") != 1 {
		t.Errorf("sent %v", s.bodies)
	}
	s.replies = []reply{results(item(holds[0]))} // for three items
	for _, op := range w.createBatch(context.Background(), newLane(&w.cfg, 1), bodies) {
		if op.Outcome != Unknown || op.Nothing {
			t.Errorf("a result too few: %+v", op)
		}
	}
}

// A client whose address is dead goes to another one.
func TestClientSwitchesTheAddress(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := "http://" + l.Addr().String()
	l.Close()
	id := holdfast.NewHoldID(1, 1, 1)
	w, _ := scripted(t, reply{201, `{"movement_id":"` + id.String() + `"}`, ""})
	w.cfg.APIs = append([]string{dead}, w.cfg.APIs...)
	most := 0
	for i := range 20 {
		op := w.cash(context.Background(), newLane(&w.cfg, i), KindDeposit, "k", w.Users[0], 1)
		if op.Outcome != OK {
			t.Fatalf("%+v", op)
		}
		most = max(most, op.Attempts)
	}
	if most != 2 {
		t.Errorf("%d attempts at most, want 2", most)
	}
	w.cfg.APIs = []string{dead}
	if op := w.cash(context.Background(), newLane(&w.cfg, 1), KindDeposit, "k", w.Users[0], 1); op.Outcome != Unknown || !op.Nothing {
		t.Errorf("nobody listens: %+v", op)
	}
}
