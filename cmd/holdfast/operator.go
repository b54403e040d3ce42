package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"text/tabwriter"

	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/spf13/cobra"
)

func (a *app) dlqCommand() *cobra.Command {
	resolve := a.dlqAct("resolve", "Decide a hold whose payment's outcome is unknown, with evidence",
		"  holdfast dlq resolve 01997f3a-2c00-8a3b-9f00-0242ac120002 --outcome paid --evidence 'payment 4711 in the provider console' --reason 'asked the provider'")
	resolve.Flags().String("outcome", "", "paid or not_paid")
	resolve.Flags().String("evidence", "", "what proves it")
	resolve.MarkFlagRequired("outcome")
	resolve.MarkFlagRequired("evidence")
	return group("dlq", "Dead letters: holds that a person may have to look at", a.dlqList(),
		a.dlqAct("retry", "Drive a hold again that is EXECUTING", "  holdfast dlq retry 01997f3a-2c00-8a3b-9f00-0242ac120002 --reason 'provider is back'"),
		a.dlqAct("refund", "Refund a FAILED hold now", "  holdfast dlq refund 01997f3a-2c00-8a3b-9f00-0242ac120002 --reason 'customer waits'"),
		resolve,
		a.dlqAct("close", "Close a dead letter with a note", "  holdfast dlq close 01997f3a-2c00-8a3b-9f00-0242ac120002 --reason 'known ban, nothing to do'"))
}

func (a *app) dlqList() *cobra.Command {
	var all bool
	var code, page string
	var size int
	c := &cobra.Command{Use: "list", Short: "List dead letters, newest first", Args: exactly(),
		Example: "  holdfast dlq list --code outcome_unknown",
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{"page_size": {strconv.Itoa(size)}, "open": {strconv.FormatBool(!all)}}
			if code != "" {
				q.Set("code", code)
			}
			if page != "" {
				q.Set("page_token", page)
			}
			api, err := a.client()
			if err != nil {
				return err
			}
			var answer struct {
				DeadLetters []branch.DeadLetter `json:"dead_letters"`
				Next        string              `json:"next_page_token"`
			}
			raw, err := api.AdminCall(cmd.Context(), http.MethodGet, "/admin/v1/dead-letters?"+q.Encode(), nil, &answer)
			if err != nil {
				return err
			}
			return a.show(raw, func(t *tabwriter.Writer) {
				cells(t, "HOLD", "CODE", "STATUS", "AMOUNT", "SINCE", "STATE")
				for _, d := range answer.DeadLetters {
					state := "open"
					if !d.ClosedAt.IsZero() {
						state = d.Resolution
					}
					cells(t, d.HoldID, d.Code, d.Hold.Status, amount(d.Hold.Amount, d.Hold.Currency), clock(d.CreatedAt), state)
				}
				if answer.Next != "" {
					cells(t, "more: --page", answer.Next)
				}
			})
		}}
	c.Flags().BoolVar(&all, "all", false, "also those that are closed")
	c.Flags().StringVar(&code, "code", "", "only this code")
	c.Flags().StringVar(&page, "page", "", "page token of the answer before")
	c.Flags().IntVar(&size, "limit", 50, "dead letters per page, up to 200")
	a.addConnection(c)
	return c
}

// dlqAct is an act of a person on one dead letter; every act needs a reason,
// which goes to the audit.
func (a *app) dlqAct(verb, short, example string) *cobra.Command {
	var reason string
	c := &cobra.Command{Use: verb + " HOLD_ID --reason TEXT", Short: short, Args: exactly("HOLD_ID"), Example: example}
	c.Flags().StringVar(&reason, "reason", "", "why, for the audit")
	c.MarkFlagRequired("reason")
	a.addConnection(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		body := map[string]string{"reason": reason}
		for _, name := range []string{"outcome", "evidence"} {
			if f := cmd.Flags().Lookup(name); f != nil {
				body[name] = f.Value.String()
			}
		}
		if o, ok := body["outcome"]; ok && o != "paid" && o != "not_paid" {
			return usagef(cmd, "--outcome is %q, must be paid or not_paid", o)
		}
		api, err := a.client()
		if err != nil {
			return err
		}
		raw, err := api.AdminCall(cmd.Context(), http.MethodPost, "/admin/v1/dead-letters/"+url.PathEscape(args[0])+":"+verb, body, nil)
		if err != nil {
			return fmt.Errorf("%s %s: %w", verb, args[0], err)
		}
		if len(raw) == 0 {
			raw = json.RawMessage("{}")
		}
		return a.show(raw, func(t *tabwriter.Writer) { cells(t, verb, args[0], "done") })
	}
	return c
}

func (a *app) ledgerCommand() *cobra.Command {
	prove := &cobra.Command{Use: "prove", Short: "Prove that the books are whole; exit 4 if they are not", Args: exactly(),
		Long: `Checks on every shard and across them that debits equal credits, balances are
the replay of their entries, escrow is the sum of the holds in it, every coin on
its way is explained by a hold, and nothing is negative. It reads the whole
ledger and may take minutes on a large one.`,
		Example: "  holdfast ledger prove\n  holdfast ledger prove -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.client()
			if err != nil {
				return err
			}
			api.HTTP = slowHTTP
			proof, raw, err := api.Prove(cmd.Context())
			if err != nil {
				return err
			}
			if err := a.showProof(raw); err != nil {
				return err
			}
			if !proof.OK {
				return &alreadySaid{errCheckFailed}
			}
			return nil
		}}
	a.addConnection(prove)
	return group("ledger", "Prove the books", prove)
}

func (a *app) showProof(raw json.RawMessage) error {
	var p struct {
		OK        bool                `json:"ok"`
		Shards    []branch.ShardProof `json:"shards"`
		Offenders []branch.Offender   `json:"offenders"`
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return fmt.Errorf("the proof is not understood: %w", err)
	}
	return a.show(raw, func(t *tabwriter.Writer) {
		cells(t, "SHARD", "ACCOUNTS", "HOLDS", "DEBITS", "CREDITS", "AVAILABLE", "HELD", "ESCROW OF HOLDS", "TRANSIT", "OK")
		for _, s := range p.Shards {
			cells(t, s.Shard, s.Accounts, s.Holds, s.Debits, s.Credits, s.Available, s.Held, s.EscrowHolds, s.Transit, yes(s.OK))
			for _, o := range s.Offenders {
				cells(t, "", o.Kind, "×"+strconv.FormatInt(o.Count, 10), "first: "+o.First)
			}
		}
		for _, o := range p.Offenders {
			cells(t, "all", o.Kind, "×"+strconv.FormatInt(o.Count, 10), "first: "+o.First)
		}
		cells(t, "")
		if p.OK {
			cells(t, "The ledger is whole.")
		} else {
			cells(t, "THE LEDGER IS NOT WHOLE.")
		}
	})
}

func yes(ok bool) string {
	if ok {
		return "yes"
	}
	return "NO"
}

func (a *app) shardCommand() *cobra.Command {
	list := &cobra.Command{Use: "list", Short: "Show the state of every shard", Args: exactly(), Example: "  holdfast shard list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.client()
			if err != nil {
				return err
			}
			var answer struct {
				Shards []branch.ShardStatus `json:"shards"`
			}
			raw, err := api.AdminCall(cmd.Context(), http.MethodGet, "/admin/v1/shards", nil, &answer)
			if err != nil {
				return err
			}
			return a.show(raw, func(t *tabwriter.Writer) {
				cells(t, "SHARD", "UP", "SCHEMA", "PENDING", "EXECUTING", "OLDEST OVERDUE", "CLOCK", "DATABASE", "ERROR")
				for _, s := range answer.Shards {
					cells(t, s.Shard, yes(s.Up), s.SchemaVersion, s.Holds["PENDING"], s.Holds["EXECUTING"],
						fmt.Sprintf("%.1f s", s.OldestOverdueS), fmt.Sprintf("%+d ms", s.ClockOffsetMS),
						fmt.Sprintf("%d MiB", s.DatabaseBytes>>20), dash(s.Error))
				}
			})
		}}
	a.addConnection(list)
	return group("shard", "Look at the shards", list)
}
