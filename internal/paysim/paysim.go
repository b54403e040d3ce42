// Package paysim is a payment API to try Holdfast against: it pays, refuses and
// breaks on request. What it really paid is kept in a file of its own, a line
// per payment, written before any answer and whatever is answered, so that a
// test can compare what happened with what was said. It knows nothing of holds beyond
// the fields of a payment, and imports nothing of Holdfast but the nouns.
package paysim

import (
	"container/heap"
	"crypto/sha256"
	"encoding/hex"
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
	at        int64 // ms of Unix time
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

	mu     sync.Mutex
	faults Faults
	banned map[holdfast.UserID]bool
	rules  []*rule
	random *rand.Rand
	calls  CallCount
	struck map[string]int
	// asked is whose payment was asked for under a key, kept only while a rule
	// is about recipients: a look-up names nobody.
	asked        map[keyHash]holdfast.UserID
	perRecipient bool

	results map[keyHash]result
	// underWay are the payments that will be made later, and order when.
	underWay map[keyHash]record
	order    dueHeap
	// effects counts payments by hold and not by key, so that a second payment
	// of one hold under another key shows: first one, then the others.
	effects map[holdfast.HoldID]uint64
	doubles map[holdfast.HoldID][]uint64
	lies    map[holdfast.HoldID]int
	totals  Totals
}

// Totals are figures over everything that was paid.
type Totals struct {
	Payments int   `json:"payments"`  // effects
	Holds    int   `json:"holds"`     // holds with at least one effect
	Doubles  int   `json:"doubles"`   // effects beyond the first of their hold
	Refused  int   `json:"refused"`   // keys refused for good
	Amount   int64 `json:"amount"`    // minor units over all effects
	Lies     int   `json:"lies"`      // times that success was claimed and nothing done
	UnderWay int   `json:"under_way"` // payments that will be made later
}

// HoldEffects is how often one hold was really paid.
type HoldEffects struct {
	Hold       holdfast.HoldID `json:"hold_id"`
	Effects    int             `json:"effects"`
	PaymentIDs []string        `json:"payment_ids"`
	Lies       int             `json:"lies"` // times that success was claimed and nothing done
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
	s.underWay, s.order = make(map[keyHash]record), nil
	s.effects = make(map[holdfast.HoldID]uint64)
	s.doubles = make(map[holdfast.HoldID][]uint64)
	s.lies = make(map[holdfast.HoldID]int)
	s.totals = Totals{}
	s.calls, s.struck = CallCount{}, make(map[string]int)
	s.behave(Faults{Mode: ModeOK, SettleAfterMS: settleAfterMS})
}

// write appends a record to the journal and to the memory. s.mu is held.
func (s *Sim) write(r record) *group {
	written := s.journal.append(r)
	s.remember(r)
	return written
}

// remember adds one line of the journal to the memory. s.mu is held or s is not
// shared yet.
func (s *Sim) remember(r record) {
	switch r.word {
	case wordLied:
		s.lies[r.hold]++
		s.totals.Lies++
		return
	case wordHidden, wordPending:
		s.underWay[r.key] = r
		s.totals.UnderWay = len(s.underWay)
		heap.Push(&s.order, r)
		return
	}
	s.results[r.key] = r.result
	if r.refused {
		s.totals.Refused++
		return
	}
	delete(s.underWay, r.key)
	s.totals.UnderWay = len(s.underWay)
	s.totals.Payments++
	s.totals.Amount += r.amount
	if _, again := s.effects[r.hold]; again {
		s.doubles[r.hold] = append(s.doubles[r.hold], r.key.number())
		s.totals.Doubles++
		return
	}
	s.effects[r.hold] = r.key.number()
	s.totals.Holds++
}

// Totals are the figures over all payments that are in the journal.
func (s *Sim) Totals() Totals {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ripen(time.Now())
	return s.totals
}

// Effects is how often a hold was really paid.
func (s *Sim) Effects(id holdfast.HoldID) HoldEffects {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ripen(time.Now())
	e := HoldEffects{Hold: id, PaymentIDs: []string{}, Lies: s.lies[id]}
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
