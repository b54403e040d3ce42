package apiclient

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// CreateHold is the body of POST /v1/holds. Exactly one of UnlockAt and
// UnlockInSeconds is set.
type CreateHold struct {
	Sender          string     `json:"sender_id"`
	Recipient       string     `json:"recipient_id"`
	Amount          int64      `json:"amount"`
	Currency        string     `json:"currency,omitempty"`
	UnlockAt        *time.Time `json:"unlock_at,omitempty"`
	UnlockInSeconds int64      `json:"unlock_in_seconds,omitempty"`
	Key             string     `json:"idempotency_key"`
	Reference       string     `json:"reference,omitempty"`
}

// Create reserves a hold.
func (c *Client) Create(ctx context.Context, r CreateHold) (h holdfast.Hold, err error) {
	_, err = c.Public(ctx, http.MethodPost, "/v1/holds", r, &h)
	return h, err
}

// Hold reads a hold.
func (c *Client) Hold(ctx context.Context, id string) (h holdfast.Hold, err error) {
	_, err = c.Public(ctx, http.MethodGet, "/v1/holds/"+url.PathEscape(id), nil, &h)
	return h, err
}

// Cancel gives a pending hold back.
func (c *Client) Cancel(ctx context.Context, id string) (h holdfast.Hold, err error) {
	_, err = c.Public(ctx, http.MethodDelete, "/v1/holds/"+url.PathEscape(id), nil, &h)
	return h, err
}

// OpenAccount opens an account, or finds it open.
func (c *Client) OpenAccount(ctx context.Context, user string) (a holdfast.Account, err error) {
	_, err = c.Public(ctx, http.MethodPut, "/v1/accounts/"+url.PathEscape(user), nil, &a)
	return a, err
}

// Account reads a balance.
func (c *Client) Account(ctx context.Context, user string) (a holdfast.Account, err error) {
	_, err = c.Public(ctx, http.MethodGet, "/v1/accounts/"+url.PathEscape(user), nil, &a)
	return a, err
}

// Cash is the body of a deposit.
type Cash struct {
	Amount   int64  `json:"amount"`
	Currency string `json:"currency,omitempty"`
	Key      string `json:"idempotency_key"`
}

// Deposit mints coins for a user.
func (c *Client) Deposit(ctx context.Context, user string, r Cash) (json.RawMessage, error) {
	return c.Public(ctx, http.MethodPost, "/v1/accounts/"+url.PathEscape(user)+"/deposits", r, nil)
}

// Proof is the answer of the ledger proof; only Ok is promised here, the rest
// is shown as it came.
type Proof struct {
	OK bool `json:"ok"`
}

// Prove runs the ledger proof and returns it whole beside its result.
func (c *Client) Prove(ctx context.Context) (Proof, json.RawMessage, error) {
	var p Proof
	raw, err := c.AdminCall(ctx, http.MethodGet, "/admin/v1/ledger/proof", nil, &p)
	return p, raw, err
}
