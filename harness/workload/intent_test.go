package workload

import (
	"reflect"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

func intents(t *testing.T, cfg Config, client, n int) []Intent {
	t.Helper()
	cfg.APIs = []string{"http://unused"}
	in, err := Intents(cfg, client, n)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func TestSeedDecidesTheIntents(t *testing.T) {
	t.Parallel()
	first := intents(t, Config{Seed: 4}, 3, 500)
	if !reflect.DeepEqual(first, intents(t, Config{Seed: 4, Salt: "again"}, 3, 500)) {
		t.Error("one seed, two schedules")
	}
	for name, other := range map[string][]Intent{
		"seed":   intents(t, Config{Seed: 5}, 3, 500),
		"client": intents(t, Config{Seed: 4}, 2, 500),
	} {
		if reflect.DeepEqual(first[:5], other[:5]) {
			t.Errorf("another %s, the same schedule", name)
		}
	}
}

// What the issue asks for occurs, about as often as the shares say.
func TestIntentsCoverWhatCustomersDo(t *testing.T) {
	t.Parallel()
	cfg := Config{Seed: 1, Clients: 10, Rate: 100}
	all := intents(t, cfg, 0, 20000)
	if err := cfg.defaults(); err == nil {
		t.Error("a workload without an address")
	}
	seen, senders, items, near := map[string]int{}, map[int]int{}, 0, 0
	for _, in := range all {
		seen[in.Kind]++
		for _, it := range in.Items {
			items++
			senders[it.Sender]++
			seen["dup "+string(it.Dup)]++
			seen["cancel "+string(it.Cancel)]++
			if it.Recipient == it.Sender || it.Recipient >= cfg.celebrity()+1+cfg.Banned+cfg.Refusable {
				t.Fatalf("recipient %+v", it)
			}
			if it.Recipient == cfg.celebrity() {
				seen["celebrity"]++
			} else if it.Recipient > cfg.celebrity()+cfg.Banned {
				seen["refusable"]++
			} else if it.Recipient > cfg.celebrity() {
				seen["banned"]++
			} else if it.Recipient%3 == it.Sender%3 {
				seen["same shard"]++
			} else {
				seen["cross shard"]++
			}
			if it.Delay < time.Second || it.Delay > cfg.MaxDelay || !it.Absolute && it.Delay%time.Second != 0 {
				t.Fatalf("delay %+v", it)
			}
			if it.Cancel == CancelNear {
				if near++; it.CancelAt.Abs() > cfg.NearWindow {
					t.Fatalf("near maturity %+v", it)
				}
			}
			if it.Twice {
				seen["twice"]++
			}
			if it.Amount > cfg.Fund {
				seen["poor"]++
			}
		}
	}
	for _, what := range []string{KindCreate, KindBatch, KindGet, KindList, KindDeposit, KindWithdraw, "dup replay", "dup storm", "dup conflict",
		"dup clash", "cancel early", "cancel near", "cancel late", "twice", "celebrity", "refusable", "banned", "same shard", "cross shard", "poor"} {
		if seen[what] < 50 {
			t.Errorf("%s occurs %d times in %d intents", what, seen[what], len(all))
		}
	}
	if share := float64(near) / float64(items); share < 0.13 || share > 0.17 {
		t.Errorf("%.3f of the holds are cancelled near maturity, want 0.15", share)
	}
	if senders[0] < 3*senders[10] || senders[cfg.Senders-1] == 0 {
		t.Errorf("the senders are not drawn by Zipf: %v", senders)
	}
	if at := all[len(all)-1].At.Seconds(); at < 1900 || at > 2100 {
		t.Errorf("20,000 intents of one of 10 clients at 100/s take %.0f s, want 2,000", at)
	}
}

func TestUsersAreSpreadOverTheShards(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3, 4} {
		cfg := Config{APIs: []string{"x"}, Seed: 9, Map: holdfast.EvenShardMap(n)}
		if err := cfg.defaults(); err != nil {
			t.Fatal(err)
		}
		users := cfg.people()
		for i, u := range users {
			if cfg.Map.OfUser(u) != i%n {
				t.Errorf("user %d of %d shards is on shard %d", i, n, cfg.Map.OfUser(u))
			}
			if _, err := holdfast.ParseUserID(u.String()); err != nil {
				t.Error(err)
			}
		}
		salted := cfg
		salted.Salt = "x"
		if reflect.DeepEqual(users, salted.people()) || cfg.mark() == salted.mark() {
			t.Error("the salt changes no names")
		}
		if !reflect.DeepEqual(users, cfg.people()) {
			t.Error("one seed, two populations")
		}
	}
}

func TestConfigThatCannotWork(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]Config{
		"no address":     {},
		"no senders":     {APIs: []string{"x"}, Senders: -1},
		"no rate":        {APIs: []string{"x"}, Rate: -1},
		"a flat Zipf":    {APIs: []string{"x"}, Zipf: 0.9},
		"a batch of one": {APIs: []string{"x"}, Batch: 1},
		"a batch of 101": {APIs: []string{"x"}, Batch: 101},
	} {
		if _, err := Intents(cfg, 0, 1); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
