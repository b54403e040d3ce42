package participants

import (
	"slices"

	"pgregory.net/rapid"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

func (m *model) cancel(rt *rapid.T) {
	shard, holds := m.some(rt, func(h *modelHold) bool { return h.Status == holdfast.Pending && !h.short })
	var items []branch.CancelItem
	for _, h := range holds {
		item := branch.CancelItem{ID: h.ID}
		switch rapid.IntRange(0, 4).Draw(rt, "by") {
		case 0:
			item.Actor = h.Recipient
		case 1:
			item.Actor = m.users[len(m.users)-1]
		case 2:
			item.Operator, item.Reason = "op", "asked"
		default:
			item.Actor = h.Sender
		}
		items = append(items, item)
	}
	for i, got := range m.b.Cancel(m.b.ctx, shard, items) {
		h, item, want := holds[i], items[i], branch.CodeOK
		switch {
		case item.Actor == h.Recipient:
			want = branch.CodeForbidden
		case !item.Actor.IsZero() && item.Actor != h.Sender:
			want = branch.CodeNotFound
		case h.Status == holdfast.Cancelled:
			want = branch.CodeAlready
		case h.Status == holdfast.Executed:
			want = branch.CodeExecuted
		case h.Status == holdfast.Failed:
			want = branch.CodeFailed
		case h.Status == holdfast.Executing, item.Operator == "" && h.short:
			want = branch.CodeMatured
		case item.Operator != "" && !h.short:
			want = branch.CodeNotMatured
		default:
			h.Status = holdfast.Cancelled
			m.back(h)
		}
		m.agree(rt, "cancel", h, got.Code, want)
	}
}

func (m *model) agree(rt *rapid.T, step string, h *modelHold, got, want branch.Code) {
	m.reached[step+" "+string(want)]++
	if got != want {
		rt.Fatalf("%s of %s (%s %q, busy %t) answers %s, the model says %s", step, h.ID, h.Status, h.Verdict, h.busy, got, want)
	}
}

func (m *model) claim(rt *rapid.T) {
	shard, holds := m.some(rt, func(h *modelHold) bool { return h.Status == holdfast.Pending && h.short })
	var items []branch.ClaimItem
	for _, h := range holds {
		item := branch.ClaimItem{ID: h.ID, LeaseMS: 600_000}
		if rapid.IntRange(0, 5).Draw(rt, "refusal") == 0 {
			item.Refusal = "recipient_not_payable"
		}
		items = append(items, item)
	}
	for i, got := range m.b.Claim(m.b.ctx, shard, items) {
		h, want := holds[i], branch.CodeEnded
		switch {
		case h.Status == holdfast.Pending && !h.short:
			want = branch.CodeNotDue
		case h.Status == holdfast.Pending && items[i].Refusal != "":
			want = branch.CodeRefused
			h.Status, h.Verdict = holdfast.Failed, holdfast.Refused
		case h.Status == holdfast.Pending:
			want = branch.CodeClaimed
			h.Status, h.busy = holdfast.Executing, true
		case h.Status == holdfast.Executing && h.busy:
			want = branch.CodeBusy
		case h.Status == holdfast.Executing && h.Verdict == holdfast.Paid:
			want, h.busy = branch.CodeToCredit, true
		case h.Status == holdfast.Executing:
			want, h.busy = branch.CodeRedrive, true
		case h.Status == holdfast.Failed && h.RefundedAt.IsZero():
			want = branch.CodeToRefund
		}
		m.agree(rt, "claim", h, got.Code, want)
	}
}

func (m *model) settle(rt *rapid.T) {
	shard, holds := m.some(rt, func(h *modelHold) bool { return h.Status == holdfast.Executing })
	var items []branch.SettleItem
	for _, h := range holds {
		// The coordinator always names the recipient; the shard decides what is local.
		items = append(items, branch.SettleItem{ID: h.ID, PaymentID: "p", Recipient: h.Recipient})
	}
	for i, got := range m.b.Settle(m.b.ctx, shard, items) {
		h, want := holds[i], branch.CodeImpossible
		switch {
		case h.Verdict == holdfast.Paid:
			want = branch.CodeAlready
		case h.Status == holdfast.Failed:
			want = branch.CodeVerdictIsOther
		case h.Status == holdfast.Executing:
			want, h.Verdict = branch.CodeOK, holdfast.Paid
			m.accounts[h.Sender].held -= h.Amount
			if m.shard(h.Recipient) == shard {
				h.Status, h.credited = holdfast.Executed, true
				m.accounts[h.Recipient].available += h.Amount
			}
		}
		m.agree(rt, "settle", h, got.Code, want)
	}
}

func (m *model) refuse(rt *rapid.T) {
	shard, holds := m.some(rt, func(h *modelHold) bool { return h.Status == holdfast.Executing })
	var items []branch.RefuseItem
	for _, h := range holds {
		items = append(items, branch.RefuseItem{ID: h.ID, Reason: "recipient_banned"})
	}
	for i, got := range m.b.Refuse(m.b.ctx, shard, items) {
		h, want := holds[i], branch.CodeImpossible
		switch {
		case h.Status == holdfast.Failed:
			want = branch.CodeAlready
		case h.Verdict == holdfast.Paid:
			want = branch.CodeVerdictIsOther
		case h.Status == holdfast.Executing:
			want, h.Status, h.Verdict = branch.CodeOK, holdfast.Failed, holdfast.Refused
		}
		m.agree(rt, "refuse", h, got.Code, want)
	}
}

// credit pays the recipients on the other shard of holds whose verdict is paid:
// nobody asks for it before that.
func (m *model) credit(rt *rapid.T) {
	_, holds := m.some(rt, func(h *modelHold) bool { return h.Verdict == holdfast.Paid })
	for _, h := range holds {
		if h.Verdict != holdfast.Paid {
			continue
		}
		got := m.b.Credit(m.b.ctx, m.shard(h.Recipient), []branch.CreditItem{{ID: h.ID, Recipient: h.Recipient, Currency: "RBX", Amount: h.Amount}})[0]
		want := branch.CodeAlready
		if !h.credited {
			want, h.credited = branch.CodeOK, true
			m.accounts[h.Recipient].available += h.Amount
		}
		m.agree(rt, "credit", h, got.Code, want)
	}
}

// executed leaves out paid holds whose credit is still to do: EXECUTED comes after it.
func (m *model) executed(rt *rapid.T) {
	shard, holds := m.some(rt, func(h *modelHold) bool { return h.Verdict == holdfast.Paid && h.credited })
	holds = slices.DeleteFunc(holds, func(h *modelHold) bool { return h.Verdict == holdfast.Paid && !h.credited })
	for i, got := range m.b.Executed(m.b.ctx, shard, idsOf(holds)) {
		h, want := holds[i], branch.CodeImpossible
		switch {
		case h.Status == holdfast.Executed:
			want = branch.CodeAlready
		case h.Verdict == holdfast.Paid:
			want, h.Status = branch.CodeOK, holdfast.Executed
		}
		m.agree(rt, "executed", h, got.Code, want)
	}
}

func idsOf(holds []*modelHold) (items []branch.IDItem) {
	for _, h := range holds {
		items = append(items, branch.IDItem{ID: h.ID})
	}
	return items
}

func (m *model) deferral(rt *rapid.T) {
	shard, holds := m.some(rt, func(h *modelHold) bool { return h.Status == holdfast.Executing })
	var items []branch.DeferItem
	for _, h := range holds {
		items = append(items, branch.DeferItem{ID: h.ID, ActiveMS: 1, Error: "timeout", Unsure: true})
	}
	for i, got := range m.b.Defer(m.b.ctx, shard, items) {
		h, want := holds[i], branch.CodeAlready
		if h.Status == holdfast.Executing {
			want, h.busy = branch.CodeOK, false
		}
		m.agree(rt, "defer", h, got.Code, want)
	}
}

func (m *model) refund(rt *rapid.T) {
	shard, holds := m.some(rt, func(h *modelHold) bool { return h.Status == holdfast.Failed })
	for i, got := range m.b.Refund(m.b.ctx, shard, idsOf(holds)) {
		h, want := holds[i], branch.CodeNotRefundable
		switch {
		case h.Status == holdfast.Failed && !h.RefundedAt.IsZero():
			want = branch.CodeAlready
		case h.Status == holdfast.Failed:
			want, h.RefundedAt = branch.CodeOK, got.Hold.RefundedAt
			m.back(h)
		}
		m.agree(rt, "refund", h, got.Code, want)
	}
}

// setStatus bans and opens accounts.
func (m *model) setStatus(rt *rapid.T) {
	u := m.user(rt, "user")
	to := rapid.SampledFrom([]holdfast.AccountStatus{holdfast.AccountOpen, holdfast.AccountOpen, holdfast.AccountBanned}).Draw(rt, "to")
	got, err := m.b.SetStatus(m.b.ctx, m.shard(u), branch.AccountRequest{User: u, Currency: "RBX", Status: to, Actor: "op", Reason: "asked"})
	want, a := branch.CodeUnknownAccount, m.accounts[u]
	if a != nil {
		want, a.status = branch.CodeOK, to
	}
	if err != nil || got.Code != want {
		rt.Fatalf("set status of %s: %+v, %v, the model says %s", u, got, err, want)
	}
}
