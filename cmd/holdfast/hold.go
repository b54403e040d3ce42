package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/apiclient"
	"github.com/holdfast-escrow/holdfast/internal/settings"
	"github.com/spf13/cobra"
)

func (a *app) holdCommand() *cobra.Command {
	return group("hold", "Create, read, cancel and watch holds",
		a.holdCreate(), a.holdGet(), a.holdList(), a.holdCancel(), a.holdWatch())
}

func (a *app) holdCreate() *cobra.Command {
	var r apiclient.CreateHold
	var in, at string
	c := &cobra.Command{
		Use: "create", Short: "Reserve coins of a sender for a recipient", Args: exactly(),
		Example: `  holdfast hold create --from 7d8f1c9e-7a39-4d7c-9a52-3c9b1c1f0a11 --to 0b54a3de-6f3c-4f0a-8a4e-5b7c5a1d2e33 --amount 100 --in 30s
  holdfast hold create --from … --to … --amount 100 --at 2030-01-01T00:00:00Z --key order-17`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := unlockFlags(cmd, &r, in, at); err != nil {
				return err
			}
			if r.Key == "" {
				r.Key = "cli-" + rand.Text()
			}
			api, err := a.client()
			if err != nil {
				return err
			}
			var h holdfast.Hold
			raw, err := api.Public(cmd.Context(), http.MethodPost, "/v1/holds", r, &h)
			if err != nil {
				return fmt.Errorf("create hold with key %s: %w", r.Key, err)
			}
			return a.showHold(raw, h)
		}}
	f := c.Flags()
	f.StringVar(&r.Sender, "from", "", "the sender's user id")
	f.StringVar(&r.Recipient, "to", "", "the recipient's user id")
	f.Int64Var(&r.Amount, "amount", 0, "coins in minor units")
	f.StringVar(&in, "in", "", "delay until maturity, whole seconds: 30s, 2h, 7d")
	f.StringVar(&at, "at", "", "maturity in RFC 3339, instead of --in")
	f.StringVar(&r.Currency, "currency", "", "currency code (default: the server's)")
	f.StringVar(&r.Reference, "reference", "", "your own text, up to 64 characters")
	f.StringVar(&r.Key, "key", "", "idempotency key (default: a random one)")
	for _, name := range []string{"from", "to", "amount"} {
		c.MarkFlagRequired(name)
	}
	a.addConnection(c)
	return c
}

func unlockFlags(cmd *cobra.Command, r *apiclient.CreateHold, in, at string) error {
	switch {
	case (in == "") == (at == ""):
		return usagef(cmd, "give exactly one of --in and --at")
	case in != "":
		d, err := settings.ParseDuration(in)
		if err != nil {
			return usagef(cmd, "--in: %w", err)
		}
		if d < time.Second || d%time.Second != 0 {
			return usagef(cmd, "--in is %s, must be whole seconds, one or more", in)
		}
		r.UnlockInSeconds = int64(d / time.Second)
	default:
		t, err := time.Parse(time.RFC3339Nano, at)
		if err != nil {
			return usagef(cmd, "--at %q is not a time like 2030-01-01T00:00:00Z", at)
		}
		r.UnlockAt = &t
	}
	return nil
}

func (a *app) holdGet() *cobra.Command {
	c := &cobra.Command{Use: "get HOLD_ID", Short: "Show a hold", Args: exactly("HOLD_ID"),
		Example: "  holdfast hold get 01997f3a-2c00-8a3b-9f00-0242ac120002",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.holdCall(cmd.Context(), http.MethodGet, args[0])
		}}
	a.addConnection(c)
	return c
}

func (a *app) holdCancel() *cobra.Command {
	c := &cobra.Command{Use: "cancel HOLD_ID", Short: "Give the coins of a pending hold back to its sender", Args: exactly("HOLD_ID"),
		Example: "  holdfast hold cancel 01997f3a-2c00-8a3b-9f00-0242ac120002",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.holdCall(cmd.Context(), http.MethodDelete, args[0])
		}}
	a.addConnection(c)
	return c
}

func (a *app) holdCall(ctx context.Context, method, id string) error {
	api, err := a.client()
	if err != nil {
		return err
	}
	var h holdfast.Hold
	raw, err := api.Public(ctx, method, "/v1/holds/"+url.PathEscape(id), nil, &h)
	if err != nil {
		return fmt.Errorf("hold %s: %w", id, err)
	}
	return a.showHold(raw, h)
}

func (a *app) holdList() *cobra.Command {
	var from, status, key, page string
	var size int
	c := &cobra.Command{Use: "list --from USER_ID", Short: "List a sender's holds, newest first", Args: exactly(),
		Example: "  holdfast hold list --from 7d8f1c9e-7a39-4d7c-9a52-3c9b1c1f0a11 --status PENDING",
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{"sender_id": {from}, "page_size": {strconv.Itoa(size)}}
			for name, v := range map[string]string{"status": status, "idempotency_key": key, "page_token": page} {
				if v != "" {
					q.Set(name, v)
				}
			}
			api, err := a.client()
			if err != nil {
				return err
			}
			var answer struct {
				Holds []holdfast.Hold `json:"holds"`
				Next  string          `json:"next_page_token"`
			}
			raw, err := api.Public(cmd.Context(), http.MethodGet, "/v1/holds?"+q.Encode(), nil, &answer)
			if err != nil {
				return err
			}
			return a.show(raw, func(t *tabwriter.Writer) {
				cells(t, "HOLD", "STATUS", "RECIPIENT", "AMOUNT", "UNLOCK AT")
				for _, h := range answer.Holds {
					cells(t, h.ID, h.Status, h.Recipient, amount(h.Amount, h.Currency), clock(h.UnlockAt))
				}
				if answer.Next != "" {
					cells(t, "more: --page", answer.Next)
				}
			})
		}}
	c.Flags().StringVar(&from, "from", "", "the sender's user id")
	c.Flags().StringVar(&status, "status", "", "only PENDING, EXECUTING, EXECUTED, FAILED or CANCELLED")
	c.Flags().StringVar(&key, "key", "", "only the hold of this idempotency key")
	c.Flags().StringVar(&page, "page", "", "page token of the answer before")
	c.Flags().IntVar(&size, "limit", 50, "holds per page, up to 200")
	c.MarkFlagRequired("from")
	a.addConnection(c)
	return c
}

func (a *app) holdWatch() *cobra.Command {
	var every string
	c := &cobra.Command{Use: "watch HOLD_ID", Short: "Follow a hold until it has ended", Args: exactly("HOLD_ID"),
		Example: "  holdfast hold watch 01997f3a-2c00-8a3b-9f00-0242ac120002",
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := settings.ParseDuration(every)
			if err != nil || d < 50*time.Millisecond {
				return usagef(cmd, "--every %q is not a duration of 50ms or more", every)
			}
			api, err := a.client()
			if err != nil {
				return err
			}
			return a.watch(cmd.Context(), api, args[0], d)
		}}
	c.Flags().StringVar(&every, "every", "500ms", "how often to look")
	a.addConnection(c)
	return c
}

// watch prints a line per change. A FAILED hold is followed until its coins
// are back.
func (a *app) watch(ctx context.Context, api *apiclient.Client, id string, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	last := ""
	for {
		var h holdfast.Hold
		raw, err := api.Public(ctx, http.MethodGet, "/v1/holds/"+url.PathEscape(id), nil, &h)
		if err != nil {
			return fmt.Errorf("hold %s: %w", id, err)
		}
		if line := watchLine(h); line != last {
			last = line
			if a.output == "json" {
				fmt.Fprintf(a.stdout, "%s\n", raw)
			} else {
				fmt.Fprintf(a.stdout, "%s  %s\n", clock(time.Now()), line)
			}
		}
		if h.Status.Ended() && (h.Status != holdfast.Failed || !h.RefundedAt.IsZero()) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func watchLine(h holdfast.Hold) string {
	switch {
	case h.Status == holdfast.Pending:
		return "PENDING, matures at " + clock(h.UnlockAt)
	case h.Status == holdfast.Executed:
		return fmt.Sprintf("EXECUTED, %d ms after maturity", h.ExecutedAt.Sub(h.UnlockAt).Milliseconds())
	case h.Status == holdfast.Failed && h.RefundedAt.IsZero():
		return "FAILED (" + h.RefusalCode + "), refund on the way"
	case h.Status == holdfast.Failed:
		return "FAILED (" + h.RefusalCode + "), refunded"
	}
	return h.Status.String()
}

func (a *app) showHold(raw json.RawMessage, h holdfast.Hold) error {
	return a.show(raw, func(t *tabwriter.Writer) {
		cells(t, "hold", h.ID)
		cells(t, "status", h.Status)
		cells(t, "from", h.Sender)
		cells(t, "to", h.Recipient)
		cells(t, "amount", amount(h.Amount, h.Currency))
		if h.Reference != "" {
			cells(t, "reference", h.Reference)
		}
		cells(t, "unlock at", clock(h.UnlockAt))
		cells(t, "created at", clock(h.CreatedAt))
		for _, row := range []struct {
			name string
			at   time.Time
		}{{"executed at", h.ExecutedAt}, {"cancelled at", h.CancelledAt}, {"refunded at", h.RefundedAt}} {
			if !row.at.IsZero() {
				cells(t, row.name, clock(row.at))
			}
		}
		if h.PaymentID != "" {
			cells(t, "payment", h.PaymentID)
		}
		if h.RefusalCode != "" {
			cells(t, "refused", h.RefusalCode)
		}
	})
}

func amount(n int64, currency string) string { return fmt.Sprintf("%d %s", n, currency) }
