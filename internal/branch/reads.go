package branch

import (
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// The steps below are not batched: reads, accounts and the work of operators.
// Each is one call on one shard.

// ListRequest lists holds of one sender, newest first. Before is the opaque
// position after which to go on, empty for the first page.
type ListRequest struct {
	Sender holdfast.UserID `json:"sender"`
	Key    string          `json:"key,omitempty"`
	Status holdfast.Status `json:"status,omitzero"`
	Before string          `json:"before,omitempty"`
	Limit  int             `json:"limit"`
}

// ListAnswer is one page; Next is empty on the last.
type ListAnswer struct {
	Holds []holdfast.Hold `json:"holds"`
	Next  string          `json:"next,omitempty"`
}

// AccountRequest opens, reads or changes one account. Status is used by
// SetStatus; Before (a Seq, 0 = newest) and Limit by Statement.
type AccountRequest struct {
	User     holdfast.UserID        `json:"user"`
	Currency string                 `json:"currency"`
	Status   holdfast.AccountStatus `json:"status,omitzero"`
	Actor    string                 `json:"actor,omitempty"` // who, for the audit
	Reason   string                 `json:"reason,omitempty"`
	Before   int64                  `json:"before,omitempty"`
	Limit    int                    `json:"limit,omitempty"`
}

// AccountAnswer: Created says that Open made it. Codes: ok, account_not_found,
// account_not_empty (closing needs available = held = 0), account_closed (a
// closed account is opened again by nobody).
type AccountAnswer struct {
	Code    Code             `json:"code"`
	Account holdfast.Account `json:"account,omitzero"`
	Created bool             `json:"created,omitempty"`
}

// StatementAnswer lists entries of one account (its available and held books),
// newest first; Next is the Seq to go on before, 0 at the end.
type StatementAnswer struct {
	Code    Code             `json:"code"`
	Entries []holdfast.Entry `json:"entries"`
	Next    int64            `json:"next,omitempty"`
}

// DetailRequest asks a shard what it knows of a hold. The sender's shard is
// asked with the id alone. The credit is known to the recipient's shard, which
// has no row of the hold: it is asked with Recipient and Currency set and
// answers Entries and Barrier only, code ok, also when there is nothing yet.
type DetailRequest struct {
	ID        holdfast.HoldID `json:"id"`
	Recipient holdfast.UserID `json:"recipient,omitzero"`
	Currency  string          `json:"currency,omitempty"`
}

// DetailAnswer is everything a shard knows of a hold. Entries are the legs on
// books that have a balance (available and held), in the order of posting; the
// legs on transit have no index and are the ledger proof's to check.
type DetailAnswer struct {
	Code        Code             `json:"code"`
	Hold        holdfast.Hold    `json:"hold,omitzero"`
	NextAttempt time.Time        `json:"next_attempt_at,omitzero"`
	Attempts    int              `json:"attempts"`
	ActiveMS    int64            `json:"active_ms"`
	LastError   string           `json:"last_error,omitempty"`
	Entries     []holdfast.Entry `json:"entries"`
	Barrier     []BarrierRow     `json:"barrier"`
	DeadLetters []DeadLetter     `json:"dead_letters"`
	Audit       []AuditRow       `json:"audit"`
}

// BarrierRow is one branch step that was done (or, for a null cancel, refused
// for ever).
type BarrierRow struct {
	Branch    string    `json:"branch"` // 01, 02
	Op        string    `json:"op"`     // try, confirm, cancel
	CreatedAt time.Time `json:"created_at"`
}

// Dead-letter codes besides the refusal codes of the payment API and the
// recipient checks.
const (
	DeadOutcomeUnknown = "outcome_unknown"
	DeadLateSuccess    = "late_success"
	DeadImpossible     = "impossible_state"
)

// DeadLetter is a hold that a person may have to look at. Open: ClosedAt is
// zero. Refundable: the hold is FAILED and RefundedAt is zero.
type DeadLetter struct {
	HoldID     holdfast.HoldID `json:"hold_id"`
	Code       string          `json:"code"`
	Detail     string          `json:"detail,omitempty"`
	CreatedAt  time.Time       `json:"created_at"`
	Hold       holdfast.Hold   `json:"hold,omitzero"`
	ClosedAt   time.Time       `json:"closed_at,omitzero"`
	ClosedBy   string          `json:"closed_by,omitempty"`
	Resolution string          `json:"resolution,omitempty"` // refunded, retried, paid, not_paid, closed
	Note       string          `json:"note,omitempty"`
}

// AuditRow is one act of a person.
type AuditRow struct {
	At     time.Time       `json:"at"`
	Actor  string          `json:"actor"`
	Action string          `json:"action"`
	HoldID holdfast.HoldID `json:"hold_id,omitzero"`
	User   holdfast.UserID `json:"user_id,omitzero"`
	Reason string          `json:"reason"`
	Shard  int             `json:"shard"`
}

// AdminListRequest pages through holds, dead letters or the audit of one shard.
type AdminListRequest struct {
	Status  holdfast.Status `json:"status,omitzero"`
	Overdue bool            `json:"overdue,omitempty"`
	Open    bool            `json:"open,omitempty"` // dead letters: only those not closed
	Code    string          `json:"code,omitempty"` // dead letters
	Before  string          `json:"before,omitempty"`
	Limit   int             `json:"limit"`
}

// DeadLetterAnswer and AuditAnswer are pages of one shard, newest first.
type DeadLetterAnswer struct {
	DeadLetters []DeadLetter `json:"dead_letters"`
	Next        string       `json:"next,omitempty"`
}

// AuditAnswer is a page of the audit of one shard, newest first.
type AuditAnswer struct {
	Rows []AuditRow `json:"rows"`
	Next string     `json:"next,omitempty"`
}

// OperatorRequest is an act on one hold by a person, written to the audit in
// the same transaction as its effect.
//
//	retry    EXECUTING only: next attempt now, code not_retryable otherwise
//	close    closes the open dead letters of the hold with the reason as note
//	resolved marks outcome_unknown as resolved with Outcome paid or not_paid,
//	         before the verdict itself is committed by Settle or Refuse
type OperatorRequest struct {
	ID      holdfast.HoldID `json:"id"`
	Actor   string          `json:"actor"`
	Reason  string          `json:"reason"`
	Outcome string          `json:"outcome,omitempty"` // Resolve: paid or not_paid; Close: ByRefund, or nothing
}

// ByRefund is the outcome of a Close that follows a refund: it leaves a
// late_success open, which speaks of another thing.
const ByRefund = "refunded"

// Codes of operator acts.
const (
	CodeNotRetryable  Code = "not_retryable"
	CodeNoDeadLetter  Code = "dead_letter_not_found"
	CodeNotResolvable Code = "not_resolvable" // no open outcome_unknown or impossible_state
	// CodeStillExecuting: Close of an outcome_unknown whose hold has no verdict
	// yet. It stays open, or nobody would be asked about that money again.
	CodeStillExecuting Code = "hold_still_executing"
)

// ShardStatus is one shard as seen by the participant.
type ShardStatus struct {
	Shard         int    `json:"shard"`
	Up            bool   `json:"up"`
	Error         string `json:"error,omitempty"`
	MapEpoch      int64  `json:"map_epoch"`
	SchemaVersion int    `json:"schema_version"`
	Server        string `json:"server,omitempty"`
	ClockOffsetMS int64  `json:"clock_offset_ms"` // shard − process
	// Holds is by status. Exact below 200,000 holds; above that HoldsEstimated
	// is true and the figures come from the server's own statistics.
	Holds           map[string]int64 `json:"holds"`
	HoldsEstimated  bool             `json:"holds_estimated,omitempty"`
	OldestOverdueS  float64          `json:"oldest_overdue_seconds"`
	OpenDeadLetters map[string]int64 `json:"open_dead_letters"`
	Attempts        int64            `json:"attempts"`
	PartitionsAhead int              `json:"partitions_ahead_days"`
	DatabaseBytes   int64            `json:"database_bytes"`
}
