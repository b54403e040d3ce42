package branch

import (
	"context"

	"github.com/holdfast-escrow/holdfast"
)

// Transport carries one call of a step to the participant that owns a shard.
// Batched steps send a slice and fill a slice of the same length. An error
// wraps holdfast.ErrShardUnavailable or ErrOverloaded when surely nothing was
// done; every other error means that the outcome is unknown.
type Transport interface {
	Send(ctx context.Context, shard int, op string, in, out any) error
}

// Names of the steps, as they stand in the URL of a branch request.
const (
	OpCheck    = "check"
	OpTry      = "try"
	OpGet      = "get"
	OpClaim    = "claim"
	OpSettle   = "settle"
	OpRefuse   = "refuse"
	OpCredit   = "credit"
	OpExecuted = "executed"
	OpDefer    = "defer"
	OpRefund   = "refund"
	OpCancel   = "cancel"
	OpCash     = "cash"

	OpList        = "list"
	OpOpen        = "open"
	OpAccount     = "account"
	OpSetStatus   = "set_status"
	OpStatement   = "statement"
	OpDetail      = "detail"
	OpAdminHolds  = "admin_holds"
	OpDeadLetters = "dead_letters"
	OpAudit       = "audit"
	OpRetry       = "retry"
	OpClose       = "close"
	OpResolve     = "resolve"
	OpStatus      = "status"
	OpUnrefunded  = "unrefunded"
)

// Client asks participants. The batched methods never fail as a whole: an
// error of the transport becomes the code of every item.
type Client struct {
	T Transport
}

// batch sends items and makes sure that every one has an answer.
func batch[I, O any](ctx context.Context, t Transport, shard int, op string, items []I, failed func(Code) O) []O {
	if len(items) == 0 {
		return nil
	}
	out := make([]O, 0, len(items))
	err := t.Send(ctx, shard, op, items, &out)
	if err == nil && len(out) == len(items) {
		return out
	}
	code := CodeOf(err)
	out = make([]O, len(items))
	for i := range out {
		out[i] = failed(code)
	}
	return out
}

func codeFailed(c Code) CodeResult { return CodeResult{Code: c} }
func holdFailed(c Code) HoldResult { return HoldResult{Code: c} }

// Check reads whether users may be named as recipients.
func (c *Client) Check(ctx context.Context, shard int, items []CheckItem) []CheckResult {
	return batch(ctx, c.T, shard, OpCheck, items, func(c Code) CheckResult { return CheckResult{Code: c} })
}

// Try reserves the coins of holds on their senders' shard.
func (c *Client) Try(ctx context.Context, shard int, items []TryItem) []TryResult {
	return batch(ctx, c.T, shard, OpTry, items, func(c Code) TryResult { return TryResult{Code: c} })
}

// Get reads holds.
func (c *Client) Get(ctx context.Context, shard int, items []IDItem) []HoldResult {
	return batch(ctx, c.T, shard, OpGet, items, holdFailed)
}

// Claim takes due holds for one drive each.
func (c *Client) Claim(ctx context.Context, shard int, items []ClaimItem) []ClaimResult {
	return batch(ctx, c.T, shard, OpClaim, items, func(c Code) ClaimResult { return ClaimResult{Code: c} })
}

// Settle commits verdicts paid.
func (c *Client) Settle(ctx context.Context, shard int, items []SettleItem) []HoldResult {
	return batch(ctx, c.T, shard, OpSettle, items, holdFailed)
}

// Refuse commits verdicts refused.
func (c *Client) Refuse(ctx context.Context, shard int, items []RefuseItem) []HoldResult {
	return batch(ctx, c.T, shard, OpRefuse, items, holdFailed)
}

// Credit pays recipients; shard is the recipients'.
func (c *Client) Credit(ctx context.Context, shard int, items []CreditItem) []CodeResult {
	return batch(ctx, c.T, shard, OpCredit, items, codeFailed)
}

// Executed ends holds whose recipient has been credited.
func (c *Client) Executed(ctx context.Context, shard int, items []IDItem) []HoldResult {
	return batch(ctx, c.T, shard, OpExecuted, items, holdFailed)
}

// Defer ends drives that have no verdict.
func (c *Client) Defer(ctx context.Context, shard int, items []DeferItem) []CodeResult {
	return batch(ctx, c.T, shard, OpDefer, items, codeFailed)
}

// Refund gives the coins of FAILED holds back.
func (c *Client) Refund(ctx context.Context, shard int, items []IDItem) []HoldResult {
	return batch(ctx, c.T, shard, OpRefund, items, holdFailed)
}

// Cancel gives the coins of PENDING holds back.
func (c *Client) Cancel(ctx context.Context, shard int, items []CancelItem) []HoldResult {
	return batch(ctx, c.T, shard, OpCancel, items, holdFailed)
}

// Cash deposits and withdraws.
func (c *Client) Cash(ctx context.Context, shard int, items []CashItem) []CashResult {
	return batch(ctx, c.T, shard, OpCash, items, func(c Code) CashResult { return CashResult{Code: c} })
}

func one[O any](ctx context.Context, t Transport, shard int, op string, in any) (out O, err error) {
	err = t.Send(ctx, shard, op, in, &out)
	return out, err
}

// List pages through a sender's holds.
func (c *Client) List(ctx context.Context, shard int, r ListRequest) (ListAnswer, error) {
	return one[ListAnswer](ctx, c.T, shard, OpList, r)
}

// Open opens an account, or finds it open.
func (c *Client) Open(ctx context.Context, shard int, r AccountRequest) (AccountAnswer, error) {
	return one[AccountAnswer](ctx, c.T, shard, OpOpen, r)
}

// Account reads an account.
func (c *Client) Account(ctx context.Context, shard int, r AccountRequest) (AccountAnswer, error) {
	return one[AccountAnswer](ctx, c.T, shard, OpAccount, r)
}

// SetStatus opens, bans or closes an account.
func (c *Client) SetStatus(ctx context.Context, shard int, r AccountRequest) (AccountAnswer, error) {
	return one[AccountAnswer](ctx, c.T, shard, OpSetStatus, r)
}

// Statement pages through an account's entries.
func (c *Client) Statement(ctx context.Context, shard int, r AccountRequest) (StatementAnswer, error) {
	return one[StatementAnswer](ctx, c.T, shard, OpStatement, r)
}

// Detail reads everything a shard knows of a hold.
func (c *Client) Detail(ctx context.Context, shard int, r DetailRequest) (DetailAnswer, error) {
	return one[DetailAnswer](ctx, c.T, shard, OpDetail, r)
}

// AdminHolds pages through the holds of one shard.
func (c *Client) AdminHolds(ctx context.Context, shard int, r AdminListRequest) (ListAnswer, error) {
	return one[ListAnswer](ctx, c.T, shard, OpAdminHolds, r)
}

// DeadLetters pages through the dead letters of one shard.
func (c *Client) DeadLetters(ctx context.Context, shard int, r AdminListRequest) (DeadLetterAnswer, error) {
	return one[DeadLetterAnswer](ctx, c.T, shard, OpDeadLetters, r)
}

// Audit pages through the audit of one shard.
func (c *Client) Audit(ctx context.Context, shard int, r AdminListRequest) (AuditAnswer, error) {
	return one[AuditAnswer](ctx, c.T, shard, OpAudit, r)
}

// Retry makes the next attempt of an EXECUTING hold due now.
func (c *Client) Retry(ctx context.Context, shard int, r OperatorRequest) (CodeResult, error) {
	return one[CodeResult](ctx, c.T, shard, OpRetry, r)
}

// Close closes the open dead letters of a hold.
func (c *Client) Close(ctx context.Context, shard int, r OperatorRequest) (CodeResult, error) {
	return one[CodeResult](ctx, c.T, shard, OpClose, r)
}

// Resolve records a person's evidence about an outcome_unknown; the verdict
// follows by Settle or Refuse.
func (c *Client) Resolve(ctx context.Context, shard int, r OperatorRequest) (CodeResult, error) {
	return one[CodeResult](ctx, c.T, shard, OpResolve, r)
}

// Status reads the state of one shard.
func (c *Client) Status(ctx context.Context, shard int) (ShardStatus, error) {
	return one[ShardStatus](ctx, c.T, shard, OpStatus, struct{}{})
}

// Unrefunded lists FAILED holds whose refund is still to do, oldest first.
func (c *Client) Unrefunded(ctx context.Context, shard int, limit int) ([]holdfast.HoldID, error) {
	return one[[]holdfast.HoldID](ctx, c.T, shard, OpUnrefunded, limit)
}
