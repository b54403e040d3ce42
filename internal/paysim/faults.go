package paysim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/holdfast-escrow/holdfast"
)

const (
	maxLatencyMS  = 600_000
	maxBanned     = 100_000
	maxRules      = 100
	maxMS         = 1 << 42 // a hundred years: no sum with the time of day overflows
	settleAfterMS = 1000    // when settle_after_ms is not given
)

// Calls says which calls a rule is about.
type Calls string

const (
	AllCalls Calls = "all"
	Payments Calls = "payments"
	Lookups  Calls = "lookups"
)

// Faults are what PUT /sim/faults sets; what it does not name is back to normal.
// They are not kept over a restart of the simulator: what it did is.
type Faults struct {
	// ErrorRatio of the calls under /v1 get a 500; half of those that would pay
	// do so first. Seed makes the sequence repeatable.
	ErrorRatio float64 `json:"error_ratio"`
	LatencyMS  int64   `json:"latency_ms"` // waited before anything is done, also when the client has left
	JitterMS   int64   `json:"jitter_ms"`  // the wait is latency_ms ± jitter_ms
	// Mode is for every call that no rule strikes.
	Mode   Mode              `json:"mode"`
	Rules  []Rule            `json:"rules,omitempty"` // in order: the first that strikes counts
	Banned []holdfast.UserID `json:"banned"`          // recipients that are refused for good
	Seed   uint64            `json:"seed"`
	// KeyLifetimeMS is how long a key is remembered after its payment; then it
	// is a key never seen, and pays again. 0: for ever.
	KeyLifetimeMS int64 `json:"key_lifetime_ms,omitempty"`
	// SettleAfterMS is how long the payments of the modes pending and late
	// take. 0: one second.
	SettleAfterMS int64 `json:"settle_after_ms,omitempty"`
}

// Rule strikes some of the calls.
type Rule struct {
	Mode  Mode  `json:"mode"`
	Calls Calls `json:"calls,omitempty"` // empty: all that the mode is about
	// Ratio of the calls are struck, drawn with the seed. 0: all.
	Ratio float64 `json:"ratio,omitempty"`
	// Next strikes only so many calls; Faults tells how many are left, and a
	// rule that has none left is gone. 0: no limit.
	Next int `json:"next,omitempty"`
	// Recipients limits the rule to payments to them and to look-ups of their
	// keys. Empty: everybody.
	Recipients []holdfast.UserID `json:"recipients,omitempty"`
}

var (
	faultFields = []string{"error_ratio", "latency_ms", "jitter_ms", "mode", "rules", "banned", "seed", "key_lifetime_ms", "settle_after_ms"}
	ruleFields  = []string{"mode", "calls", "ratio", "next", "recipients"}
)

// check makes the defaults explicit and refuses what is out of range.
func (f *Faults) check() error {
	if f.Mode == "" {
		f.Mode = ModeOK
	}
	if f.SettleAfterMS == 0 {
		f.SettleAfterMS = settleAfterMS
	}
	switch {
	case !(f.ErrorRatio >= 0 && f.ErrorRatio <= 1):
		return fmt.Errorf("error_ratio %v does not lie between 0 and 1", f.ErrorRatio)
	case f.LatencyMS < 0 || f.LatencyMS > maxLatencyMS:
		return fmt.Errorf("latency_ms %d does not lie between 0 and %d", f.LatencyMS, maxLatencyMS)
	case f.JitterMS < 0 || f.JitterMS > f.LatencyMS:
		return fmt.Errorf("jitter_ms %d does not lie between 0 and latency_ms", f.JitterMS)
	case f.KeyLifetimeMS < 0 || f.KeyLifetimeMS > maxMS:
		return fmt.Errorf("key_lifetime_ms %d does not lie between 0 and %d", f.KeyLifetimeMS, int64(maxMS))
	case f.SettleAfterMS < 0 || f.SettleAfterMS > maxMS:
		return fmt.Errorf("settle_after_ms %d does not lie between 0 and %d", f.SettleAfterMS, int64(maxMS))
	case len(f.Banned) > maxBanned:
		return fmt.Errorf("banned has more than %d users", maxBanned)
	case len(f.Rules) > maxRules:
		return fmt.Errorf("there are more than %d rules", maxRules)
	}
	if err := f.Mode.check(); err != nil {
		return err
	}
	for i, r := range f.Rules {
		if err := r.check(); err != nil {
			return fmt.Errorf("rule %d: %w", i, err)
		}
	}
	return nil
}

func (m Mode) check() error {
	if _, known := modes[m]; !known {
		names := slices.Sorted(maps.Keys(modes))
		return fmt.Errorf("mode %q is none of %s", m, strings.Trim(fmt.Sprint(names), "[]"))
	}
	return nil
}

func (r Rule) check() error {
	switch {
	case r.Calls != "" && r.Calls != AllCalls && r.Calls != Payments && r.Calls != Lookups:
		return fmt.Errorf("calls %q is none of all, payments, lookups", r.Calls)
	case r.Calls == Lookups && modes[r.Mode].payOnly:
		return fmt.Errorf("mode %s is about payments and never strikes a look-up", r.Mode)
	case !(r.Ratio >= 0 && r.Ratio <= 1):
		return fmt.Errorf("ratio %v does not lie between 0 and 1", r.Ratio)
	case r.Next < 0:
		return fmt.Errorf("next %d is negative", r.Next)
	case len(r.Recipients) > maxBanned:
		return fmt.Errorf("recipients has more than %d users", maxBanned)
	}
	return r.Mode.check()
}

// parseFaults reads exactly one object with known fields. A misspelt fault that
// is ignored would make a test pass that tests nothing.
func parseFaults(body []byte) (Faults, error) {
	var f Faults
	top, err := fieldsOf(body, faultFields)
	if err != nil {
		return f, err
	}
	var rules []json.RawMessage
	if raw, given := top["rules"]; given {
		if err := json.Unmarshal(raw, &rules); err != nil {
			return f, fmt.Errorf("rules: %w", err)
		}
	}
	for i, raw := range rules {
		if _, err := fieldsOf(raw, ruleFields); err != nil {
			return f, fmt.Errorf("rule %d: %w", i, err)
		}
	}
	if err := json.Unmarshal(body, &f); err != nil {
		return f, err
	}
	return f, f.check()
}

// fieldsOf is a JSON object whose names are all among the known ones.
func fieldsOf(body []byte, known []string) (map[string]json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(body))
	var fields map[string]json.RawMessage
	if err := dec.Decode(&fields); err != nil {
		return nil, fmt.Errorf("not a JSON object: %w", err)
	}
	if fields == nil {
		return nil, errors.New("not a JSON object: null")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("text after the JSON object")
	}
	for name := range fields {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("unknown field %q", name)
		}
	}
	return fields, nil
}

// SetFaults changes how the simulator behaves from the next call on.
func (s *Sim) SetFaults(f Faults) error {
	if err := f.check(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.behave(f)
	return nil
}

// Faults is how it behaves now.
func (s *Sim) Faults() Faults {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.faults
	f.Rules = nil
	for _, r := range s.rules {
		if r.Next > 0 && r.left == 0 {
			continue
		}
		r.Next = r.left
		f.Rules = append(f.Rules, r.Rule)
	}
	return f
}

// rule is a Rule at work.
type rule struct {
	Rule
	left       int
	recipients map[holdfast.UserID]bool
}

// behave sets the faults, which are checked. s.mu is held or s is not shared yet.
func (s *Sim) behave(f Faults) {
	f.Banned = append([]holdfast.UserID{}, f.Banned...)
	s.faults = f
	s.random = rand.New(rand.NewPCG(f.Seed, 0x686f6c6466617374))
	s.banned = make(map[holdfast.UserID]bool, len(f.Banned))
	for _, u := range f.Banned {
		s.banned[u] = true
	}
	s.rules, s.perRecipient = nil, false
	for _, r := range f.Rules {
		r.Recipients = slices.Clone(r.Recipients)
		x := &rule{Rule: r, left: r.Next}
		if len(r.Recipients) > 0 {
			s.perRecipient = true
			x.recipients = make(map[holdfast.UserID]bool, len(r.Recipients))
			for _, u := range r.Recipients {
				x.recipients[u] = true
			}
		}
		s.rules = append(s.rules, x)
	}
	if !s.perRecipient {
		s.asked = nil
	}
}
