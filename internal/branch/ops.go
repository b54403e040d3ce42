// Package branch is the language between the coordinator and the participants:
// what a batch of one step looks like and what became of each item. It knows
// neither SQL nor the public API. Item i of an answer belongs to item i of the
// request; an item's Code says what happened, and only three codes are not
// decisions of a shard: CodeShardUnavailable and CodeOverloaded (surely nothing
// was done) and CodeOutcomeUnknown (it may have been done; ask or repeat).
package branch

import (
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// Code is what became of one item of a batch.
type Code string

// Codes that every step can answer.
const (
	CodeOK               Code = "ok"
	CodeAlready          Code = "already" // this branch was done before; nothing was done now
	CodeNotFound         Code = "hold_not_found"
	CodeShardUnavailable Code = "shard_unavailable"
	CodeOverloaded       Code = "overloaded"
	CodeOutcomeUnknown   Code = "outcome_unknown"
	// CodeItemBroken: this one item makes its statement fail, however often it
	// is repeated. Nothing was done for it.
	CodeItemBroken Code = "item_broken"
	// CodeImpossible: the row is in a state that no path leads to. Nothing was
	// done; the hold is quarantined with the dead letter impossible_state.
	CodeImpossible Code = "impossible_state"
)

// Codes of Check and Try.
const (
	CodeReplay              Code = "replay"                 // the key is known, the request the same
	CodeKeyReused           Code = "idempotency_key_reused" // the key is known, the request another
	CodeInsufficientFunds   Code = "insufficient_funds"
	CodeUnknownSender       Code = "unknown_sender"
	CodeSenderNotActive     Code = "sender_not_active" // banned or closed
	CodeUnknownRecipient    Code = "unknown_recipient"
	CodeRecipientNotPayable Code = "recipient_not_payable" // banned or closed
	CodeUnlockOutOfRange    Code = "unlock_at_out_of_range"
	CodeSuspended           Code = "suspended_try" // a Cancel of this gid came first
)

// Codes of Claim.
const (
	CodeClaimed  Code = "claimed" // PENDING → EXECUTING now; the payment was never sent
	CodeRedrive  Code = "redrive" // EXECUTING without verdict, taken over: look up before sending
	CodeToCredit Code = "credit"  // verdict paid, not yet EXECUTED: credit again
	CodeToRefund Code = "refund"  // FAILED and not yet refunded
	CodeToWatch  Code = "watch"   // FAILED while something may be under way: look up only
	CodeNotDue   Code = "not_due" // PENDING and early by InMS
	CodeBusy     Code = "busy"    // another driver owns it for InMS
	CodeEnded    Code = "ended"   // EXECUTED, CANCELLED, or FAILED and refunded
	CodeRefused  Code = "refused" // refused before anything was sent: FAILED now
)

// Codes of Cancel (besides ok, already, hold_not_found).
const (
	CodeMatured        Code = "hold_matured" // PENDING or EXECUTING, unlock_at has passed
	CodeExecuted       Code = "hold_already_executed"
	CodeFailed         Code = "hold_failed"
	CodeForbidden      Code = "forbidden_cancel" // the actor is the recipient
	CodeNullCancel     Code = "null_cancel"      // no Try was seen; a later one is suspended
	CodeNotMatured     Code = "hold_not_matured" // release is for matured holds only
	CodeNotRefundable  Code = "not_refundable"   // Refund of a hold that is not FAILED
	CodeVerdictIsOther Code = "verdict_is_other" // Settle after refused, Refuse after paid
)

// Codes of accounts.
const (
	CodeUnknownAccount  Code = "account_not_found"
	CodeAccountNotEmpty Code = "account_not_empty"
	CodeAccountClosed   Code = "account_closed"
	CodeIssuanceCap     Code = "issuance_cap_reached"
)

// CheckItem asks whether a user may be named as recipient.
// Answers: ok, unknown_recipient, recipient_not_payable.
type CheckItem struct {
	User     holdfast.UserID `json:"user"`
	Currency string          `json:"currency"`
}

// CheckResult answers CheckItem.
type CheckResult struct {
	Code   Code                   `json:"code"`
	Status holdfast.AccountStatus `json:"status,omitzero"`
}

// TryItem reserves coins: branch 01, op try. Exactly one of UnlockAtMS (Unix ms)
// and DelayMS is set. A Refusal (from Check, or a validation of the caller) asks
// only whether the key is known: a known key is answered as such, otherwise the
// item is refused with that code and leaves no row.
type TryItem struct {
	Sender      holdfast.UserID `json:"sender"`
	Recipient   holdfast.UserID `json:"recipient"`
	Currency    string          `json:"currency"`
	Amount      int64           `json:"amount"`
	Key         string          `json:"key"`
	RequestHash [32]byte        `json:"request_hash"`
	UnlockAtMS  int64           `json:"unlock_at_ms,omitempty"`
	DelayMS     int64           `json:"delay_ms,omitempty"`
	Reference   string          `json:"reference,omitempty"`
	Refusal     Code            `json:"refusal,omitempty"`
	// ID is set only by callers that bring their own gid; it must agree with
	// UnlockAtMS and the sender's bucket.
	ID holdfast.HoldID `json:"id,omitzero"`
}

// TryResult answers TryItem. Hold is set for ok and for a replay of a success
// (as it is now); a replay of a remembered refusal carries it in Refusal.
// Available is set with insufficient_funds.
type TryResult struct {
	Code      Code          `json:"code"`
	Hold      holdfast.Hold `json:"hold,omitzero"`
	Refusal   Code          `json:"refusal,omitempty"`
	Available int64         `json:"available,omitempty"`
}

// HoldResult carries a hold as it is after the step.
type HoldResult struct {
	Code Code          `json:"code"`
	Hold holdfast.Hold `json:"hold,omitzero"`
}

// ClaimItem takes a hold for one drive. With a Refusal a hold that is still
// PENDING and due becomes FAILED at once (its payment was never sent).
type ClaimItem struct {
	ID      holdfast.HoldID `json:"id"`
	LeaseMS int64           `json:"lease_ms"` // payment timeout + margin
	Refusal string          `json:"refusal,omitempty"`
}

// ClaimResult answers ClaimItem. InMS is set for not_due and busy.
type ClaimResult struct {
	Code Code          `json:"code"`
	InMS int64         `json:"in_ms,omitempty"`
	Hold holdfast.Hold `json:"hold,omitzero"`
	// Attempts that ended without an answer, and how long the hold has been
	// tried in all, pauses of the breaker left out.
	Attempts int   `json:"attempts,omitempty"`
	ActiveMS int64 `json:"active_ms,omitempty"`
	// SinceUnsureMS is how long ago the last attempt was sent of which nothing is
	// known; -1 when there was none.
	SinceUnsureMS int64 `json:"since_unsure_ms"`
	// SinceClaimMS is the age of the first claim by the shard's clock: the
	// payment key cannot be older.
	SinceClaimMS int64 `json:"since_claim_ms,omitempty"`
	// Lease names this drive, for Refuse and Defer: its end by the shard's clock,
	// in µs since 1970.
	Lease int64 `json:"lease_us,omitempty"`
}

// SettleItem commits the verdict paid. Answers: ok (Hold.Status says whether
// credit and EXECUTED were done in the same transaction), already,
// verdict_is_other (a late success: the dead letter is written), hold_not_found.
//
// Recipient is set when it lives on the same shard; it must be the stored one.
type SettleItem struct {
	ID        holdfast.HoldID `json:"id"`
	PaymentID string          `json:"payment_id"`
	Recipient holdfast.UserID `json:"recipient,omitzero"`
}

// RefuseItem commits the verdict refused: FAILED and a dead letter with Reason.
type RefuseItem struct {
	ID     holdfast.HoldID `json:"id"`
	Reason string          `json:"reason"` // the refusal code
	Detail string          `json:"detail,omitempty"`
	// Watch keeps looking the payment up afterwards: something was sent of which
	// nothing is known, and a late success must be seen.
	Watch bool `json:"watch,omitempty"`
	// Lease is the claim's. When another driver has the hold, the answer is busy
	// and nothing is done. 0: a person decides.
	Lease int64 `json:"lease_us,omitempty"`
}

// CreditItem pays the recipient: branch 02, op confirm, on the recipient's shard.
type CreditItem struct {
	ID        holdfast.HoldID `json:"id"`
	Recipient holdfast.UserID `json:"recipient"`
	Currency  string          `json:"currency"`
	Amount    int64           `json:"amount"`
}

// DeferItem ends a drive without a verdict: the hold is taken again after
// DelayMS. ActiveMS is what this drive adds to the time the hold was tried.
type DeferItem struct {
	ID       holdfast.HoldID `json:"id"`
	DelayMS  int64           `json:"delay_ms"`
	ActiveMS int64           `json:"active_ms"`
	Error    string          `json:"error"`
	// Dead adds a dead letter (once): outcome_unknown or impossible_state.
	Dead string `json:"dead,omitempty"`
	// Unsure: something was sent and nothing is known of it.
	Unsure bool `json:"unsure,omitempty"`
	// Lease is as in RefuseItem; the dead letter impossible_state is written all
	// the same.
	Lease int64 `json:"lease_us,omitempty"`
}

// IDItem names a hold: the item of Get, Executed and Refund.
type IDItem struct {
	ID holdfast.HoldID `json:"id"`
}

// CodeResult carries only the code.
type CodeResult struct {
	Code Code `json:"code"`
	// Lease is set by a Resolve as not_paid: until then nobody drives the hold,
	// and the Refuse that follows must name it.
	Lease int64 `json:"lease_us,omitempty"`
}

// CancelItem gives the money of a PENDING hold back: branch 01, op cancel.
// Actor limits it to that sender. Operator and Reason make it a release, which
// is for matured holds that are still PENDING. NullOK lets a Cancel without a
// Try leave the barrier row that suspends a later Try.
type CancelItem struct {
	ID       holdfast.HoldID `json:"id"`
	Actor    holdfast.UserID `json:"actor,omitzero"`
	Operator string          `json:"operator,omitempty"`
	Reason   string          `json:"reason,omitempty"`
	NullOK   bool            `json:"null_ok,omitempty"`
}

// CashItem deposits (Amount > 0) or withdraws (Amount < 0).
// Answers: ok, replay, idempotency_key_reused, account_not_found,
// account_closed, sender_not_active (withdrawals), insufficient_funds,
// issuance_cap_reached.
type CashItem struct {
	User        holdfast.UserID `json:"user"`
	Currency    string          `json:"currency"`
	Amount      int64           `json:"amount"`
	Key         string          `json:"key"`
	RequestHash [32]byte        `json:"request_hash"`
}

// CashResult answers CashItem; Ref names the movement in the statement.
type CashResult struct {
	Code    Code             `json:"code"`
	Ref     holdfast.HoldID  `json:"ref,omitzero"`
	At      time.Time        `json:"at,omitzero"`
	Refusal Code             `json:"refusal,omitempty"`
	Account holdfast.Account `json:"account,omitzero"`
}

// DriveResult is what the coordinator tells the scheduler about one due id.
type DriveResult struct {
	Code Code  `json:"code"`
	InMS int64 `json:"in_ms,omitempty"` // when to try again, for every code that is not Settled
}

// DriveDeferred: the id was not claimed (breaker, recipient's shard away, no
// room); it is still PENDING and PostgreSQL has it.
const DriveDeferred Code = "deferred"

// Settled reports whether the shard has decided about the id, so that the
// trigger may be forgotten: from here PostgreSQL drives the hold.
func (r DriveResult) Settled() bool {
	switch r.Code {
	case CodeNotDue, DriveDeferred, CodeShardUnavailable, CodeOverloaded, CodeOutcomeUnknown:
		return false
	}
	return true
}
