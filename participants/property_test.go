package participants

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// model is the ledger as anybody would write it who had no database, no
// concurrency and no crashes to care about. It must agree with the real one on
// the code of every item of every batch.
type model struct {
	b        *bench
	users    []holdfast.UserID
	accounts map[holdfast.UserID]*modelAccount
	keys     map[senderKey]*modelKey
	cash     map[modelCashKey]*modelKey
	holds    map[holdfast.HoldID]*modelHold
	order    []holdfast.HoldID
	issued   int64
	reached  map[string]int // step and code → how often
}

type modelAccount struct {
	status          holdfast.AccountStatus
	available, held int64
}

type modelKey struct {
	hash    [32]byte
	hold    holdfast.HoldID
	refusal branch.Code
}

type modelCashKey struct {
	senderKey
	withdraw bool
}

type modelHold struct {
	holdfast.Hold
	short    bool // matures within the sequence: waited for before it matters
	busy     bool // a drive owns it
	credited bool
}

// propertyChecks keeps the run short; -rapid.checks says otherwise.
const propertyChecks = "20"

func TestAgainstAModel(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("needs PostgreSQL; -short is set")
	}
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "rapid.checks" })
	if !given {
		_ = flag.Set("rapid.checks", propertyChecks)
	}
	// A sequence that failed may leave its shards in any state: the next one,
	// which rapid runs to find a shorter failure, gets new ones.
	var b *bench
	reached := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		if b == nil {
			b = newBench(t, 2)
		}
		whole := false
		defer func() {
			if !whole {
				b.node.Close(b.ctx)
				b.set.Close()
				b = nil
			}
		}()
		m := newModel(b)
		m.reached = reached
		rt.Repeat(map[string]func(*rapid.T){
			"try": m.try, "try again": m.try, "claim again": m.claim, "settle again": m.settle, "cash": m.doCash, "cancel": m.cancel, "claim": m.claim, "settle": m.settle, "refuse": m.refuse,
			"credit": m.credit, "executed": m.executed, "defer": m.deferral, "refund": m.refund, "status": m.setStatus,
			"": m.balances,
		})
		m.end(rt)
		whole = true
	})
	t.Logf("steps and their answers: %v", reached)
}

func newModel(b *bench) *model {
	m := &model{b: b, accounts: map[holdfast.UserID]*modelAccount{}, keys: map[senderKey]*modelKey{},
		cash: map[modelCashKey]*modelKey{}, holds: map[holdfast.HoldID]*modelHold{}}
	for i := range 4 {
		u := b.newUser(i % 2)
		m.users = append(m.users, u)
		if a, err := b.Open(b.ctx, i%2, branch.AccountRequest{User: u, Currency: "RBX"}); err != nil || !a.Created {
			b.t.Fatalf("open: %+v, %v", a, err)
		}
		// Enough for a few holds and too little for all.
		if r := b.Cash(b.ctx, i%2, []branch.CashItem{{User: u, Currency: "RBX", Amount: 150, Key: "first"}})[0]; r.Code != branch.CodeOK {
			b.t.Fatalf("deposit: %+v", r)
		}
		m.issued += 150
		m.accounts[u] = &modelAccount{status: holdfast.AccountOpen, available: 150}
	}
	m.users = append(m.users, b.newUser(0)) // has no account
	return m
}

func (m *model) shard(u holdfast.UserID) int { return m.b.set.Map().OfUser(u) }

// rounds is the order in which a batch is decided: items that share a key with
// an earlier one wait for the next round.
func rounds[I any, K comparable](items []I, key func(I) K) (order []int) {
	waiting := make([]int, len(items))
	for i := range items {
		waiting[i] = i
	}
	for len(waiting) > 0 {
		seen, later := map[K]bool{}, []int(nil)
		for _, i := range waiting {
			if k := key(items[i]); seen[k] {
				later = append(later, i)
			} else {
				seen[k] = true
				order = append(order, i)
			}
		}
		waiting = later
	}
	return order
}

func (m *model) user(rt *rapid.T, label string) holdfast.UserID {
	return m.users[rapid.IntRange(0, len(m.users)-1).Draw(rt, label)]
}

// try reserves a batch of one shard, with keys that come again and requests
// that change under them.
func (m *model) try(rt *rapid.T) {
	shard := rapid.IntRange(0, 1).Draw(rt, "shard")
	var items []branch.TryItem
	for range rapid.IntRange(1, 6).Draw(rt, "items") {
		from, to := m.user(rt, "from"), m.user(rt, "to")
		if from == to || m.shard(from) != shard {
			continue
		}
		delay := time.Hour
		if rapid.Bool().Draw(rt, "short") {
			delay = 30 * time.Millisecond
		}
		item := try(from, to, rapid.SampledFrom([]int64{1, 20, 100}).Draw(rt, "amount"), fmt.Sprint(rapid.IntRange(0, 15).Draw(rt, "key")), delay)
		// As the coordinator does: who may not receive is refused with the Try.
		check := m.b.Check(m.b.ctx, m.shard(to), []branch.CheckItem{{User: to, Currency: "RBX"}})[0]
		want := branch.CodeOK
		if a := m.accounts[to]; a == nil {
			want = branch.CodeUnknownRecipient
		} else if a.status != holdfast.AccountOpen {
			want = branch.CodeRecipientNotPayable
		}
		if check.Code != want {
			rt.Fatalf("check of %s answers %s, the model says %s", to, check.Code, want)
		}
		if want != branch.CodeOK {
			item.Refusal = want
		}
		items = append(items, item)
	}
	got := m.b.Try(m.b.ctx, shard, items)
	for _, i := range rounds(items, func(i branch.TryItem) senderKey { return senderKey{i.Sender, i.Key} }) {
		m.tried(rt, items[i], got[i])
	}
}

func (m *model) tried(rt *rapid.T, item branch.TryItem, got branch.TryResult) {
	k := senderKey{item.Sender, item.Key}
	want, known, a := branch.CodeOK, m.keys[k], m.accounts[item.Sender]
	switch {
	case known != nil && known.hash != item.RequestHash:
		want = branch.CodeKeyReused
	case known != nil:
		want = branch.CodeReplay
	case item.Refusal != "":
		want = item.Refusal
	case a == nil:
		want = branch.CodeUnknownSender
	case a.status != holdfast.AccountOpen:
		want = branch.CodeSenderNotActive
	case a.available < item.Amount:
		want = branch.CodeInsufficientFunds
		m.keys[k] = &modelKey{hash: item.RequestHash, refusal: want}
	}
	m.reached["try "+string(want)]++
	if got.Code != want {
		rt.Fatalf("try %+v answers %+v, the model says %s", item, got, want)
	}
	switch want {
	case branch.CodeOK:
		a.available -= item.Amount
		a.held += item.Amount
		h := got.Hold
		if h.Sender != item.Sender || h.Recipient != item.Recipient || h.Amount != item.Amount || h.Status != holdfast.Pending {
			rt.Fatalf("try %+v made %+v", item, h)
		}
		m.keys[k] = &modelKey{hash: item.RequestHash, hold: h.ID}
		m.holds[h.ID] = &modelHold{Hold: h, short: item.DelayMS < 1000}
		m.order = append(m.order, h.ID)
	case branch.CodeReplay:
		if got.Refusal != known.refusal || known.refusal == "" && (got.Hold.ID != known.hold || got.Hold.Status != m.holds[known.hold].Status) {
			rt.Fatalf("the replay of %+v answers %+v, the model has %+v", item, got, known)
		}
	case branch.CodeInsufficientFunds:
		if got.Available != a.available {
			rt.Fatalf("the refusal says %d are available, the model has %d", got.Available, a.available)
		}
	}
}

func (m *model) doCash(rt *rapid.T) {
	shard := rapid.IntRange(0, 1).Draw(rt, "shard")
	withdraw := rapid.IntRange(0, 3).Draw(rt, "kind") == 0
	var items []branch.CashItem
	for range rapid.IntRange(1, 4).Draw(rt, "items") {
		u := m.user(rt, "user")
		if m.shard(u) != shard {
			continue
		}
		amount := rapid.Int64Range(1, 100).Draw(rt, "amount")
		item := branch.CashItem{User: u, Currency: "RBX", Amount: amount, Key: fmt.Sprint(rapid.IntRange(0, 20).Draw(rt, "key")),
			RequestHash: [32]byte{byte(amount)}}
		if withdraw {
			item.Amount = -amount
		}
		items = append(items, item)
	}
	got := m.b.Cash(m.b.ctx, shard, items)
	for _, i := range rounds(items, func(i branch.CashItem) senderKey { return senderKey{i.User, i.Key} }) {
		item, a := items[i], m.accounts[items[i].User]
		k := modelCashKey{senderKey{item.User, item.Key}, withdraw}
		want, known := branch.CodeOK, m.cash[k]
		switch {
		case known != nil && known.hash != item.RequestHash:
			want = branch.CodeKeyReused
		case known != nil:
			want = branch.CodeReplay
		case a == nil:
			want = branch.CodeUnknownAccount
		case withdraw && a.status != holdfast.AccountOpen:
			want = branch.CodeSenderNotActive
		case a.available+item.Amount < 0:
			want = branch.CodeInsufficientFunds
			m.cash[k] = &modelKey{hash: item.RequestHash, refusal: want}
		default:
			a.available += item.Amount
			m.issued += item.Amount
			m.cash[k] = &modelKey{hash: item.RequestHash}
		}
		m.reached["cash "+string(want)]++
		if got[i].Code != want || want == branch.CodeReplay && got[i].Refusal != known.refusal {
			rt.Fatalf("cash %+v answers %+v, the model says %s", item, got[i], want)
		}
	}
}

// some draws holds of one shard, each at most once, and waits until those that
// mature within the sequence have: from then on it is certain what time decides.
// Mostly they are taken from those in the state that the step is made for.
func (m *model) some(rt *rapid.T, fit func(*modelHold) bool) (shard int, holds []*modelHold) {
	if len(m.order) == 0 {
		rt.Skip("no hold yet")
	}
	from := slices.DeleteFunc(slices.Clone(m.order), func(id holdfast.HoldID) bool { return !fit(m.holds[id]) })
	if len(from) == 0 || rapid.IntRange(0, 2).Draw(rt, "any") == 0 {
		from = m.order
	}
	first := m.holds[rapid.SampledFrom(from).Draw(rt, "hold")]
	shard, holds = m.shard(first.Sender), []*modelHold{first}
	for range rapid.IntRange(0, 4).Draw(rt, "more") {
		h := m.holds[rapid.SampledFrom(from).Draw(rt, "hold")]
		if m.shard(h.Sender) == shard && !slices.Contains(holds, h) {
			holds = append(holds, h)
		}
	}
	for _, h := range holds {
		if h.short {
			m.b.mature(h.Hold)
		}
	}
	return shard, holds
}

// back gives the coins of a hold to its sender.
func (m *model) back(h *modelHold) {
	a := m.accounts[h.Sender]
	a.held -= h.Amount
	a.available += h.Amount
}

// balances compares every account after every step.
func (m *model) balances(rt *rapid.T) {
	for u, a := range m.accounts {
		got, err := m.b.Account(m.b.ctx, m.shard(u), branch.AccountRequest{User: u, Currency: "RBX"})
		if err != nil || got.Account.Available != a.available || got.Account.Held != a.held || got.Account.Status != a.status {
			rt.Fatalf("account %s is %+v, %v, the model has %+v", u, got.Account, err, *a)
		}
	}
}

// end compares everything that is left behind: holds, statements, the sum of
// all coins, and the shards' own proof.
func (m *model) end(rt *rapid.T) {
	ctx, cancel := context.WithTimeout(m.b.ctx, 20*time.Second)
	defer cancel()
	inTransit, held := int64(0), map[holdfast.UserID]int64{}
	for id, h := range m.holds {
		got := m.b.Get(ctx, m.shard(h.Sender), []branch.IDItem{{ID: id}})[0].Hold
		if got.Status != h.Status || got.Verdict != h.Verdict || got.RefundedAt.IsZero() != h.RefundedAt.IsZero() {
			rt.Fatalf("hold %+v, the model has %+v", got, h.Hold)
		}
		switch {
		case h.Verdict == holdfast.Paid && !h.credited:
			inTransit += h.Amount
		case h.Status == holdfast.Pending, h.Status == holdfast.Executing && h.Verdict == holdfast.NoVerdict,
			h.Status == holdfast.Failed && h.RefundedAt.IsZero():
			held[h.Sender] += h.Amount
		}
	}
	all := inTransit
	for u, a := range m.accounts {
		all += a.available + a.held
		if held[u] != a.held {
			rt.Fatalf("the holds of %s in escrow are %d, its account says %d", u, held[u], a.held)
		}
		m.statement(ctx, rt, u, a)
	}
	if all != m.issued {
		rt.Fatalf("%d coins were issued, there are %d", m.issued, all)
	}
	for shard := range m.b.set.N() {
		if p, err := m.b.Prove(ctx, shard); err != nil || !p.OK {
			rt.Fatalf("proof of shard %d: %+v, %v", shard, p, err)
		}
	}
}

// statement sums up what the account's statement says, page by page.
func (m *model) statement(ctx context.Context, rt *rapid.T, u holdfast.UserID, a *modelAccount) {
	sums, last := map[holdfast.Book]int64{}, int64(0)
	balance := map[holdfast.Book]int64{holdfast.BookAvailable: a.available, holdfast.BookHeld: a.held}
	for before := int64(0); ; {
		page, err := m.b.Statement(ctx, m.shard(u), branch.AccountRequest{User: u, Currency: "RBX", Before: before, Limit: 7})
		if err != nil {
			rt.Fatalf("statement of %s: %v", u, err)
		}
		for _, e := range page.Entries {
			if last != 0 && e.Seq != last-1 {
				rt.Fatalf("the statement of %s goes from %d to %d", u, last, e.Seq)
			}
			// Newest first: what is not summed up yet is the balance after this entry.
			if now := balance[e.Book] - sums[e.Book]; e.BalanceAfter != now {
				rt.Fatalf("entry %+v of %s, the balance after it was %d", e, u, now)
			}
			last = e.Seq
			sums[e.Book] += e.Amount
		}
		if before = page.Next; before == 0 {
			break
		}
	}
	if sums[holdfast.BookAvailable] != a.available || sums[holdfast.BookHeld] != a.held || last > 1 {
		rt.Fatalf("the statement of %s sums up to %v and begins at %d, the model has %+v", u, sums, last, *a)
	}
}
