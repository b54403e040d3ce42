// Package holdfast holds the nouns that every room of the house shares: holds,
// accounts, ids, money, the status graph and the kinds of errors. It knows
// nothing of HTTP, SQL or Redis and imports the standard library only.
package holdfast

import (
	"errors"
	"fmt"
	"time"
)

// Limits of the outside contract.
const (
	// MaxAmount is the largest amount of one movement: the largest integer
	// that a JSON reader with float64 numbers still reads exactly.
	MaxAmount = 9007199254740991
	// MaxDelay is how far ahead a hold may mature.
	MaxDelay = 90 * 24 * time.Hour
	// MinDelay is how far ahead unlock_at must lie when the client sends it.
	MinDelay = time.Second
	// MaxReference and MaxKey bound the two free texts of a hold, in characters.
	MaxReference = 64
	MaxKey       = 255
	// Buckets is the number of slices that users are cut into. It is part of
	// every hold id and can therefore never change.
	Buckets = 4096
)

// Status is where a hold is in its life. The numbers are stored; never renumber.
type Status int16

const (
	StatusUnknown Status = iota
	Pending
	Executing
	Executed
	Failed
	Cancelled
)

var statusNames = [...]string{"UNKNOWN", "PENDING", "EXECUTING", "EXECUTED", "FAILED", "CANCELLED"}

func (s Status) String() string {
	if s < 0 || int(s) >= len(statusNames) {
		return fmt.Sprintf("Status(%d)", int16(s))
	}
	return statusNames[s]
}

// MarshalText writes the name that the API uses.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the name that the API uses.
func (s *Status) UnmarshalText(b []byte) error {
	v, err := ParseStatus(string(b))
	*s = v
	return err
}

// ParseStatus reads PENDING, EXECUTING, EXECUTED, FAILED or CANCELLED.
func ParseStatus(name string) (Status, error) {
	for i, n := range statusNames {
		if i > 0 && n == name {
			return Status(i), nil
		}
	}
	return StatusUnknown, fmt.Errorf("unknown status %q", name)
}

// moves is the whole graph. A move that is not here does not exist.
var moves = map[Status][]Status{
	Pending:   {Executing, Cancelled},
	Executing: {Executed, Failed},
}

// CanMove reports whether a hold may go from one status to another.
func CanMove(from, to Status) bool {
	for _, s := range moves[from] {
		if s == to {
			return true
		}
	}
	return false
}

// Ended reports whether no further move exists. A FAILED hold has ended though
// its refund may still be on the way.
func (s Status) Ended() bool { return len(moves[s]) == 0 && s != StatusUnknown }

// Verdict is what became of the payment; it is given once and never changes.
type Verdict int16

const (
	NoVerdict Verdict = iota
	Paid
	Refused
)

func (v Verdict) String() string {
	switch v {
	case Paid:
		return "paid"
	case Refused:
		return "refused"
	}
	return ""
}

// MarshalText writes paid, refused or nothing.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText reads paid, refused or nothing.
func (v *Verdict) UnmarshalText(b []byte) error {
	switch string(b) {
	case "":
		*v = NoVerdict
	case "paid":
		*v = Paid
	case "refused":
		*v = Refused
	default:
		return fmt.Errorf("unknown verdict %q", b)
	}
	return nil
}

// Hold is one delayed payment as it stands on the sender's shard. Amount is in
// minor units. Zero times mean "not yet".
type Hold struct {
	ID        HoldID    `json:"hold_id"`
	Status    Status    `json:"status"`
	Sender    UserID    `json:"sender_id"`
	Recipient UserID    `json:"recipient_id"`
	Amount    int64     `json:"amount"`
	Currency  string    `json:"currency"`
	Reference string    `json:"reference,omitempty"`
	UnlockAt  time.Time `json:"unlock_at"`
	CreatedAt time.Time `json:"created_at"`

	Verdict     Verdict   `json:"verdict,omitzero"`
	PaymentID   string    `json:"payment_id,omitempty"`
	RefusalCode string    `json:"refusal_code,omitempty"`
	ClaimedAt   time.Time `json:"claimed_at,omitzero"`
	DecidedAt   time.Time `json:"decided_at,omitzero"` // the verdict was committed
	ExecutedAt  time.Time `json:"executed_at,omitzero"`
	CancelledAt time.Time `json:"cancelled_at,omitzero"`
	RefundedAt  time.Time `json:"refunded_at,omitzero"`
}

// AccountStatus says whether an account may send and be named as recipient.
// Credits and refunds land whatever it is. The numbers are stored.
type AccountStatus int16

const (
	AccountOpen AccountStatus = iota + 1
	AccountBanned
	AccountClosed
)

var accountStatusNames = [...]string{"", "open", "banned", "closed"}

func (s AccountStatus) String() string {
	if s < 1 || int(s) >= len(accountStatusNames) {
		return fmt.Sprintf("AccountStatus(%d)", int16(s))
	}
	return accountStatusNames[s]
}

// MarshalText writes open, banned or closed.
func (s AccountStatus) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads open, banned or closed.
func (s *AccountStatus) UnmarshalText(b []byte) error {
	for i, n := range accountStatusNames {
		if i > 0 && n == string(b) {
			*s = AccountStatus(i)
			return nil
		}
	}
	return fmt.Errorf("unknown account status %q", b)
}

// Account is one user's balance in one currency, in minor units.
type Account struct {
	User      UserID        `json:"user_id"`
	Currency  string        `json:"currency"`
	Status    AccountStatus `json:"status"`
	Available int64         `json:"available"`
	Held      int64         `json:"held"`
	OpenedAt  time.Time     `json:"opened_at"`
}

// Book is which account of the ledger an entry belongs to. The numbers are stored.
type Book int16

const (
	BookAvailable Book = iota + 1 // what a user may spend
	BookHeld                      // a user's coins in escrow
	BookTransit                   // paid out of escrow, not yet credited; per hold
	BookIssuer                    // where coins come from and go to
)

var bookNames = [...]string{"", "available", "held", "transit", "issuer"}

func (b Book) String() string {
	if b < 1 || int(b) >= len(bookNames) {
		return fmt.Sprintf("Book(%d)", int16(b))
	}
	return bookNames[b]
}

// MarshalText writes the book's name.
func (b Book) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads the book's name.
func (b *Book) UnmarshalText(t []byte) error {
	for i, n := range bookNames {
		if i > 0 && n == string(t) {
			*b = Book(i)
			return nil
		}
	}
	return fmt.Errorf("unknown book %q", t)
}

// Movement is why coins moved. The numbers are stored.
type Movement int16

const (
	MoveReserve  Movement = iota + 1 // Try: available → held
	MoveSettle                       // verdict paid: held → transit
	MoveCredit                       // transit → recipient's available
	MoveRefund                       // verdict refused: held → available
	MoveCancel                       // cancelled by the user or released: held → available
	MoveDeposit                      // issuer → available
	MoveWithdraw                     // available → issuer
)

var movementNames = [...]string{"", "reserve", "settle", "credit", "refund", "cancel", "deposit", "withdraw"}

func (m Movement) String() string {
	if m < 1 || int(m) >= len(movementNames) {
		return fmt.Sprintf("Movement(%d)", int16(m))
	}
	return movementNames[m]
}

// MarshalText writes the movement's name.
func (m Movement) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads the movement's name.
func (m *Movement) UnmarshalText(t []byte) error {
	for i, n := range movementNames {
		if i > 0 && n == string(t) {
			*m = Movement(i)
			return nil
		}
	}
	return fmt.Errorf("unknown movement %q", t)
}

// Entry is one leg of a movement. Amount is signed: minus takes from the book,
// plus puts into it; the legs of one movement sum to zero. Seq and BalanceAfter
// are zero for the books without a balance row (transit, issuer).
type Entry struct {
	PostedAt     time.Time `json:"posted_at"`
	Ref          HoldID    `json:"ref"` // the hold, or the deposit or withdrawal
	Movement     Movement  `json:"movement"`
	Book         Book      `json:"book"`
	User         UserID    `json:"user_id"`
	Currency     string    `json:"currency"`
	Amount       int64     `json:"amount"`
	Seq          int64     `json:"seq,omitzero"`
	BalanceAfter int64     `json:"balance_after"`
}

// Kinds of errors that callers branch on with errors.Is. Everything else is a
// bug or an outage and reaches the user as a bare 500.
var (
	ErrNotFound         = errors.New("not found")
	ErrConflict         = errors.New("conflict")
	ErrInvalid          = errors.New("invalid")
	ErrShardUnavailable = errors.New("shard unavailable") // surely nothing was done
	ErrOverloaded       = errors.New("overloaded")        // surely nothing was done
	ErrOutcomeUnknown   = errors.New("outcome unknown")   // it may or may not have been done
)
