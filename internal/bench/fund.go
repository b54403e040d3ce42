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

func fund(ctx context.Context, cfg *Config, shards *shardReader, seed uint64) error {
	if shards != nil {
		for _, k := range []struct {
			kind, n int
			amount  int64
		}{{kindSender, cfg.Senders, senderFunds}, {kindRecipient, cfg.Recipients, recipientFunds}} {
			err := shards.bulkFund(ctx, func(yield func(holdfast.UserID)) {
				for i := range k.n {
					yield(userAt(seed, k.kind, i))
				}
			}, k.amount)
			if err != nil {
				return err
			}
		}
		return nil
	}
	if n := cfg.Senders + cfg.Recipients; n > maxAPIAccounts {
		return fmt.Errorf("%d accounts are too many to fund through the API (at most %d): name the shards with --shards, or use --embedded", n, maxAPIAccounts)
	}
	return fundByAPI(ctx, cfg, seed)
}

// fundByAPI opens and funds the accounts one request at a time over a few
// connections.
func fundByAPI(ctx context.Context, cfg *Config, seed uint64) error {
	const connections = 32
	group, ctx := errgroup.WithContext(ctx)
	for part := range connections {
		group.Go(func() error {
			c, err := newConn(cfg.API, cfg.Token, cfg.RequestTimeout)
			if err != nil {
				return err
			}
			defer c.close()
			for i := part; i < cfg.Senders+cfg.Recipients; i += connections {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				user, amount := userAt(seed, kindSender, i), senderFunds
				if i >= cfg.Senders {
					user, amount = userAt(seed, kindRecipient, i-cfg.Senders), recipientFunds
				}
				if err := fundOne(c, user, amount); err != nil {
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
