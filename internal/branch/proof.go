package branch

import (
	"context"
	"math/big"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// Names of the steps that prove the ledger.
const (
	OpProve   = "prove"
	OpTransit = "transit"
)

// Offender is one thing that is wrong in the books: its kind, how often it was
// found, and the first one found. Shard is −1 where two shards disagree.
type Offender struct {
	Kind   string `json:"kind"`
	Shard  int    `json:"shard"`
	Count  int64  `json:"count"`
	First  string `json:"first"`
	Amount int64  `json:"amount,omitempty"` // of the first one, minor units, where one is known
}

// Kinds of offenders that one shard finds by itself.
const (
	OffPostingUnbalanced = "posting_unbalanced" // the legs of a hold or a deposit do not sum to zero
	OffPostingDoubled    = "posting_doubled"    // a leg exists twice
	OffPostingMalformed  = "posting_malformed"  // a leg goes the wrong way
	OffEntryMissing      = "entry_missing"      // the hold's state demands a movement that is not there
	OffEntryUnexpected   = "entry_unexpected"   // a movement that no hold, or not this state of it, explains
	OffAmountMismatch    = "amount_mismatch"    // a movement of another amount or currency than its hold
	OffWrongAccount      = "wrong_account"      // a movement on the books of somebody else
	OffBarrierMissing    = "barrier_missing"
	OffBarrierUnexpected = "barrier_unexpected"
	OffBalance           = "balance_mismatch"    // a balance is not the replay of its entries
	OffSequence          = "sequence_gap"        // the numbers of an account's entries have a gap or a double
	OffBalanceAfter      = "balance_after_wrong" // an entry's balance is not the one before plus its amount
	OffAccountMissing    = "account_missing"     // entries or escrow without an account
	OffNegative          = "negative_balance"
	OffEscrow            = "escrow_mismatch" // held is not the sum of the user's holds in escrow
	OffForgotten         = "hold_forgotten"  // an unended hold that no driver would find
	OffCash              = "cash_mismatch"   // a deposit or withdrawal without its movement
)

// Kinds of offenders that only two shards together show.
const (
	OffCreditWithoutVerdict = "credit_without_verdict"
	OffCreditMissing        = "credit_missing" // EXECUTED, and nobody was credited
	OffCreditDoubled        = "credit_doubled" // credited more than once
	OffCreditDiffers        = "credit_differs" // another recipient, amount or currency than the hold's
	OffHoldDoubled          = "hold_doubled"   // paid on more than one shard
)

// ShardProof is what one shard's books say under one snapshot. The sums are
// over all currencies and in minor units; the comparisons behind Offenders are
// made per account, per currency and per hold.
type ShardProof struct {
	Shard    int       `json:"shard"`
	At       time.Time `json:"at"` // of the snapshot, by the shard's clock
	OK       bool      `json:"ok"`
	Accounts int64     `json:"accounts"`
	Holds    int64     `json:"holds"`
	// Entries, Debits and Credits cover the entries since the checkpoint.
	Entries int64    `json:"entries"`
	Debits  *big.Int `json:"debits"`  // Σ of the legs that take, as a positive number
	Credits *big.Int `json:"credits"` // Σ of the legs that put
	// Available and Held are what the balance rows say, EscrowHolds what the
	// holds in escrow add up to, Transit what this shard's senders have paid
	// and whose hold is not EXECUTED yet, Issued what was minted less what was
	// withdrawn since the checkpoint.
	Available   *big.Int   `json:"available"`
	Held        *big.Int   `json:"held"`
	EscrowHolds *big.Int   `json:"escrow_holds"`
	Transit     *big.Int   `json:"transit"`
	TransitN    int64      `json:"transit_holds"`
	Issued      *big.Int   `json:"issued"`
	Offenders   []Offender `json:"offenders"`
}

// TransitRange is a stretch of maturity: From ≤ unlock_at < To, Unix ms.
type TransitRange struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

// TransitRequest asks one shard for the two sides of what crosses shards: the
// holds with verdict paid that it owns, and the credits that it posted. With
// StepMS it answers digests, a cell per StepMS of maturity. With StepMS 0 it
// answers the ids themselves in ascending order, Limit of each side per page,
// after After.
type TransitRequest struct {
	Range  TransitRange    `json:"range"`
	StepMS int64           `json:"step_ms,omitempty"`
	After  holdfast.HoldID `json:"after,omitzero"`
	Limit  int             `json:"limit,omitempty"`
}

// TransitSum is the digest of a set of movements: how many, how much, and the
// sum of a 64-bit hash over (id, amount, recipient, currency) of each, modulo
// 2^62. A sum and not an exclusive-or, because that is blind to whatever is
// there twice. Digests of shards add up.
type TransitSum struct {
	N      int64 `json:"n"`
	Amount int64 `json:"amount"` // modulo 2^62 as well
	Hash   int64 `json:"hash"`
}

// Add adds another shard's digest.
func (s *TransitSum) Add(o TransitSum) {
	const mask = 1<<62 - 1
	s.N += o.N
	s.Amount = (s.Amount + o.Amount) & mask
	s.Hash = (s.Hash + o.Hash) & mask
}

// TransitCell is one stretch of maturity. Executed are the holds that ended
// well, Paid all with verdict paid, Credited the credits posted on this shard.
type TransitCell struct {
	From     int64      `json:"from"`
	Executed TransitSum `json:"executed"`
	Paid     TransitSum `json:"paid"`
	Credited TransitSum `json:"credited"`
}

// TransitItem is one verdict or one credit. Hash covers id, amount, recipient
// and currency.
type TransitItem struct {
	ID       holdfast.HoldID `json:"id"`
	Hash     int64           `json:"hash"`
	Amount   int64           `json:"amount"`
	Executed bool            `json:"executed,omitempty"` // verdicts only
}

// TransitAnswer: More says that a page is full; the next one begins after
// Through, up to which both sides are complete.
type TransitAnswer struct {
	Cells   []TransitCell   `json:"cells,omitempty"`
	Paid    []TransitItem   `json:"paid,omitempty"`
	Credits []TransitItem   `json:"credits,omitempty"`
	More    bool            `json:"more,omitempty"`
	Through holdfast.HoldID `json:"through,omitzero"`
}

// Prove checks everything that one shard can check by itself. It reads the
// whole ledger of the shard and may take minutes on a large one.
func (c *Client) Prove(ctx context.Context, shard int) (ShardProof, error) {
	return one[ShardProof](ctx, c.T, shard, OpProve, struct{}{})
}

// Transit reads the two sides of what crosses shards.
func (c *Client) Transit(ctx context.Context, shard int, r TransitRequest) (TransitAnswer, error) {
	return one[TransitAnswer](ctx, c.T, shard, OpTransit, r)
}
