package paysim

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

func TestRuleForTheNextCalls(t *testing.T) {
	t.Parallel()
	s := open(t, "")
	s.fault(`{"rules":[{"mode":"error","next":2},{"mode":"forbidden","calls":"lookups","next":1}]}`)
	p := testPayment(1)
	for i, want := range []int{500, 500, 200, 200} {
		if status, body := s.pay(p); status != want {
			t.Errorf("payment %d: %d %s, want %d", i, status, body, want)
		}
	}
	if f := s.sim.Faults(); len(f.Rules) != 1 || f.Rules[0].Mode != ModeForbidden || f.Rules[0].Next != 1 {
		t.Errorf("rules left: %+v", f.Rules)
	}
	for i, want := range []int{403, 200} {
		if status, body := s.lookup(p); status != want {
			t.Errorf("look-up %d: %d %s, want %d", i, status, body, want)
		}
	}
	s.struck("error", 2)
	s.struck("forbidden", 1)
}

func TestLookupsAloneFail(t *testing.T) {
	t.Parallel()
	s := open(t, "")
	s.fault(`{"rules":[{"mode":"unavailable","calls":"lookups"}]}`)
	p := testPayment(1)
	status, body := s.pay(p)
	s.want("pay", status, body, 200, 1, p)
	if status, body := s.lookup(p); status != 503 {
		t.Errorf("look-up: %d %s", status, body)
	}
}

func TestRuleForRecipients(t *testing.T) {
	t.Parallel()
	s := open(t, "")
	p, q := testPayment(1), testPayment(2)
	s.fault(fmt.Sprintf(`{"rules":[{"mode":"forbidden","recipients":[%q]}]}`, p.Recipient))
	if status, body := s.pay(p); status != 403 {
		t.Errorf("struck recipient: %d %s", status, body)
	}
	status, body := s.pay(q)
	s.want("another recipient", status, body, 200, 1, q)
	if status, body := s.lookup(p); status != 403 {
		t.Errorf("look-up of a struck payment: %d %s", status, body)
	}
	if status, body := s.lookup(q); status != 200 {
		t.Errorf("look-up of another: %d %s", status, body)
	}
	s.struck("forbidden", 2)
}

func TestRuleWithSeededRatio(t *testing.T) {
	t.Parallel()
	run := func(seed int) (struck []int) {
		s := open(t, "")
		s.fault(fmt.Sprintf(`{"seed":%d,"rules":[{"mode":"rate_limited","ratio":0.2}]}`, seed))
		for n := range 200 {
			if status, _ := s.pay(testPayment(byte(n))); status == 429 {
				struck = append(struck, n)
			}
		}
		s.struck("rate_limited", len(struck))
		return struck
	}
	first := run(1)
	if len(first) < 20 || len(first) > 70 {
		t.Errorf("%d of 200 were struck, want about 40", len(first))
	}
	if again := run(1); !slices.Equal(first, again) {
		t.Errorf("the same seed struck %v and then %v", first, again)
	}
	if other := run(2); slices.Equal(first, other) {
		t.Error("another seed struck the same calls")
	}
}

func TestErrorRatioIsCounted(t *testing.T) {
	t.Parallel()
	s := open(t, "")
	s.fault(`{"error_ratio":0.15,"seed":3}`)
	failed, done := 0, 0
	for n := range 200 {
		p := testPayment(byte(n))
		if status, _ := s.pay(p); status == 500 {
			failed++
			done += s.effects(p)
		}
	}
	st := s.sim.Stats()
	if failed == 0 || done == 0 || done == failed || st.Struck[struckErrorAfter] != done || st.Struck[struckErrorBefore] != failed-done || st.Calls.Payments != 200 {
		t.Errorf("%d failed, %d of them done, counted %+v", failed, done, st)
	}
}

func TestLatencyHasJitter(t *testing.T) {
	t.Parallel()
	s := open(t, "")
	s.fault(`{"latency_ms":500,"jitter_ms":400}`)
	seen := map[time.Duration]bool{}
	for range 100 {
		x := s.sim.draw(call{})
		if x.wait < 100*time.Millisecond || x.wait > 900*time.Millisecond {
			t.Errorf("waits %v", x.wait)
		}
		seen[x.wait/(100*time.Millisecond)] = true
	}
	if len(seen) < 6 {
		t.Errorf("the waits do not spread: %v", seen)
	}
	for _, bad := range []string{
		`{"latency_ms":1,"jitter_ms":2}`, `{"jitter_ms":-1}`, `{"rules":[{"mode":"x"}]}`, `{"rules":[{}]}`, `{"rules":[{"mode":"ok","Next":1}]}`,
		`{"rules":[{"mode":"down","next":-1}]}`, `{"rules":[{"mode":"down","ratio":2}]}`, `{"rules":[{"mode":"down","calls":"some"}]}`,
		`{"rules":[{"mode":"lie","calls":"lookups"}]}`, `{"key_lifetime_ms":-1}`, `{"settle_after_ms":-1}`, `{"rules":{}}`,
	} {
		if status, body := s.do("PUT", "/sim/faults", "", bad); status != 400 {
			t.Errorf("faults %s: %d %s", bad, status, body)
		}
	}
}

func TestStatsOutliveFaults(t *testing.T) {
	t.Parallel()
	s := open(t, "")
	s.fault(`{"mode":"down"}`)
	s.pay(testPayment(1))
	s.fault(`{}`)
	s.struck("down", 1)
	s.do("POST", "/sim/reset", "", nil)
	s.struck("down", 0)
}
