package paysim

import (
	"maps"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// Names under which the strikes of faults that are no modes are counted.
const (
	struckErrorBefore  = "error_ratio_before" // a 500 of error_ratio, nothing done
	struckErrorAfter   = "error_ratio_after"  // a 500 of error_ratio, payment done
	struckErrorLookup  = "error_ratio_lookup" // a 500 of error_ratio to a look-up
	struckLatency      = "latency"            // a call that had to wait
	struckBanned       = "banned"             // a payment refused for good
	struckKeyForgotten = "key_forgotten"      // a key whose lifetime was over
	struckFollowed     = "redirect_followed"  // a redirect that somebody followed
	struckSettledLate  = "settled_late"       // a payment of pending or late that was made
)

// Stats are how many calls came and how often each fault struck, by the name of
// its mode or by one of the names above, since the simulator started or was
// reset. A change of the faults does not set them back.
type Stats struct {
	Calls  CallCount      `json:"calls"`
	Struck map[string]int `json:"struck"`
	Totals Totals         `json:"totals"`
}

// CallCount is how many calls came under /v1.
type CallCount struct {
	Payments int `json:"payments"`
	Lookups  int `json:"lookups"`
}

// Stats are the counts so far.
func (s *Sim) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ripen(time.Now())
	return Stats{Calls: s.calls, Struck: maps.Clone(s.struck), Totals: s.totals}
}

// call is one call under /v1 as far as the faults look at it.
type call struct {
	payment
	key    keyHash
	name   string // the key as it was sent
	lookup bool
}

// answer claims something about the payment that was asked for.
func (c call) answer(status string) (int, []byte) {
	return result{hold: c.Hold, recipient: c.Recipient, amount: c.Amount}.say(c.key, status)
}

// fate is what the faults decide for one call.
type fate struct {
	mode  Mode
	wait  time.Duration
	fail  bool // answer 500
	after bool // … only after the payment was made
}

// draw decides the fate of a call and counts what will strike it.
func (s *Sim) draw(c call) fate {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.lookup {
		s.calls.Lookups++
	} else {
		s.calls.Payments++
	}
	var known bool
	if c.lookup && (len(s.rules) > 0 || s.faults.Mode != ModeOK) {
		var r result
		if r, known = s.results[c.key]; known {
			c.Recipient = r.recipient
		} else {
			c.Recipient = s.asked[c.key]
		}
	}
	if s.perRecipient && !c.lookup {
		if s.asked == nil {
			s.asked = make(map[keyHash]holdfast.UserID)
		}
		s.asked[c.key] = c.Recipient
	}
	x := fate{mode: s.pick(c, known)}
	if x.mode != ModeOK {
		s.struck[string(x.mode)]++
	}
	if modes[x.mode].phase == before {
		return x
	}
	x.wait = s.drawWait()
	if s.faults.ErrorRatio > 0 {
		// Two draws for each call, so that the sequence does not depend on
		// what came of earlier ones.
		failed, after := s.random.Float64(), s.random.Float64()
		x.fail, x.after = failed < s.faults.ErrorRatio && x.mode == ModeOK, after < 0.5
	}
	if x.fail {
		switch {
		case c.lookup:
			s.struck[struckErrorLookup]++
		case x.after:
			s.struck[struckErrorAfter]++
		default:
			s.struck[struckErrorBefore]++
		}
	}
	return x
}

// drawWait is latency ± jitter. s.mu is held.
func (s *Sim) drawWait() time.Duration {
	if s.faults.LatencyMS == 0 {
		return 0
	}
	wait := time.Duration(s.faults.LatencyMS) * time.Millisecond
	if j := s.faults.JitterMS; j > 0 {
		wait += time.Duration((2*s.random.Float64() - 1) * float64(j) * float64(time.Millisecond))
	}
	s.struck[struckLatency]++
	return wait
}

// pick is the mode of the first rule that strikes, or the mode for all. s.mu is
// held.
func (s *Sim) pick(c call, known bool) Mode {
	for _, r := range s.rules {
		if !r.about(c, known) || r.Next > 0 && r.left == 0 {
			continue
		}
		if r.Ratio > 0 && r.Ratio < 1 && s.random.Float64() >= r.Ratio {
			continue
		}
		if r.Next > 0 {
			r.left--
		}
		return r.Mode
	}
	if (&rule{Rule: Rule{Mode: s.faults.Mode}}).about(c, known) {
		return s.faults.Mode
	}
	return ModeOK
}

// about reports whether a rule can strike a call at all. An answer that says
// something wrong about a payment needs a payment to say it about.
func (r *rule) about(c call, known bool) bool {
	switch {
	case c.lookup && (r.Calls == Payments || modes[r.Mode].payOnly):
		return false
	case !c.lookup && r.Calls == Lookups:
		return false
	case r.recipients != nil && !r.recipients[c.Recipient]:
		return false
	}
	if c.lookup && !known {
		switch r.Mode {
		case ModeTruncated, ModeWrongAmount, ModeWrongID, ModeWrongRecipient, ModeSlowBody, ModeHugeBody:
			return false
		}
	}
	return true
}
