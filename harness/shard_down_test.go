package harness

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/apiclient"
	"github.com/holdfast-escrow/holdfast/internal/embed"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

// ownServers starts a stack on servers that this test may stop.
func ownServers(t *testing.T, n int) (*api, *embed.Stack) {
	t.Helper()
	servers := testkit.Stack(t, n)
	migrateAll(t, servers.DSNs)
	a := &api{rig: start(t, Options{DSNs: servers.DSNs, RedisURL: servers.RedisURL})}
	a.service = a.API.Token
	return a, servers
}

func startAgain(t *testing.T, servers *embed.Stack, shard int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := servers.Postgres(shard).StartAgain(ctx); err != nil {
		t.Fatal(err)
	}
}

// away checks the answer for a shard that cannot be reached: surely nothing was
// done, come back later.
func (a *api) away(name string, q ask) {
	a.t.Helper()
	got := a.send(q)
	if got.status != http.StatusServiceUnavailable || got.Code != "shard_unavailable" || got.header.Get("Retry-After") == "" || !got.Retry {
		a.t.Errorf("%s: %d %v %s", name, got.status, got.header, got.body)
	}
}

// One shard's PostgreSQL is stopped. What needs it is refused at once, what
// does not goes on, and what waits for it is done when it is back.
func TestShardDown(t *testing.T) {
	t.Parallel()
	a, servers := ownServers(t, 3)
	const gone = 1
	near, nearTo, far := a.user(0, 1000), a.user(2, 0), a.user(gone, 1000)
	doc := func(from, to holdfast.UserID, in time.Duration) ask {
		return a.post(a.doc(map[string]any{"sender_id": from, "recipient_id": to, "unlock_in_seconds": nil,
			"unlock_at": time.Now().Add(in).UTC().Format(time.RFC3339Nano)}))
	}
	// Created before, to mature while the shard is gone: one pays into it, one
	// out of it.
	into, out := a.created(doc(near, far, 4*time.Second)), a.created(doc(far, near, 4*time.Second))
	ctx, cancel := context.WithTimeout(a.ctx, time.Minute)
	defer cancel()
	if err := servers.Postgres(gone).Stop(ctx); err != nil {
		t.Fatal(err)
	}
	sender := doc(far, near, time.Hour)
	// Connections of the pool that were in use a moment ago may have died under
	// a statement for all their owner can tell: that is unknown, not away.
	for range a.Set.Money(gone).Config().MaxConns {
		if got := a.send(sender); got.Code != "outcome_unknown" {
			break
		}
	}
	a.away("a sender on the shard", sender)
	a.away("a recipient on the shard", doc(near, far, time.Hour))
	a.away("a sender and a recipient on the shard", doc(far, near, time.Hour))
	a.away("a hold on the shard", ask{"GET", "/v1/holds/" + out.ID.String(), a.service, "", nil})
	a.away("a cancel on the shard", ask{"DELETE", "/v1/holds/" + out.ID.String(), a.service, "", nil})
	a.away("an account on the shard", ask{"GET", "/v1/accounts/" + far.String(), a.service, "", nil})
	a.away("a deposit on the shard", ask{"POST", "/v1/accounts/" + far.String() + "/deposits", a.service, `{"amount":1,"idempotency_key":"x"}`, nil})
	a.away("a list on the shard", ask{"GET", "/v1/holds?sender_id=" + far.String(), a.service, "", nil})
	// Everything else goes on: created, cancelled, paid, also after the others
	// have matured and wait.
	var paid []holdfast.HoldID
	for range 5 {
		paid = append(paid, a.created(doc(near, nearTo, 1200*time.Millisecond)).ID)
	}
	withdrawn := a.created(doc(near, nearTo, time.Hour))
	if got := a.send(ask{"DELETE", "/v1/holds/" + withdrawn.ID.String(), a.service, "", nil}); got.status != 200 {
		t.Errorf("cancel elsewhere: %d %s", got.status, got.body)
	}
	for _, id := range paid {
		a.want(id, holdfast.Executed)
	}
	<-time.After(time.Until(into.UnlockAt) + 100*time.Millisecond)
	late := a.created(doc(near, nearTo, 1200*time.Millisecond))
	a.want(late.ID, holdfast.Executed)
	if h := a.get(into.ID); h.Status != holdfast.Pending {
		t.Errorf("a hold into the shard that is gone is %s: nobody knows whether it can be credited", h.Status)
	}
	if n := a.Sim.Effects(into.ID).Effects; n != 0 {
		t.Errorf("it was paid %d times", n)
	}
	startAgain(t, servers, gone)
	a.want(into.ID, holdfast.Executed)
	a.want(out.ID, holdfast.Executed)
	// The refused key is free: nothing was remembered, nothing was done.
	h := a.created(sender)
	a.wantBalance(far, 995, 5)
	a.wantBalance(near, 970, 0)
	a.wantBalance(nearTo, 30, 0)
	a.whole(append(paid, into.ID, out.ID, late.ID, withdrawn.ID, h.ID)...)
}

// answered is what a client knows of its creates.
type answered struct {
	sync.Mutex
	created map[string]holdfast.HoldID // by key
	asked   map[string]apiclient.CreateHold
	lost    int // 5xx or no answer
}

// load creates holds until it is told to stop; whatever the answer, it goes on.
func (a *answered) load(r *rig, who int, from, to []holdfast.UserID, stop <-chan struct{}) {
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		body := in(from[rand.IntN(len(from))], to[rand.IntN(len(to))], 1, fmt.Sprint(who, "-", n), 1500*time.Millisecond)
		h, err := r.API.Create(r.ctx, body)
		a.Lock()
		a.asked[body.Key] = body
		p := apiclient.AsProblem(err)
		switch {
		case err == nil:
			a.created[body.Key] = h.ID
		case p != nil && (p.Status == 503 || p.Status == 500 && p.Code == "outcome_unknown"):
			a.lost++
		default:
			r.t.Errorf("create: %v", err)
		}
		a.Unlock()
	}
}

// One shard's PostgreSQL is killed under load, twice, and recovers. Every 201
// is still there and is paid once, and every other key made one hold or none.
func TestShardKilledUnderLoad(t *testing.T) {
	t.Parallel()
	a, servers := ownServers(t, 2)
	from := []holdfast.UserID{a.user(0, 1_000_000), a.user(1, 1_000_000)}
	to := []holdfast.UserID{a.user(0, 0), a.user(1, 0)}
	seen := &answered{created: map[string]holdfast.HoldID{}, asked: map[string]apiclient.CreateHold{}}
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for c := range 6 {
		clients.Go(func() { seen.load(a.rig, c, from, to, stop) })
	}
	grown := func(by int) {
		t.Helper()
		count := func() int { seen.Lock(); defer seen.Unlock(); return len(seen.created) }
		before := count()
		testkit.Eventually(t, 30*time.Second, func() (bool, string) {
			return count() >= before+by, fmt.Sprintf("%d holds were created, %d before", count(), before)
		})
	}
	for range 2 {
		grown(150)
		if err := servers.Postgres(1).Kill(); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, 10*time.Second, func() (bool, string) {
			_, err := a.API.Account(a.ctx, from[1].String())
			return err != nil, "a killed shard still answers"
		})
		startAgain(t, servers, 1)
	}
	grown(150)
	close(stop)
	clients.Wait()
	t.Logf("%d created, %d without an answer", len(seen.created), seen.lost)
	if seen.lost == 0 {
		t.Error("no request met the killed shard")
	}
	var ids []holdfast.HoldID
	for key, body := range seen.asked {
		h, err := a.API.Create(a.ctx, body)
		id, acknowledged := seen.created[key]
		switch p := apiclient.AsProblem(err); {
		case err == nil && acknowledged && h.ID != id:
			t.Errorf("key %s was acknowledged as %s and is %s now", key, id, h.ID)
		case err == nil:
			ids = append(ids, h.ID)
		case acknowledged || p == nil || p.Code != "unlock_at_out_of_range":
			// Only a key that made nothing may be too late by now.
			t.Errorf("key %s (acknowledged %t): %v", key, acknowledged, err)
		}
	}
	for _, id := range ids {
		a.want(id, holdfast.Executed)
	}
	total := int64(0)
	for _, u := range to {
		available, _ := a.balance(u)
		total += available
	}
	if total != int64(len(ids)) {
		t.Errorf("%d holds of 1 coin paid %d coins", len(ids), total)
	}
	a.whole(ids...)
}
