package coordinator

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/problem"
	"github.com/holdfast-escrow/holdfast/internal/strictjson"
)

const (
	maxNote        = 500 // characters of a reason or of evidence
	maxRelease     = 1000
	maxReleaseBody = 128 << 10
	// notPaid is the reason of a FAILED hold that a person decided about.
	notPaid = "not_paid"
)

// act is what an operator sends with a write: why, and for a resolution what is
// true and how they know.
type act struct {
	branch.OperatorRequest
	evidence string
}

// checkNote bounds a free text of an operator.
func checkNote(name, s string) error {
	if utf8.RuneCountInString(s) > maxNote {
		return problem.New(problem.InvalidField, fmt.Sprintf("%s has more than %d characters", name, maxNote)).At(name)
	}
	if strings.ContainsRune(s, 0) {
		return problem.New(problem.InvalidField, name+" holds the character U+0000").At(name)
	}
	return nil
}

// readAct reads the body of an operator's write. For a resolution the evidence
// can stand for the reason.
func (c *Coordinator) readAct(w http.ResponseWriter, q *call, resolution bool) (a act, err error) {
	if a.ID, err = parseHold(q.id); err != nil {
		return a, err
	}
	a.Actor = q.who.Subject
	names := []string{"reason", "outcome", "evidence"}
	if !resolution {
		names = names[:1]
	}
	err = c.withBody(w, q, c.cfg.MaxBody, func(body []byte) (err error) {
		var v [3]strictjson.Value
		var texts [3]string
		if err := fieldsOf(body, names, v[:len(names)]); err != nil {
			return err
		}
		for i, name := range names {
			if texts[i], err = text(names, v[:], i); err != nil {
				return err
			}
			if err := checkNote(name, texts[i]); err != nil {
				return err
			}
		}
		a.Reason, a.Outcome, a.evidence = texts[0], texts[1], texts[2]
		return nil
	})
	if err != nil {
		return a, err
	}
	if resolution {
		if a.Outcome != holdfast.Paid.String() && a.Outcome != notPaid {
			return a, problem.New(problem.InvalidField, "outcome must be paid or not_paid").At("outcome")
		}
		if strings.TrimSpace(a.evidence) == "" {
			return a, problem.New(problem.EvidenceMissing, "say how it is known what became of the payment").At("evidence")
		}
		if a.Reason == "" {
			a.Reason = a.evidence
		}
	}
	return a, checkReason(a.Reason)
}

func checkReason(reason string) error {
	if strings.TrimSpace(reason) == "" {
		return problem.New(problem.ReasonMissing, "send the field reason; it is kept in the audit").At("reason")
	}
	return checkNote("reason", reason)
}

// answerHold shows the hold as it is after an act.
func (c *Coordinator) answerHold(ctx context.Context, w http.ResponseWriter, id holdfast.HoldID) error {
	h, err := c.holdNow(ctx, id)
	if err != nil {
		return err
	}
	problem.JSON(w, http.StatusOK, shown(h))
	return nil
}

func (c *Coordinator) holdNow(ctx context.Context, id holdfast.HoldID) (holdfast.Hold, error) {
	shard := c.cfg.Map.OfHold(id)
	res := c.shards.Get(ctx, shard, []branch.IDItem{{ID: id}})[0]
	if res.Code != branch.CodeOK {
		return res.Hold, c.readProblem(branch.OpGet, shard, res.Code)
	}
	return res.Hold, nil
}

// operated is the answer to one step of an act: nil when it was done.
func (c *Coordinator) operated(op string, shard int, res branch.CodeResult, err error) error {
	if err != nil {
		return c.logged(op, shard, err)
	}
	if res.Code != branch.CodeOK && res.Code != branch.CodeAlready {
		return c.stepProblem(op, shard, res.Code)
	}
	return nil
}

func (c *Coordinator) retryHold(w http.ResponseWriter, q *call) error {
	a, err := c.readAct(w, q, false)
	if err != nil {
		return err
	}
	ctx, cancel := c.committed(q.Context())
	defer cancel()
	shard := c.cfg.Map.OfHold(a.ID)
	res, err := c.shards.Retry(ctx, shard, a.OperatorRequest)
	if err := c.operated(branch.OpRetry, shard, res, err); err != nil {
		return err
	}
	c.nudge(a.ID)
	return c.answerHold(ctx, w, a.ID)
}

func (c *Coordinator) closeHold(w http.ResponseWriter, q *call) error {
	a, err := c.readAct(w, q, false)
	if err != nil {
		return err
	}
	ctx, cancel := c.committed(q.Context())
	defer cancel()
	shard := c.cfg.Map.OfHold(a.ID)
	res, err := c.shards.Close(ctx, shard, a.OperatorRequest)
	if err := c.operated(branch.OpClose, shard, res, err); err != nil {
		return err
	}
	return c.answerHold(ctx, w, a.ID)
}

// refundHold does at once what the refund worker would do, then closes the dead
// letter with the operator's reason, which also puts it into the audit.
func (c *Coordinator) refundHold(w http.ResponseWriter, q *call) error {
	a, err := c.readAct(w, q, false)
	if err != nil {
		return err
	}
	ctx, cancel := c.committed(q.Context())
	defer cancel()
	shard := c.cfg.Map.OfHold(a.ID)
	res := c.shards.Refund(ctx, shard, []branch.IDItem{{ID: a.ID}})[0]
	if res.Code != branch.CodeOK && res.Code != branch.CodeAlready {
		return c.stepProblem(branch.OpRefund, shard, res.Code)
	}
	c.log.Info("refund asked for by an operator", "hold_id", a.ID, "actor", a.Actor, "reason", a.Reason, "code", res.Code)
	a.Outcome = branch.ByRefund
	closed, err := c.shards.Close(ctx, shard, a.OperatorRequest)
	if err := c.operated(branch.OpClose, shard, closed, err); err != nil && !is(err, string(branch.CodeNoDeadLetter)) {
		return err
	}
	return c.answerHold(ctx, w, a.ID)
}

// resolveHold gives the verdict that nobody could get from the payment API. The
// person's word is durable before the verdict, the verdict before any money. The
// shard takes the same word twice, so that a request whose verdict was lost on
// the way is completed by repeating it.
func (c *Coordinator) resolveHold(w http.ResponseWriter, q *call) error {
	a, err := c.readAct(w, q, true)
	if err != nil {
		return err
	}
	ctx, cancel := c.committed(q.Context())
	defer cancel()
	h, err := c.holdNow(ctx, a.ID)
	if err != nil {
		return err
	}
	shard := c.cfg.Map.OfHold(a.ID)
	res, err := c.shards.Resolve(ctx, shard, a.OperatorRequest)
	if err := c.operated(branch.OpResolve, shard, res, err); err != nil {
		return err
	}
	if err := c.giveVerdict(ctx, shard, h, &a, res.Lease); err != nil {
		return err
	}
	c.nudge(a.ID)
	return c.answerHold(ctx, w, a.ID)
}

func (c *Coordinator) giveVerdict(ctx context.Context, shard int, h holdfast.Hold, a *act, lease int64) error {
	if a.Outcome == notPaid {
		res := c.shards.Refuse(ctx, shard, []branch.RefuseItem{{ID: a.ID, Reason: notPaid, Detail: a.evidence, Watch: true, Lease: lease}})[0]
		if res.Code == branch.CodeOK {
			c.count(holdfast.Failed)
			c.wantRefund(a.ID)
		}
		return c.operated(branch.OpRefuse, shard, branch.CodeResult{Code: res.Code}, nil)
	}
	res := c.shards.Settle(ctx, shard, []branch.SettleItem{{ID: a.ID, PaymentID: a.evidence, Recipient: h.Recipient}})[0]
	if res.Code == branch.CodeOK && res.Hold.Status == holdfast.Executed {
		c.count(holdfast.Executed)
	}
	return c.operated(branch.OpSettle, shard, branch.CodeResult{Code: res.Code}, nil)
}

func (c *Coordinator) releaseHold(w http.ResponseWriter, q *call) error {
	a, err := c.readAct(w, q, false)
	if err != nil {
		return err
	}
	ctx, cancel := c.committed(q.Context())
	defer cancel()
	item := c.releaseAll(ctx, w, []holdfast.HoldID{a.ID}, a.Actor, a.Reason)[0]
	if item.Problem != nil {
		return item.Problem
	}
	problem.JSON(w, http.StatusOK, item.Hold)
	return nil
}

type releasedItem struct {
	ID holdfast.HoldID `json:"hold_id"`
	batchItem
}

// releaseMany releases up to maxRelease holds; each is released or not on its
// own.
func (c *Coordinator) releaseMany(w http.ResponseWriter, q *call) error {
	var ids []holdfast.HoldID
	var reason string
	err := c.withBody(w, q, maxReleaseBody, func(body []byte) (err error) {
		names := []string{"hold_ids", "reason"}
		var v [2]strictjson.Value
		if err := fieldsOf(body, names, v[:]); err != nil {
			return err
		}
		if v[0].Kind == strictjson.None {
			return missing("hold_ids")
		}
		if v[0].Kind != strictjson.Array {
			return wrongKind("hold_ids", v[0], "an array")
		}
		if reason, err = text(names, v[:], 1); err != nil {
			return err
		}
		return v[0].Elements(func(e strictjson.Value) error {
			if len(ids) == maxRelease {
				return problem.New(problem.BatchTooLarge, fmt.Sprintf("at most %d holds", maxRelease)).At("hold_ids")
			}
			id, err := holdfast.ParseHoldID(e.Text())
			if err != nil {
				return problem.New(problem.InvalidID, "hold_ids holds something that is not a UUID").At("hold_ids")
			}
			ids = append(ids, id)
			return nil
		})
	})
	if err != nil {
		return err
	}
	if err := checkReason(reason); err != nil {
		return err
	}
	if len(ids) == 0 {
		return problem.New(problem.InvalidField, "hold_ids is empty").At("hold_ids")
	}
	ctx, cancel := c.committed(q.Context())
	defer cancel()
	problem.JSON(w, http.StatusOK, map[string]any{"results": c.releaseAll(ctx, w, ids, q.who.Subject, reason)})
	return nil
}

func (c *Coordinator) releaseAll(ctx context.Context, w http.ResponseWriter, ids []holdfast.HoldID, actor, reason string) []releasedItem {
	results := make([]releasedItem, len(ids))
	for i, id := range ids {
		results[i].ID = id
		if !id.Valid() {
			results[i].batchItem = c.released(w, 0, branch.HoldResult{Code: branch.CodeNotFound})
		}
	}
	byShard(len(ids),
		func(i int) (int, bool) { return c.cfg.Map.OfHold(ids[i]), ids[i].Valid() },
		func(shard int, indexes []int) {
			items := make([]branch.CancelItem, len(indexes))
			for n, i := range indexes {
				items[n] = branch.CancelItem{ID: ids[i], Operator: actor, Reason: reason}
			}
			for n, res := range c.shards.Cancel(ctx, shard, items) {
				results[indexes[n]].batchItem = c.released(w, shard, res)
			}
		})
	return results
}

func (c *Coordinator) released(w http.ResponseWriter, shard int, res branch.HoldResult) batchItem {
	c.countCancel(res.Code)
	h := shown(res.Hold)
	if res.Code == branch.CodeOK || res.Code == branch.CodeAlready {
		return batchItem{Status: http.StatusOK, Hold: &h}
	}
	p := c.explain(&route{method: http.MethodPost, path: "/admin/v1/holds:release"}, w, c.stepProblem(branch.OpCancel, shard, res.Code))
	p.RequestID = w.Header().Get(problem.RequestID)
	if !res.Hold.ID.IsZero() {
		p.Hold = &h
	}
	return batchItem{Status: p.Status, Problem: p}
}

// is reports whether an error is the problem with that code.
func is(err error, code string) bool {
	var p *problem.Problem
	return errors.As(err, &p) && p.Code == code
}
