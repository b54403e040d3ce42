package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/apiclient"
	"github.com/holdfast-escrow/holdfast/internal/embed"
	"github.com/spf13/cobra"
)

func (a *app) demoCommand() *cobra.Command {
	var install bool
	c := &cobra.Command{
		Use: "demo", Short: "See the main job end to end on a stack of its own", Args: exactly(),
		Long: `Starts a stack in a temporary directory on free ports, funds accounts on every
shard, creates holds across shards, cancels some before maturity, lets the rest
be paid, has one recipient refused and refunded, prints what became of each hold
and proves the ledger. Exits 4 if one hold ends wrongly or the books are not whole.`,
		Example: "  holdfast demo",
	}
	c.Flags().BoolVar(&install, "install", false, "install missing server programs through the system's package manager")
	c.RunE = func(cmd *cobra.Command, _ []string) error { return a.demo(cmd.Context(), install) }
	return c
}

// demoFunds is what each sender starts with.
const demoFunds = 10_000

// demoHold is one hold of the demo and what must become of it.
type demoHold struct {
	from, to     holdfast.UserID
	fromAt, toAt int // their shards
	amount, inS  int64
	cancel       bool
	want         holdfast.Status
	got          holdfast.Hold
}

// demo runs the story on a stack that it removes after.
func (a *app) demo(ctx context.Context, install bool) (err error) {
	dir, err := os.MkdirTemp("", "holdfast-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// The servers may run as another user than root.
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	data := filepath.Join(dir, "stack")
	cfg, err := a.settings(map[string]string{"HOLDFAST_DATA": data, "HOLDFAST_API_ADDR": "127.0.0.1:0",
		"HOLDFAST_ADMIN_ADDR": "127.0.0.1:0", "HOLDFAST_SIM_ADDR": "127.0.0.1:0"})
	if err != nil {
		return err
	}
	// The demo is the same wherever it runs: servers and secrets of its own.
	cfg.Shards, cfg.RedisURL, cfg.JWTSecret, cfg.PaymentURL = nil, "", "", ""
	a.tell("Starting four PostgreSQL shards, Redis and every role …")
	u := &up{app: a, cfg: cfg, install: install, quiet: io.Discard}
	if err := u.start(ctx); err != nil {
		return err
	}
	defer func() {
		tidyErr := errors.Join(u.stop(ctx), embed.Remove(data))
		if err == nil {
			err = tidyErr
		}
	}()
	token, err := serviceToken(cfg)
	if err != nil {
		return err
	}
	l := u.proc.listeners
	d := &demo{app: a, shards: u.proc.shards.Map(), sim: "http://" + addrOf(l.sim),
		api: &apiclient.Client{API: "http://" + addrOf(l.api), Admin: "http://" + addrOf(l.admin), Token: token}}
	return d.run(ctx)
}

// tell is for a person; with -o json only the result is printed.
func (a *app) tell(format string, args ...any) {
	if a.output != "json" {
		fmt.Fprintf(a.stdout, format+"\n", args...)
	}
}

// demo is the story itself.
type demo struct {
	*app
	api    *apiclient.Client
	sim    string
	shards *holdfast.ShardMap
	banned holdfast.UserID
	holds  []*demoHold
}

func (d *demo) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := d.cast(ctx); err != nil {
		return err
	}
	for _, h := range d.holds {
		if err := d.create(ctx, h); err != nil {
			return err
		}
	}
	d.tell("Created %d holds; every sender was debited at once.", len(d.holds))
	if err := d.cancelSome(ctx); err != nil {
		return err
	}
	d.tell("Waiting for maturity …")
	for _, h := range d.holds {
		if err := d.await(ctx, h); err != nil {
			return err
		}
	}
	return d.finish(ctx)
}

// cast opens accounts: a sender and a recipient on every shard, and one
// recipient that the payment API refuses.
func (d *demo) cast(ctx context.Context) error {
	n := d.shards.Shards
	senders, recipients := make([]holdfast.UserID, n), make([]holdfast.UserID, n)
	for i := range n {
		senders[i], recipients[i] = d.userOn(i), d.userOn(i)
		if err := d.open(ctx, senders[i], demoFunds); err != nil {
			return err
		}
		if err := d.open(ctx, recipients[i], 0); err != nil {
			return err
		}
	}
	d.tell("Funded %d senders with %d RBX each, one per shard.", n, demoFunds)
	d.banned = d.userOn(n - 1)
	if err := d.open(ctx, d.banned, 0); err != nil {
		return err
	}
	if err := d.ban(ctx); err != nil {
		return err
	}
	for i := range n {
		next := (i + 1) % n
		d.plan(senders[i], recipients[next], int64(100*(i+1)), int64(2+i), false, holdfast.Executed)
		d.plan(senders[i], recipients[i], int64(10*(i+1)), 3, false, holdfast.Executed)
		d.plan(senders[i], recipients[next], 1000, 60, true, holdfast.Cancelled)
	}
	d.plan(senders[0], d.banned, 777, 3, false, holdfast.Failed)
	return nil
}

func (d *demo) plan(from, to holdfast.UserID, amount, inS int64, cancel bool, want holdfast.Status) {
	d.holds = append(d.holds, &demoHold{from: from, to: to, amount: amount, inS: inS, cancel: cancel, want: want,
		fromAt: d.shards.OfUser(from), toAt: d.shards.OfUser(to)})
}

func (d *demo) userOn(shard int) holdfast.UserID {
	for {
		if u := newUser(); d.shards.OfUser(u) == shard {
			return u
		}
	}
}

func (d *demo) open(ctx context.Context, u holdfast.UserID, funds int64) error {
	if _, err := d.api.OpenAccount(ctx, u.String()); err != nil {
		return fmt.Errorf("open account %s: %w", u, err)
	}
	if funds == 0 {
		return nil
	}
	if _, err := d.api.Deposit(ctx, u.String(), apiclient.Cash{Amount: funds, Currency: "RBX", Key: "demo"}); err != nil {
		return fmt.Errorf("fund account %s: %w", u, err)
	}
	return nil
}

func (d *demo) ban(ctx context.Context) error {
	body := fmt.Sprintf(`{"mode":"ok","banned":["%s"]}`, d.banned)
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, d.sim+"/sim/faults", strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ban a recipient at the simulator: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000)) // the status says enough
		return fmt.Errorf("ban a recipient at the simulator: %d %s", resp.StatusCode, text)
	}
	return nil
}

func (d *demo) create(ctx context.Context, h *demoHold) (err error) {
	h.got, err = d.api.Create(ctx, apiclient.CreateHold{Sender: h.from.String(), Recipient: h.to.String(),
		Amount: h.amount, UnlockInSeconds: h.inS, Key: fmt.Sprintf("demo-%s-%d-%d", h.to, h.amount, h.inS)})
	if err != nil {
		return fmt.Errorf("create hold of %d from %s to %s: %w", h.amount, h.from, h.to, err)
	}
	return nil
}

func (d *demo) cancelSome(ctx context.Context) error {
	n := 0
	for _, h := range d.holds {
		if !h.cancel {
			continue
		}
		if _, err := d.api.Cancel(ctx, h.got.ID.String()); err != nil {
			return fmt.Errorf("cancel hold %s: %w", h.got.ID, err)
		}
		n++
	}
	d.tell("Cancelled %d of them; their senders have the coins back.", n)
	return nil
}

// await polls until a hold has ended, its refund included.
func (d *demo) await(ctx context.Context, h *demoHold) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(time.Duration(h.inS)*time.Second + 30*time.Second)
	for time.Now().Before(deadline) {
		got, err := d.api.Hold(ctx, h.got.ID.String())
		if err != nil {
			return err
		}
		h.got = got
		if got.Status.Ended() && (got.Status != holdfast.Failed || !got.RefundedAt.IsZero()) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil // finish reports it
}

// finish prints what became of everything and checks it.
func (d *demo) finish(ctx context.Context) error {
	var wrong []error
	for _, h := range d.holds {
		if h.got.Status != h.want {
			wrong = append(wrong, fmt.Errorf("hold %s is %s, should be %s", h.got.ID, h.got.Status, h.want))
		}
	}
	wrong = append(wrong, d.balances(ctx)...)
	proof, raw, err := d.api.Prove(ctx)
	if err != nil {
		return err
	}
	if !proof.OK {
		wrong = append(wrong, errors.New("the ledger is not whole"))
	}
	if err := d.print(); err != nil {
		return err
	}
	if d.output != "json" {
		if err := d.showProof(raw); err != nil {
			return err
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%w: %w", errCheckFailed, errors.Join(wrong...))
	}
	return nil
}

func (d *demo) print() error {
	if d.output == "json" {
		var all []holdfast.Hold
		for _, h := range d.holds {
			all = append(all, h.got)
		}
		return d.showJSON(map[string]any{"holds": all})
	}
	d.tell("")
	t := tabwriter.NewWriter(d.stdout, 0, 0, 2, ' ', 0)
	cells(t, "HOLD", "SHARDS", "AMOUNT", "STATUS", "LAG")
	for _, h := range d.holds {
		lag := "-"
		if h.got.Status == holdfast.Executed {
			lag = fmt.Sprintf("%d ms", h.got.ExecutedAt.Sub(h.got.UnlockAt).Milliseconds())
		}
		status := h.got.Status.String()
		if !h.got.RefundedAt.IsZero() {
			status += " (" + h.got.RefusalCode + "), refunded"
		}
		cells(t, h.got.ID, fmt.Sprintf("%d → %d", h.fromAt, h.toAt), amount(h.amount, "RBX"), status, lag)
	}
	cells(t, "")
	return t.Flush()
}

// balances compares every account with what the holds say it must have.
func (d *demo) balances(ctx context.Context) []error {
	want := map[holdfast.UserID]int64{}
	for _, h := range d.holds {
		if _, seen := want[h.from]; !seen {
			want[h.from] = demoFunds
		}
		if h.want == holdfast.Executed {
			want[h.from] -= h.amount
			want[h.to] += h.amount
		}
	}
	var wrong []error
	for u, coins := range want {
		acc, err := d.api.Account(ctx, u.String())
		switch {
		case err != nil:
			wrong = append(wrong, err)
		case acc.Available != coins || acc.Held != 0:
			wrong = append(wrong, fmt.Errorf("account %s has %d available and %d held, should have %d and 0", u, acc.Available, acc.Held, coins))
		}
	}
	return wrong
}
