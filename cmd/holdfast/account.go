package main

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"text/tabwriter"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/apiclient"
	"github.com/spf13/cobra"
)

func (a *app) accountCommand() *cobra.Command {
	return group("account", "Open, fund and read accounts",
		a.accountOpen(), a.accountDeposit(), a.accountGet(), a.accountEntries())
}

func (a *app) accountOpen() *cobra.Command {
	return a.accountCall("open", "Open an account, or find it open", http.MethodPut)
}

func (a *app) accountGet() *cobra.Command {
	return a.accountCall("get", "Show a balance", http.MethodGet)
}

func (a *app) accountCall(verb, short, method string) *cobra.Command {
	c := &cobra.Command{Use: verb + " USER_ID", Short: short, Args: exactly("USER_ID"),
		Example: "  holdfast account " + verb + " 7d8f1c9e-7a39-4d7c-9a52-3c9b1c1f0a11",
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.client()
			if err != nil {
				return err
			}
			var acc holdfast.Account
			raw, err := api.Public(cmd.Context(), method, "/v1/accounts/"+url.PathEscape(args[0]), nil, &acc)
			if err != nil {
				return fmt.Errorf("account %s: %w", args[0], err)
			}
			return a.show(raw, func(t *tabwriter.Writer) { accountRows(t, acc) })
		}}
	a.addConnection(c)
	return c
}

func accountRows(t *tabwriter.Writer, acc holdfast.Account) {
	cells(t, "user", acc.User)
	cells(t, "status", acc.Status)
	cells(t, "available", amount(acc.Available, acc.Currency))
	cells(t, "held", amount(acc.Held, acc.Currency))
}

func (a *app) accountDeposit() *cobra.Command {
	var r apiclient.Cash
	c := &cobra.Command{Use: "deposit USER_ID --amount N", Short: "Mint coins for a user from the issuer account", Args: exactly("USER_ID"),
		Example: "  holdfast account deposit 7d8f1c9e-7a39-4d7c-9a52-3c9b1c1f0a11 --amount 1000",
		RunE: func(cmd *cobra.Command, args []string) error {
			if r.Key == "" {
				r.Key = "cli-" + rand.Text()
			}
			api, err := a.client()
			if err != nil {
				return err
			}
			if _, err := api.Deposit(cmd.Context(), args[0], r); err != nil {
				return fmt.Errorf("deposit with key %s: %w", r.Key, err)
			}
			var acc holdfast.Account
			raw, err := api.Public(cmd.Context(), http.MethodGet, "/v1/accounts/"+url.PathEscape(args[0]), nil, &acc)
			if err != nil {
				return fmt.Errorf("the deposit is done, but the account could not be read: %w", err)
			}
			return a.show(raw, func(t *tabwriter.Writer) { accountRows(t, acc) })
		}}
	c.Flags().Int64Var(&r.Amount, "amount", 0, "coins in minor units")
	c.Flags().StringVar(&r.Currency, "currency", "RBX", "currency code")
	c.Flags().StringVar(&r.Key, "key", "", "idempotency key (default: a random one)")
	c.MarkFlagRequired("amount")
	a.addConnection(c)
	return c
}

func (a *app) accountEntries() *cobra.Command {
	var size int
	var page string
	c := &cobra.Command{Use: "entries USER_ID", Short: "Show the statement of an account, newest entry first", Args: exactly("USER_ID"),
		Example: "  holdfast account entries 7d8f1c9e-7a39-4d7c-9a52-3c9b1c1f0a11",
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{"page_size": {strconv.Itoa(size)}}
			if page != "" {
				q.Set("page_token", page)
			}
			api, err := a.client()
			if err != nil {
				return err
			}
			var answer struct {
				Entries []holdfast.Entry `json:"entries"`
				Next    string           `json:"next_page_token"`
			}
			raw, err := api.Public(cmd.Context(), http.MethodGet, "/v1/accounts/"+url.PathEscape(args[0])+"/entries?"+q.Encode(), nil, &answer)
			if err != nil {
				return fmt.Errorf("account %s: %w", args[0], err)
			}
			return a.show(raw, func(t *tabwriter.Writer) {
				cells(t, "POSTED AT", "SEQ", "MOVEMENT", "BOOK", "AMOUNT", "BALANCE AFTER", "REF")
				for _, e := range answer.Entries {
					cells(t, clock(e.PostedAt), e.Seq, e.Movement, e.Book, e.Amount, e.BalanceAfter, e.Ref)
				}
				if answer.Next != "" {
					cells(t, "more: --page", answer.Next)
				}
			})
		}}
	c.Flags().IntVar(&size, "limit", 50, "entries per page, up to 200")
	c.Flags().StringVar(&page, "page", "", "page token of the answer before")
	a.addConnection(c)
	return c
}
