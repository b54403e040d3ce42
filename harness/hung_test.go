package harness

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

// A shard that hangs (its server stopped, not dead) keeps its own recipients
// waiting and nobody else's, and no hold is claimed without a driver.
func TestHungRecipientShardDelaysNobodyElse(t *testing.T) {
	t.Parallel()
	servers := testkit.Stack(t, 2)
	dsns := append([]string(nil), servers.DSNs[:2]...)
	migrateAll(t, dsns)
	r := start(t, Options{DSNs: dsns, RedisURL: servers.RedisURL})
	from, near, far := r.user(0, 100), r.user(0, 0), r.user(1, 0)
	hung := r.create(in(from, far, 10, "far", 2500*time.Millisecond))
	fine := r.create(in(from, near, 20, "near", 2500*time.Millisecond))
	if err := servers.Postgres(1).Pause(); err != nil {
		t.Fatal(err)
	}
	paid := r.want(fine.ID, holdfast.Executed)
	if h := r.get(hung.ID); h.Status != holdfast.Pending {
		t.Errorf("a hold whose recipient's shard hangs is %s, want PENDING", h.Status)
	}
	if err := servers.Postgres(1).Resume(); err != nil {
		t.Fatal(err)
	}
	t.Logf("lag of the other %s", paid.ExecutedAt.Sub(paid.UnlockAt))
	r.want(hung.ID, holdfast.Executed)
	r.wantBalance(near, 20, 0)
	r.wantBalance(far, 10, 0)
	r.whole(fine.ID, hung.ID)
}

// forbiddingAPI pays, loses its answer, and then forbids to look: what it says
// to the look-up carries a code of the list of refusals and names no hold.
type forbiddingAPI struct {
	mu    sync.Mutex
	posts int
	looks int
}

func (a *forbiddingAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if r.Method == http.MethodGet {
		a.looks++
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `{"code":"payment_forbidden"}`)
		return
	}
	a.posts++
	if a.posts == 1 {
		panic(http.ErrAbortHandler) // paid; the answer is lost
	}
	var body map[string]any
	_ = json.NewDecoder(r.Body).Decode(&body)
	body["payment_id"], body["status"] = "first", "succeeded"
	_ = json.NewEncoder(w).Encode(body)
}

// A look-up that is refused without naming the hold may only mean that we may
// not look. It never refunds what may have been paid.
func TestForbiddenLookUpRefundsNobody(t *testing.T) {
	t.Parallel()
	api := &forbiddingAPI{}
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	r := start(t, Options{DSNs: testkit.Databases(t, 2), RedisURL: testkit.Redis(t), PaymentURL: server.URL})
	from, to := r.user(0, 100), r.user(1, 0)
	h := r.create(in(from, to, 100, "k", 1200*time.Millisecond))
	r.want(h.ID, holdfast.Executed)
	r.wantBalance(from, 0, 0)
	r.wantBalance(to, 100, 0)
	api.mu.Lock()
	defer api.mu.Unlock()
	if api.looks == 0 || api.posts < 2 {
		t.Errorf("%d look-ups and %d posts: nothing was tried", api.looks, api.posts)
	}
}
