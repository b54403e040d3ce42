package bench

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-escrow/holdfast"
	"golang.org/x/sync/errgroup"
)

// Each sender gets so much that no run can empty it; a recipient gets one coin,
// which opens its account in the same way.
const (
	senderFunds    = 1_000_000_000
	recipientFunds = 1
)

// maxAPIAccounts is how many accounts are funded through the public API when
// the shards cannot be reached.
const maxAPIAccounts = 50_000

// fund makes sure that the run's users are there; those of earlier runs serve
// again.
func (b *Bench) fund(ctx context.Context, cfg *Config) error {
	for _, k := range []struct {
		kind, amount, want int
		have               *int
	}{{kindSender, senderFunds, cfg.Senders, &b.senders}, {kindRecipient, recipientFunds, cfg.Recipients, &b.recipients}} {
		if k.want <= *k.have {
			continue
		}
		b.Note("funding %d accounts", k.want-*k.have)
		if err := b.fundKind(ctx, cfg, k.kind, *k.have, k.want, k.amount); err != nil {
			return err
		}
		*k.have = k.want
	}
	return nil
}

func (b *Bench) fundKind(ctx context.Context, cfg *Config, kind, from, to, amount int) error {
	if b.shards != nil {
		m, err := b.owners(ctx)
		if err != nil {
			return err
		}
		return b.shards.bulkFund(ctx, m, func(yield func(holdfast.UserID)) {
			for i := from; i < to; i++ {
				yield(userAt(b.seed, kind, i))
			}
		}, int64(amount))
	}
	if to > maxAPIAccounts {
		return fmt.Errorf("%d accounts are too many to fund through the API (at most %d): name the shards with --shards, or use --embedded", to, maxAPIAccounts)
	}
	return b.fundByAPI(ctx, cfg, kind, from, to, amount)
}

// fundByAPI opens and funds the accounts one request at a time over a few
// connections.
func (b *Bench) fundByAPI(ctx context.Context, cfg *Config, kind, from, to, amount int) error {
	const connections = 32
	group, ctx := errgroup.WithContext(ctx)
	for part := range connections {
		group.Go(func() error {
			c, err := newConn(b.API, b.Token, cfg.RequestTimeout)
			if err != nil {
				return err
			}
			defer c.close()
			for i := from + part; i < to; i += connections {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err := fundOne(c, userAt(b.seed, kind, i), amount); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

func fundOne(c *conn, user holdfast.UserID, amount int) error {
	path := "/v1/accounts/" + user.String()
	status, answer, err := c.do("PUT", path, nil)
	if err == nil && status/100 == 2 {
		body := fmt.Sprintf(`{"amount":%d,"currency":"RBX","idempotency_key":"bench-fund"}`, amount)
		status, answer, err = c.do("POST", path+"/deposits", []byte(body))
	}
	switch {
	case err != nil:
		return fmt.Errorf("fund account %s: %s: %w", user, errorCode(err), err)
	case status/100 != 2:
		return fmt.Errorf("fund account %s: %w", user, errors.New(string(answer)))
	}
	return nil
}
