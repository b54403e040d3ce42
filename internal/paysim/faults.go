package paysim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"

	"github.com/holdfast-escrow/holdfast"
)

// Mode is how the simulator treats everything under /v1.
type Mode string

const (
	ModeOK           Mode = "ok"
	ModeDown         Mode = "down"          // closes the connection, does nothing
	ModeHang         Mode = "hang"          // does nothing and never answers
	ModeLostResponse Mode = "lost_response" // pays, then closes the connection; look-ups are answered
	ModeUnauthorized Mode = "unauthorized"  // 401, does nothing
	ModeGarbage      Mode = "garbage"       // pays, then answers 200 with junk; look-ups get junk too
)

const (
	maxLatencyMS = 600_000
	maxBanned    = 100_000
)

// Faults are what PUT /sim/faults sets; what it does not name is back to normal.
type Faults struct {
	// ErrorRatio of the calls under /v1 get a 500; half of those that would pay
	// do so first. Seed makes the sequence repeatable.
	ErrorRatio float64           `json:"error_ratio"`
	LatencyMS  int64             `json:"latency_ms"` // waited before anything is done, also when the client has left
	Mode       Mode              `json:"mode"`
	Banned     []holdfast.UserID `json:"banned"` // recipients that are refused for good
	Seed       uint64            `json:"seed"`
}

var faultFields = map[string]bool{"error_ratio": true, "latency_ms": true, "mode": true, "banned": true, "seed": true}

func (f Faults) check() error {
	switch f.Mode {
	case ModeOK, ModeDown, ModeHang, ModeLostResponse, ModeUnauthorized, ModeGarbage:
	default:
		return fmt.Errorf("mode %q is none of ok, down, hang, lost_response, unauthorized, garbage", f.Mode)
	}
	switch {
	case !(f.ErrorRatio >= 0 && f.ErrorRatio <= 1):
		return fmt.Errorf("error_ratio %v does not lie between 0 and 1", f.ErrorRatio)
	case f.LatencyMS < 0 || f.LatencyMS > maxLatencyMS:
		return fmt.Errorf("latency_ms %d does not lie between 0 and %d", f.LatencyMS, maxLatencyMS)
	case len(f.Banned) > maxBanned:
		return fmt.Errorf("banned has more than %d users", maxBanned)
	}
	return nil
}

// parseFaults reads exactly one object with known fields. A misspelt fault that
// is ignored would make a test pass that tests nothing.
func parseFaults(body []byte) (Faults, error) {
	f := Faults{Mode: ModeOK}
	dec := json.NewDecoder(bytes.NewReader(body))
	var names map[string]json.RawMessage
	if err := dec.Decode(&names); err != nil {
		return f, fmt.Errorf("not a JSON object: %w", err)
	}
	if names == nil {
		return f, errors.New("not a JSON object: null")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return f, errors.New("text after the JSON object")
	}
	for name := range names {
		if !faultFields[name] {
			return f, fmt.Errorf("unknown field %q", name)
		}
	}
	if err := json.Unmarshal(body, &f); err != nil {
		return f, err
	}
	return f, f.check()
}

// SetFaults changes how the simulator behaves from the next call on.
func (s *Sim) SetFaults(f Faults) error {
	if f.Mode == "" {
		f.Mode = ModeOK
	}
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
	return s.faults
}

// behave sets the faults. s.mu is held or s is not shared yet.
func (s *Sim) behave(f Faults) {
	f.Banned = append([]holdfast.UserID{}, f.Banned...)
	s.faults = f
	s.random = rand.New(rand.NewPCG(f.Seed, 0x686f6c6466617374))
	s.banned = make(map[holdfast.UserID]bool, len(f.Banned))
	for _, u := range f.Banned {
		s.banned[u] = true
	}
}

// fate is what the faults decide for one call.
type fate struct {
	mode      Mode
	latencyMS int64
	fail      bool // answer 500
	after     bool // … only after the payment was made
}

func (s *Sim) draw() fate {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := fate{mode: s.faults.Mode, latencyMS: s.faults.LatencyMS}
	if s.faults.ErrorRatio > 0 {
		// Two draws for each call, so that the sequence does not depend on
		// what came of earlier ones.
		failed, after := s.random.Float64(), s.random.Float64()
		x.fail, x.after = failed < s.faults.ErrorRatio, after < 0.5
	}
	return x
}
