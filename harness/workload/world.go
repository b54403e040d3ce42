package workload

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// World is the customers of one run, their accounts, and what they were told.
type World struct {
	Users                       []holdfast.UserID // all of them; intents name them by index
	Senders, Recipients, Banned []holdfast.UserID
	Celebrity                   holdfast.UserID
	// Refusable is for the payment API's list of banned recipients: their
	// accounts are open, so that holds for them are created and refused at
	// maturity.
	Refusable []holdfast.UserID
	Map       *holdfast.ShardMap
	Funded    int64 // deposited by Prepare, over all senders
	History   *History

	cfg     Config
	mark    string
	http    *http.Client
	hands   chan *lane
	planned atomic.Int64
	intents atomic.Int64
	skipped atomic.Int64
	dropped atomic.Int64
	work    sync.WaitGroup
}

// newWorld makes the customers, who have no accounts yet.
func newWorld(cfg Config) (*World, error) {
	if err := cfg.defaults(); err != nil {
		return nil, err
	}
	w := &World{cfg: cfg, Users: cfg.people(), Map: cfg.Map, History: NewHistory(cfg.Seed), mark: cfg.mark(), http: newHTTP(&cfg)}
	rest := w.Users
	take := func(n int) (part []holdfast.UserID) { part, rest = rest[:n:n], rest[n:]; return part }
	w.Senders, w.Recipients = take(cfg.Senders), take(cfg.Recipients)
	w.Celebrity = take(1)[0]
	w.Banned, w.Refusable = take(cfg.Banned), take(cfg.Refusable)
	w.hands = make(chan *lane, cfg.Clients)
	for i := range cfg.Clients {
		w.hands <- newLane(&w.cfg, cfg.Clients+i)
	}
	return w, nil
}

// Prepare opens every account, funds the senders and bans the banned, through
// the API and with retries until ctx ends. It returns an error when one account
// could not be made ready.
func Prepare(ctx context.Context, cfg Config) (*World, error) {
	w, err := newWorld(cfg)
	if err != nil {
		return nil, err
	}
	first := w.cfg.celebrity() + 1
	err = w.each(len(w.Users), clientSetUp, func(l *lane, i int) error {
		u := w.Users[i]
		if err := w.setUp(ctx, l, http.MethodPut, u, nil); err != nil {
			return fmt.Errorf("open account %s: %w", u, err)
		}
		switch {
		case i < len(w.Senders):
			return w.fund(ctx, l, u)
		case i >= first && i < first+len(w.Banned):
			if err := w.setUp(ctx, l, http.MethodPatch, u, map[string]string{"status": "banned", "reason": "workload"}); err != nil {
				return fmt.Errorf("ban account %s: %w", u, err)
			}
		}
		return nil
	})
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("prepare a workload: %w", err)
	}
	w.Funded = int64(len(w.Senders)) * w.cfg.Fund
	return w, nil
}

// each runs f for 0 … n-1, a few at once, and returns its first error.
func (w *World) each(n, client int, f func(l *lane, i int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, min(n, setUpAtOnce))
	for worker := range errs {
		wg.Go(func() {
			l := newLane(&w.cfg, client)
			l.r = stream(w.cfg.Seed, 1<<21+uint64(worker))
			for i := next.Add(1) - 1; int(i) < n && errs[worker] == nil; i = next.Add(1) - 1 {
				errs[worker] = f(l, int(i))
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// setUp makes one request that may be repeated safely until it is answered.
func (w *World) setUp(ctx context.Context, l *lane, method string, u holdfast.UserID, body any) error {
	q := request{method: method, path: "/v1/accounts/" + u.String()}
	if body != nil {
		q.body = encode(body)
	}
	var last answer
	w.pursue(ctx, l, 0, func(ctx context.Context, base string) (bool, time.Duration) {
		last = w.send(ctx, base, q)
		return last.class != done && last.class != refused, last.retryAfter
	})
	if last.class != done {
		return fmt.Errorf("answered %d %s %s", last.status, last.code, last.err)
	}
	return nil
}

// fund deposits a sender's first coins under one key until it is answered.
func (w *World) fund(ctx context.Context, l *lane, u holdfast.UserID) error {
	if w.cfg.Fund == 0 {
		return nil
	}
	for {
		op := w.cash(ctx, l, KindDeposit, w.mark+"-fund", u, w.cfg.Fund)
		switch {
		case op.Outcome == OK:
			return nil
		case op.Outcome == Refused || ctx.Err() != nil:
			return fmt.Errorf("fund account %s: %d %s %s", u, op.HTTP, op.Code, op.Error)
		}
	}
}

// Close drops the connections.
func (w *World) Close() { w.http.CloseIdleConnections() }

// Money is what the world holds; see History.Money.
func (w *World) Money() Bounds { return w.History.Money() }
