package chaos

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/apiclient"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// protocolFaults speak the branch protocol as a coordinator does that has lost
// its mind or its order of messages, under the load of those that have not.
func protocolFaults() []Fault {
	return []Fault{
		{Name: "suspended-try", Theme: "protocol", Quick: true, Covers: "2, 3, I11", About: "A Try that comes after its Cancel is refused and moves nothing.", Strike: each(20, suspendedTry)},
		{Name: "null-cancel", Theme: "protocol", Quick: true, Covers: "2, 3, I11", About: "A Cancel without a Try leaves a mark and moves nothing, however often it comes.", Strike: each(20, nullCancel)},
		{Name: "cancel-twice", Theme: "protocol", Quick: true, Covers: "2, I6", About: "A Cancel that comes twice, in a row and at once, gives the coins back once.", Strike: each(20, cancelTwice)},
		{Name: "confirm-after-cancel", Theme: "protocol", Quick: true, Covers: "2, I5, I6", About: "Claim, verdict, credit and end after a Cancel move nothing.", Strike: each(10, confirmAfterCancel)},
		{Name: "try-three-times", Theme: "protocol", Quick: true, Covers: "2, I9", About: "A Try that comes three times at once, over both participants, debits once.", Strike: each(20, tryThrice)},
		{Name: "confirm-twice", Theme: "protocol", Quick: true, Covers: "2, I5, I7", About: "Every step of an execution comes twice and in the wrong order.", Strike: each(6, confirmTwice)},
	}
}

// stranger is a coordinator that speaks for itself, with users of its own.
type stranger struct {
	r         *Run
	steps     []branch.Client // one per participant
	sender    holdfast.UserID
	recipient holdfast.UserID
	shard     int // the sender's
	n         int
}

// funds of a stranger's sender.
const funds = 1000

func each(times int, f func(context.Context, *stranger) error) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		s := &stranger{r: r}
		for i := range 2 {
			c, err := r.Cluster.Steps(i)
			if err != nil {
				return err
			}
			s.steps = append(s.steps, c)
		}
		for s.n = range times {
			if err := s.people(ctx); err != nil {
				return err
			}
			if err := f(ctx, s); err != nil {
				return err
			}
			r.Struck(1)
		}
		return nil
	}
}

// people opens two accounts that nobody else knows, now on one shard, now on two.
func (s *stranger) people(ctx context.Context) error {
	for _, u := range []*holdfast.UserID{&s.sender, &s.recipient} {
		for i := range u {
			u[i] = byte(s.r.Rand.Uint32())
		}
		u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
		if _, err := s.r.API(0).OpenAccount(ctx, u.String()); err != nil {
			return fmt.Errorf("open an account: %w", err)
		}
	}
	s.shard = s.r.Cluster.Map().OfUser(s.sender)
	_, err := s.r.API(0).Deposit(ctx, s.sender.String(), apiclient.Cash{Amount: funds, Key: "stranger"})
	return err
}

// any is one participant or the other.
func (s *stranger) any() *branch.Client { return &s.steps[s.r.Rand.IntN(len(s.steps))] }

// item is a Try of 40 coins with a gid of the caller's.
func (s *stranger) item(in time.Duration) branch.TryItem {
	at := time.Now().Add(in).UnixMilli()
	return branch.TryItem{ID: holdfast.NewHoldID(at, s.sender.Bucket(), s.r.Rand.Uint64()), Sender: s.sender, Recipient: s.recipient,
		Currency: "RBX", Amount: 40, Key: fmt.Sprintf("stranger-%d", at), UnlockAtMS: at}
}

func (s *stranger) try(ctx context.Context, in time.Duration) (branch.TryItem, error) {
	it := s.item(in)
	got := s.any().Try(ctx, s.shard, []branch.TryItem{it})[0]
	if got.Code != branch.CodeOK {
		return it, fmt.Errorf("try: %s", got.Code)
	}
	return it, nil
}

// want compares a code with those allowed.
func (s *stranger) want(step string, got branch.Code, allowed ...branch.Code) {
	for _, a := range allowed {
		if got == a {
			return
		}
	}
	s.r.Fail("%s was answered %q, want one of %q", step, got, allowed)
}

// balance compares the sender's money.
func (s *stranger) balance(ctx context.Context, available, held int64) error {
	a, err := s.r.API(0).Account(ctx, s.sender.String())
	if err == nil && (a.Available != available || a.Held != held) {
		s.r.Fail("the sender has %d and %d held, want %d and %d", a.Available, a.Held, available, held)
	}
	return err
}

func (s *stranger) cancel(ctx context.Context, id holdfast.HoldID, null bool) branch.Code {
	return s.any().Cancel(ctx, s.shard, []branch.CancelItem{{ID: id, NullOK: null}})[0].Code
}

func suspendedTry(ctx context.Context, s *stranger) error {
	it := s.item(time.Minute)
	s.want("a cancel before its try", s.cancel(ctx, it.ID, true), branch.CodeNullCancel)
	s.want("the try after it", s.any().Try(ctx, s.shard, []branch.TryItem{it})[0].Code, branch.CodeSuspended)
	return s.balance(ctx, funds, 0)
}

func nullCancel(ctx context.Context, s *stranger) error {
	it := s.item(time.Minute)
	s.want("a cancel of nothing", s.cancel(ctx, it.ID, true), branch.CodeNullCancel)
	s.want("again", s.cancel(ctx, it.ID, true), branch.CodeAlready, branch.CodeNullCancel)
	s.want("a cancel that may not be null", s.cancel(ctx, s.item(time.Minute).ID, false), branch.CodeNotFound)
	return s.balance(ctx, funds, 0)
}

func cancelTwice(ctx context.Context, s *stranger) error {
	it, err := s.try(ctx, time.Minute)
	if err != nil {
		return err
	}
	codes := make([]branch.Code, 4)
	var all sync.WaitGroup
	for i := range codes {
		c := &s.steps[i%len(s.steps)]
		all.Go(func() { codes[i] = c.Cancel(ctx, s.shard, []branch.CancelItem{{ID: it.ID}})[0].Code })
	}
	all.Wait()
	done := 0
	for _, code := range codes {
		s.want("a cancel at once with others", code, branch.CodeOK, branch.CodeAlready)
		if code == branch.CodeOK {
			done++
		}
	}
	if done != 1 {
		s.r.Fail("%d of four cancels at once say that they did it", done)
	}
	s.want("one more", s.cancel(ctx, it.ID, false), branch.CodeAlready)
	return s.balance(ctx, funds, 0)
}

func confirmAfterCancel(ctx context.Context, s *stranger) error {
	it, err := s.try(ctx, 1200*time.Millisecond)
	if err != nil {
		return err
	}
	s.want("the cancel", s.cancel(ctx, it.ID, false), branch.CodeOK)
	if err := s.r.Wait(ctx, time.Until(time.UnixMilli(it.UnlockAtMS))+50*time.Millisecond); err != nil {
		return err
	}
	ids := []branch.IDItem{{ID: it.ID}}
	s.want("a claim after the cancel", s.any().Claim(ctx, s.shard, []branch.ClaimItem{{ID: it.ID, LeaseMS: 1000}})[0].Code, branch.CodeEnded)
	s.want("a verdict after the cancel", s.any().Settle(ctx, s.shard, []branch.SettleItem{{ID: it.ID, PaymentID: "pay_x"}})[0].Code,
		branch.CodeImpossible, branch.CodeNotFound, branch.CodeVerdictIsOther)
	s.want("an end after the cancel", s.any().Executed(ctx, s.shard, ids)[0].Code, branch.CodeImpossible, branch.CodeNotFound, branch.CodeVerdictIsOther)
	s.want("a refund after the cancel", s.any().Refund(ctx, s.shard, ids)[0].Code, branch.CodeAlready, branch.CodeNotRefundable)
	return s.balance(ctx, funds, 0)
}

func tryThrice(ctx context.Context, s *stranger) error {
	it := s.item(time.Minute)
	codes := make([]branch.Code, 3)
	var all sync.WaitGroup
	for i := range codes {
		c := &s.steps[i%len(s.steps)]
		all.Go(func() { codes[i] = c.Try(ctx, s.shard, []branch.TryItem{it})[0].Code })
	}
	all.Wait()
	done := 0
	for _, code := range codes {
		s.want("a try at once with others", code, branch.CodeOK, branch.CodeReplay, branch.CodeAlready)
		if code == branch.CodeOK {
			done++
		}
	}
	if done != 1 {
		s.r.Fail("%d of three tries at once say that they did it", done)
	}
	if err := s.balance(ctx, funds-it.Amount, it.Amount); err != nil {
		return err
	}
	s.want("the cancel", s.cancel(ctx, it.ID, false), branch.CodeOK)
	return s.balance(ctx, funds, 0)
}

// confirmTwice is an execution by hand, each step of it twice, against the
// product's own driver that may come for the same hold. Where that was first,
// the hand stops after the claim.
func confirmTwice(ctx context.Context, s *stranger) error {
	it, err := s.try(ctx, 1200*time.Millisecond)
	if err != nil {
		return err
	}
	ids := []branch.IDItem{{ID: it.ID}}
	claim := func() branch.Code {
		return s.any().Claim(ctx, s.shard, []branch.ClaimItem{{ID: it.ID, LeaseMS: 8000}})[0].Code
	}
	if early := claim(); time.Now().Before(time.UnixMilli(it.UnlockAtMS)) {
		s.want("a claim before maturity", early, branch.CodeNotDue)
	} else {
		s.r.Note("hold %s had matured before its first claim was answered", it.ID)
		return nil // the machine is too slow for this one; whether it was early the checker says
	}
	s.want("an end before any verdict", s.any().Executed(ctx, s.shard, ids)[0].Code, branch.CodeImpossible, branch.CodeNotFound, branch.CodeVerdictIsOther)
	s.want("a refund of what is pending", s.any().Refund(ctx, s.shard, ids)[0].Code, branch.CodeNotRefundable)
	if err := s.r.Wait(ctx, time.Until(time.UnixMilli(it.UnlockAtMS))+30*time.Millisecond); err != nil {
		return err
	}
	first := claim()
	s.want("a claim at maturity", first, branch.CodeClaimed, branch.CodeBusy, branch.CodeEnded)
	if first != branch.CodeClaimed {
		return nil
	}
	s.want("the same claim again", claim(), branch.CodeBusy)
	s.want("a cancel after the claim", s.cancel(ctx, it.ID, false), branch.CodeMatured)
	if err := s.confirm(ctx, it); err != nil {
		return err
	}
	s.r.Note("each step of hold %s came twice", it.ID)
	return s.balance(ctx, funds-it.Amount, 0)
}

// confirm pays a claimed hold and brings it to its end; every step comes twice,
// and once more when all is over.
func (s *stranger) confirm(ctx context.Context, it branch.TryItem) error {
	var paid struct {
		ID string `json:"payment_id"`
	}
	body := fmt.Appendf(nil, `{"hold_id":%q,"sender_id":%q,"recipient_id":%q,"amount":%d,"currency":%q}`, it.ID, it.Sender, it.Recipient, it.Amount, it.Currency)
	for range 2 {
		if err := s.r.sim(ctx, http.MethodPost, "/v1/payments", it.ID.String()+":EXECUTED", body, &paid); err != nil {
			return err
		}
	}
	home := s.r.Cluster.Map().OfUser(it.Recipient)
	settle := func() branch.Code {
		return s.any().Settle(ctx, s.shard, []branch.SettleItem{{ID: it.ID, PaymentID: paid.ID, Recipient: it.Recipient}})[0].Code
	}
	credit := func() branch.Code {
		return s.any().Credit(ctx, home, []branch.CreditItem{{ID: it.ID, Recipient: it.Recipient, Currency: it.Currency, Amount: it.Amount}})[0].Code
	}
	end := func() branch.Code { return s.any().Executed(ctx, s.shard, []branch.IDItem{{ID: it.ID}})[0].Code }
	s.want("the verdict", settle(), branch.CodeOK)
	s.want("the verdict again", settle(), branch.CodeAlready)
	if home != s.shard { // else the verdict is the credit and the end as well
		s.want("the credit", credit(), branch.CodeOK)
		s.want("the credit again", credit(), branch.CodeAlready)
		s.want("the end", end(), branch.CodeOK)
	}
	s.want("the end again", end(), branch.CodeAlready)
	s.want("the credit when all is over", credit(), branch.CodeAlready)
	s.want("the verdict when all is over", settle(), branch.CodeAlready)
	a, err := s.r.API(0).Account(ctx, it.Recipient.String())
	if err == nil && a.Available != it.Amount {
		s.r.Fail("the recipient has %d after an execution of %d whose steps came twice", a.Available, it.Amount)
	}
	return err
}
