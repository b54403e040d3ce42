package harness

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast/coordinator"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

// A coin too much on a real shard is found although nobody asks for a proof.
func TestProofUnasked(t *testing.T) {
	t.Parallel()
	r := start(t, Options{DSNs: testkit.Databases(t, 2), RedisURL: testkit.Redis(t),
		Coordinator: func(c *coordinator.Config) { c.ProofEvery = 100 * time.Millisecond }})
	u := r.user(1, 100)
	metric := func(line string) (bool, string) {
		res, err := http.Get(r.API.Admin + "/metrics")
		if err != nil {
			return false, err.Error()
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			return false, err.Error()
		}
		return strings.Contains(string(text), "\n"+line+"\n"), "no line " + line
	}
	testkit.Eventually(t, 30*time.Second, func() (bool, string) { return metric(`holdfast_ledger_imbalance{shard="1"} 0`) })
	if _, err := r.Set.Owner(1).Exec(r.ctx, "UPDATE accounts SET available = available + 1 WHERE user_id = $1", [16]byte(u)); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 30*time.Second, func() (bool, string) { return metric(`holdfast_ledger_imbalance{shard="1"} 1`) })
}
