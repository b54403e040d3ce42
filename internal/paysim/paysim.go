// Package paysim is a payment API to try Holdfast against: it pays, refuses and
// breaks on request. What it really paid is kept in a file of its own, a line
// per payment, written before any answer and whatever is answered, so that a
// test can compare what happened with what was said. It knows nothing of holds beyond
// the fields of a payment, and imports nothing of Holdfast but the nouns.
package paysim

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

const journalName = "payments.journal"

// Config is what a simulator needs.
type Config struct {
	// Dir holds the journal and is made if it does not exist; only one
	// simulator can use it at a time. Empty: a directory that Close removes.
	Dir string
	// Sync makes every group of payments survive a power cut and not only the
	// death of the process, at the price of an fsync per group.
	Sync bool
	Log  *slog.Logger
}

// keyHash stands for an idempotency key, bodyHash for what was asked under it.
type (
	keyHash  [16]byte
	bodyHash [8]byte
)

// result is what is remembered under a key: enough to give the same answer
// again. It is kept for every payment, so it is small.
type result struct {
	hold      holdfast.HoldID
	recipient holdfast.UserID
	amount    int64
	atMS      int64 // 0: decided before the journal kept the time
	body      bodyHash
	refused   bool
}

// Sim is the simulator. It is an http.Handler; Close it to stop.
type Sim struct {
	journal *journal
	tempDir string
	log     *slog.Logger
	mux     *http.ServeMux
	closed  chan struct{}
	once    sync.Once

	mu      sync.Mutex
	faults  Faults
	banned  map[holdfast.UserID]bool
	random  *rand.Rand
	results map[keyHash]result
	// effects counts payments by hold and not by key, so that a second payment
	// of one hold under another key shows: first one, then the others.
	effects map[holdfast.HoldID]uint64
	doubles map[holdfast.HoldID][]uint64
	totals  Totals
}

// Totals are figures over everything that was paid.
type Totals struct {
	Payments int   `json:"payments"` // effects
	Holds    int   `json:"holds"`    // holds with at least one effect
	Doubles  int   `json:"doubles"`  // effects beyond the first of their hold
	Refused  int   `json:"refused"`  // keys refused for good
	Amount   int64 `json:"amount"`   // minor units over all effects
}

// HoldEffects is how often one hold was really paid.
type HoldEffects struct {
	Hold       holdfast.HoldID `json:"hold_id"`
	Effects    int             `json:"effects"`
	PaymentIDs []string        `json:"payment_ids"`
}

// New opens the journal and remembers everything that was paid before.
func New(cfg Config) (*Sim, error) {
	s := &Sim{log: cfg.Log, closed: make(chan struct{})}
	if s.log == nil {
		s.log = slog.Default()
	}
	dir := cfg.Dir
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "holdfast-payments-"); err != nil {
			return nil, fmt.Errorf("make a directory for the payment simulator: %w", err)
		}
		s.tempDir = dir
	} else if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of the payment simulator: %w", err)
	}
	s.forget()
	var err error
	if s.journal, err = openJournal(filepath.Join(dir, journalName), cfg.Sync, s.remember); err != nil {
		return nil, errors.Join(err, s.removeTemp())
	}
	s.mux = s.routes()
	return s, nil
}

// Close ends what hangs, writes what is buffered and closes the journal. Stop
// the HTTP server after it, not before: a server waits for requests that hang.
func (s *Sim) Close() error {
	var err error
	s.once.Do(func() {
		close(s.closed)
		err = errors.Join(s.journal.close(), s.removeTemp())
	})
	return err
}

func (s *Sim) removeTemp() error {
	if s.tempDir == "" {
		return nil
	}
	return os.RemoveAll(s.tempDir)
}

// forget empties the memory and makes the simulator behave. s.mu is held or s
// is not shared yet.
func (s *Sim) forget() {
	s.results = make(map[keyHash]result)
	s.effects = make(map[holdfast.HoldID]uint64)
	s.doubles = make(map[holdfast.HoldID][]uint64)
	s.totals = Totals{}
	s.behave(Faults{Mode: ModeOK})
}

// remember adds one line of the journal to the memory. s.mu is held or s is not
// shared yet.
func (s *Sim) remember(key keyHash, r result) {
	s.results[key] = r
	if r.refused {
		s.totals.Refused++
		return
	}
	s.totals.Payments++
	s.totals.Amount += r.amount
	if _, again := s.effects[r.hold]; again {
		s.doubles[r.hold] = append(s.doubles[r.hold], key.number())
		s.totals.Doubles++
		return
	}
	s.effects[r.hold] = key.number()
	s.totals.Holds++
}

// Totals are the figures over all payments that are in the journal.
func (s *Sim) Totals() Totals {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.totals
}

// Effects is how often a hold was really paid.
func (s *Sim) Effects(id holdfast.HoldID) HoldEffects {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := HoldEffects{Hold: id, PaymentIDs: []string{}}
	first, paid := s.effects[id]
	if !paid {
		return e
	}
	for _, n := range append([]uint64{first}, s.doubles[id]...) {
		e.PaymentIDs = append(e.PaymentIDs, paymentID(n))
	}
	e.Effects = len(e.PaymentIDs)
	return e
}

// Reset forgets every payment, on disk too, and all faults.
func (s *Sim) Reset() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.journal.truncate(); err != nil {
		return err
	}
	s.forget()
	return nil
}

// payment is the body of POST /v1/payments.
type payment struct {
	Hold      holdfast.HoldID `json:"hold_id"`
	Sender    holdfast.UserID `json:"sender_id"`
	Recipient holdfast.UserID `json:"recipient_id"`
	Amount    int64           `json:"amount"`
	Currency  string          `json:"currency"`
}

func (p payment) check() error {
	switch {
	case p.Hold.IsZero() || p.Sender.IsZero() || p.Recipient.IsZero():
		return errors.New("hold_id, sender_id and recipient_id are required")
	case p.Amount < 1:
		return errors.New("amount must be at least 1")
	case p.Currency == "" || len(p.Currency) > 16:
		return errors.New("currency must have 1 to 16 characters")
	}
	return nil
}

func (p payment) hash() bodyHash {
	b := make([]byte, 0, 96)
	b = append(b, p.Hold[:]...)
	b = append(b, p.Sender[:]...)
	b = append(b, p.Recipient[:]...)
	b = strconv.AppendInt(b, p.Amount, 10)
	b = append(b, ' ')
	b = append(b, p.Currency...)
	sum := sha256.Sum256(b)
	return bodyHash(sum[:8])
}

func hashKey(key string) keyHash {
	sum := sha256.Sum256([]byte(key))
	return keyHash(sum[:16])
}

// number is what a payment is called by: the key says it, so that the name need
// not be stored.
func (k keyHash) number() uint64 {
	var n uint64
	for _, b := range k[:8] {
		n = n<<8 | uint64(b)
	}
	return n
}

func paymentID(n uint64) string {
	var b [8]byte
	for i := range b {
		b[i] = byte(n >> (56 - 8*i))
	}
	return "pay_" + hex.EncodeToString(b[:])
}

var errOtherBody = errors.New("the key was used for another payment")

// settle pays or refuses once per key, and returns only when that is in the
// journal. A key that is known gets its result again, when its line is written.
func (s *Sim) settle(key keyHash, p payment) (result, error) {
	s.mu.Lock()
	r, known := s.results[key]
	if known {
		written := s.journal.pending()
		s.mu.Unlock()
		if r.body != p.hash() {
			return result{}, errOtherBody
		}
		return r, written.wait()
	}
	r = result{hold: p.Hold, recipient: p.Recipient, amount: p.Amount, atMS: time.Now().UnixMilli(), body: p.hash(),
		refused: s.banned[p.Recipient]}
	written := s.journal.append(key, r)
	s.remember(key, r)
	s.mu.Unlock()
	return r, written.wait()
}

// find is what became of a key.
func (s *Sim) find(key keyHash) (r result, known bool, err error) {
	s.mu.Lock()
	r, known = s.results[key]
	written := s.journal.pending()
	s.mu.Unlock()
	return r, known, written.wait()
}

// answer is the status and body that a result is told with, always the same.
func (r result) answer(key keyHash) (int, []byte) {
	a := struct {
		PaymentID string          `json:"payment_id,omitempty"`
		Status    string          `json:"status"`
		Code      string          `json:"code,omitempty"`
		Hold      holdfast.HoldID `json:"hold_id"`
		Amount    int64           `json:"amount"`
		Recipient holdfast.UserID `json:"recipient_id"`
	}{Hold: r.hold, Amount: r.amount, Recipient: r.recipient}
	status := http.StatusOK
	if r.refused {
		status, a.Status, a.Code = http.StatusForbidden, "refused", codeBanned
	} else {
		a.Status, a.PaymentID = "succeeded", paymentID(key.number())
	}
	b, err := json.Marshal(a)
	if err != nil {
		panic(fmt.Sprintf("paysim: marshal %+v: %v", a, err)) // strings and integers always marshal
	}
	return status, b
}
