package checker

import (
	"math/big"
	"slices"

	"github.com/holdfast-escrow/holdfast"
)

// route says between which books a movement goes.
var route = map[holdfast.Movement][2]holdfast.Book{
	holdfast.MoveReserve:  {holdfast.BookAvailable, holdfast.BookHeld},
	holdfast.MoveSettle:   {holdfast.BookHeld, holdfast.BookTransit},
	holdfast.MoveCredit:   {holdfast.BookTransit, holdfast.BookAvailable},
	holdfast.MoveRefund:   {holdfast.BookHeld, holdfast.BookAvailable},
	holdfast.MoveCancel:   {holdfast.BookHeld, holdfast.BookAvailable},
	holdfast.MoveDeposit:  {holdfast.BookIssuer, holdfast.BookAvailable},
	holdfast.MoveWithdraw: {holdfast.BookAvailable, holdfast.BookIssuer},
}

// books checks the ledger of one shard against itself and its balances.
func (f *finder) books(m *holdfast.ShardMap, s *shard) {
	if s.self != s.number {
		f.add("I9", "shard_wired_wrongly", holdfast.HoldID{}, "the database at place %d calls itself shard %d", s.number, s.self)
	}
	for ref := range s.byRef {
		f.posting(s, ref)
	}
	f.replay(m, s)
	f.escrow(s)
	f.cash(s)
}

// posting: the legs of each movement of a ref are two, equal and opposite, on
// the two books of that movement, of one user, currency and moment (I1).
func (f *finder) posting(s *shard, ref holdfast.HoldID) {
	var places [8][2]int // per movement: how many legs took, how many put
	legs := s.byRef[ref]
	total := new(big.Int)
	var sum int64
	simple := true
	for _, i := range legs {
		e := &s.entries[i]
		sum += e.amount
		simple = simple && e.amount < 1<<55 && e.amount > -1<<55
		total.Add(total, big.NewInt(e.amount))
		books, known := route[e.movement]
		switch {
		case known && e.book == books[0] && e.amount < 0:
			places[e.movement][0]++
		case known && e.book == books[1] && e.amount > 0:
			places[e.movement][1]++
		default:
			f.add("I1", "posting_malformed", ref, "shard %d: this leg goes no way that exists: %s", s.number, e)
			return
		}
	}
	if !simple && total.Sign() != 0 || simple && sum != 0 {
		f.add("I1", "posting_unbalanced", ref, "shard %d: the legs of %s sum to %s and not to 0", s.number, ref, total)
		return
	}
	for move, n := range places {
		if n[0] > 1 || n[1] > 1 {
			f.add("I1", "posting_doubled", ref, "shard %d: %s was posted more than once: %d legs take and %d put", s.number,
				holdfast.Movement(move), n[0], n[1])
		} else if n[0] != n[1] {
			f.add("I1", "posting_unbalanced", ref, "shard %d: %s has %d legs that take and %d that put", s.number,
				holdfast.Movement(move), n[0], n[1])
		}
	}
	first := map[holdfast.Movement]*entry{}
	for _, i := range legs {
		e := &s.entries[i]
		o := first[e.movement]
		if o == nil {
			first[e.movement] = e
		} else if o.user != e.user || o.currency != e.currency || o.postedUS != e.postedUS || o.amount != -e.amount && o.amount != e.amount {
			f.add("I1", "posting_malformed", ref, "shard %d: two legs of one movement differ: %s; %s", s.number, o, e)
			return
		}
	}
}

// replay: per account the entries are numbered without gaps, the balance after
// each is the running sum of its book, and the balance row is the last (I1, I3).
func (f *finder) replay(m *holdfast.ShardMap, s *shard) {
	of := make(map[account][]int32, len(s.accounts))
	for i := range s.entries {
		if e := &s.entries[i]; e.book <= holdfast.BookHeld {
			a := account{e.user, e.currency}
			of[a] = append(of[a], int32(i))
		}
	}
	for a, places := range of {
		b, ok := s.accounts[a]
		if !ok {
			f.add("I1", "account_missing", holdfast.HoldID{}, "shard %d: account %s %s has %d entries and no balance row", s.number, a.user, a.currency, len(places))
			continue
		}
		f.replayOne(s, a, b, places)
	}
	for a, b := range s.accounts {
		if b.available < 0 || b.held < 0 {
			f.add("I3", "balance_negative", holdfast.HoldID{}, "shard %d: account %s %s has %d available and %d held", s.number, a.user, a.currency, b.available, b.held)
		}
		if len(of[a]) == 0 && b != (balance{}) {
			f.add("I1", "balance_differs", holdfast.HoldID{}, "shard %d: account %s %s has %+v and no entries", s.number, a.user, a.currency, b)
		}
		if owner := m.OfUser(a.user); owner != s.number {
			f.add("I9", "account_misplaced", holdfast.HoldID{}, "account %s is on shard %d, the map says %d", a.user, s.number, owner)
		}
	}
}

func (f *finder) replayOne(s *shard, a account, b balance, places []int32) {
	slices.SortFunc(places, func(x, y int32) int { return int(min(1, max(-1, s.entries[x].seq-s.entries[y].seq))) })
	var sum [3]int64
	for n, i := range places {
		e := &s.entries[i]
		if e.seq != int64(n)+1 {
			f.add("I1", "sequence_broken", e.ref, "shard %d: account %s %s: entry number %d stands at place %d", s.number, a.user, a.currency, e.seq, n+1)
			return
		}
		sum[e.book] += e.amount
		if e.after != sum[e.book] {
			f.add("I1", "balance_after_wrong", e.ref, "shard %d: account %s %s: after entry %d the replay has %d %s, the entry says %d",
				s.number, a.user, a.currency, e.seq, sum[e.book], e.book, e.after)
			return
		}
		if sum[e.book] < 0 {
			f.add("I3", "balance_was_negative", e.ref, "shard %d: account %s %s had %d %s after entry %d", s.number, a.user, a.currency, sum[e.book], e.book, e.seq)
		}
	}
	if want := (balance{sum[1], sum[2], int64(len(places))}); b != want {
		f.add("I1", "balance_differs", holdfast.HoldID{}, "shard %d: account %s %s is %+v, its entries say %+v; last entry: %s", s.number, a.user, a.currency,
			b, want, s.entries[places[len(places)-1]])
	}
}

// escrow: what a user has in escrow is the sum of its holds there (I2).
func (f *finder) escrow(s *shard) {
	held := make(map[account]int64, len(s.accounts))
	for _, h := range s.holds {
		if h.inEscrow() {
			held[account{h.sender, h.currency}] += h.amount
		}
	}
	for a, sum := range held {
		if _, ok := s.accounts[a]; !ok {
			f.add("I2", "escrow_differs", holdfast.HoldID{}, "shard %d: %s has %d %s in escrow and no account", s.number, a.user, sum, a.currency)
		}
	}
	for a, b := range s.accounts {
		if b.held != held[a] {
			f.add("I2", "escrow_differs", holdfast.HoldID{}, "shard %d: account %s holds %d %s, its holds in escrow sum to %d", s.number, a.user, b.held, a.currency, held[a])
		}
	}
}

// cash: a deposit or withdrawal that was accepted has its movement, one that was
// refused has none, and no such movement is without its row.
func (f *finder) cash(s *shard) {
	known := make(map[holdfast.HoldID]bool, len(s.cash))
	for k, c := range s.cash {
		known[c.ref] = true
		legs := s.byRef[c.ref]
		switch {
		case c.refusal != "" && len(legs) > 0:
			f.add("I14", "refused_cash_moved", c.ref, "shard %d: %s %q of %s was refused (%s) and has entries", s.number, k.kind, k.key, k.user, c.refusal)
		case c.refusal == "" && len(legs) == 0:
			f.add("I1", "cash_without_entries", c.ref, "shard %d: %s %q of %s, %d %s, has no entries", s.number, k.kind, k.key, k.user, c.amount, c.currency)
		case c.refusal == "":
			if e := &s.entries[legs[0]]; e.movement != k.kind || e.user != k.user || e.currency != c.currency || max(e.amount, -e.amount) != c.amount {
				f.add("I1", "cash_differs", c.ref, "shard %d: %s %q of %s, %d %s, was posted as %s", s.number, k.kind, k.key, k.user, c.amount, c.currency, e)
			}
		}
	}
	for ref, legs := range s.byRef {
		e := &s.entries[legs[0]]
		// Bulk funding has no row: it is not asked for with a key.
		if e.movement == holdfast.MoveWithdraw && !known[ref] {
			f.add("I1", "cash_without_row", ref, "shard %d: nobody asked for this withdrawal: %s", s.number, e)
		}
	}
}
