package coordinator

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"unicode/utf8"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/auth"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/problem"
	"github.com/holdfast-escrow/holdfast/internal/strictjson"
)

// Fields of a create, in the order of the indexes below.
var holdFields = []string{"sender_id", "recipient_id", "amount", "unlock_at", "unlock_in_seconds",
	"idempotency_key", "currency", "reference"}

const (
	fSender = iota
	fRecipient
	fAmount
	fUnlockAt
	fUnlockIn
	fKey
	fCurrency
	fReference
	numHoldFields
)

type holdValues [numHoldFields]strictjson.Value

// readHold checks everything about a create that needs no shard. The order is
// part of the contract: first the shape of the document (400), then who may ask
// (403), then the values (422).
func (c *Coordinator) readHold(v *holdValues, h http.Header, who *auth.Principal) (t branch.TryItem, err error) {
	var texts [numHoldFields]string
	for _, i := range [...]int{fSender, fRecipient, fUnlockAt, fKey, fCurrency, fReference} {
		if texts[i], err = text(holdFields, v[:], i); err != nil {
			return t, err
		}
	}
	amount, amountErr := amountOf(holdFields, v[:], fAmount)
	atMS, delayMS, unlockErr := unlockOf(holdFields, v[:], fUnlockAt, fUnlockIn)
	for _, e := range [...]error{amountErr, unlockErr} {
		if is(e, problem.InvalidJSON) || is(e, strictjson.DuplicateField) {
			return t, e
		}
	}
	if t.Key, err = keyOf(h, texts[fKey], v[fKey].Kind != strictjson.None); err != nil {
		return t, err
	}
	if t.Sender, err = userField(v, texts, fSender); err != nil {
		return t, err
	}
	if !who.MaySpendFor(t.Sender) {
		return t, problem.New(problem.ForbiddenSender, "").At(holdFields[fSender])
	}
	if t.Recipient, err = userField(v, texts, fRecipient); err != nil {
		return t, err
	}
	if amountErr != nil {
		return t, amountErr
	}
	if unlockErr != nil {
		return t, unlockErr
	}
	if t.Currency, err = c.currencyOf(texts[fCurrency], v[fCurrency].Kind != strictjson.None); err != nil {
		return t, err
	}
	if err = checkReference(texts[fReference]); err != nil {
		return t, err
	}
	if t.Sender == t.Recipient {
		return t, problem.New(problem.SelfPayment, "").At(holdFields[fRecipient])
	}
	t.Amount, t.Reference, t.UnlockAtMS, t.DelayMS = amount, texts[fReference], atMS, delayMS
	t.RequestHash = hashOf('h', t.Sender, t.Recipient, [3]int64{amount, atMS, delayMS}, t.Currency, t.Reference)
	return t, nil
}

func userField(v *holdValues, texts [numHoldFields]string, i int) (holdfast.UserID, error) {
	if v[i].Kind == strictjson.None {
		return holdfast.UserID{}, missing(holdFields[i])
	}
	return parseUser(holdFields[i], texts[i])
}

func checkReference(s string) error {
	if utf8.RuneCountInString(s) > holdfast.MaxReference {
		return problem.New(problem.ReferenceTooLong, fmt.Sprintf("at most %d characters", holdfast.MaxReference)).At("reference")
	}
	for i := range len(s) {
		if s[i] == 0 {
			return problem.New(problem.InvalidField, "reference holds the character U+0000").At("reference")
		}
	}
	return nil
}

func (c *Coordinator) createHold(w http.ResponseWriter, q *call) error {
	var item branch.TryItem
	err := c.withBody(w, q, c.cfg.MaxBody, func(body []byte) (err error) {
		var v holdValues
		if err = fieldsOf(body, holdFields, v[:]); err == nil {
			item, err = c.readHold(&v, q.Header, q.who)
		}
		return err
	})
	if err != nil {
		return err
	}
	flight := flightKey{item.Sender, 'h', item.Key}
	if !c.edge.keys.enter(q.Context(), flight) {
		return problem.New(problem.KeyInFlight, "")
	}
	defer c.edge.keys.leave(flight)
	ctx, cancel := c.committed(q.Context())
	defer cancel()
	if item.Refusal, err = c.payable(ctx, item.Recipient, item.Currency); err != nil {
		return err
	}
	shard := c.cfg.Map.OfUser(item.Sender)
	res := c.shards.Try(ctx, shard, []branch.TryItem{item})[0]
	if err := c.tried(shard, item, &res); err != nil {
		return err
	}
	w.Header().Set("Location", "/v1/holds/"+res.Hold.ID.String())
	if res.Code == branch.CodeReplay {
		w.Header().Set("Idempotent-Replayed", "true")
	} else {
		c.announce(shard, []holdfast.HoldID{res.Hold.ID})
	}
	problem.JSON(w, http.StatusCreated, shown(res.Hold))
	return nil
}

// committed is the context of a call that may change something: a client that
// hangs up must not undo it half way, and it must not hang for ever either.
func (c *Coordinator) committed(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), c.cfg.RequestTimeout)
}

// reading is the context of a call that changes nothing: it ends when the
// client goes.
func (c *Coordinator) reading(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.cfg.RequestTimeout)
}

// payable asks the recipient's shard whether a new hold may name them. A
// refusal does not end the request: the key may be known, and a replay comes
// before everything else. That includes a shard that is away.
func (c *Coordinator) payable(ctx context.Context, user holdfast.UserID, currency string) (branch.Code, error) {
	res := c.shards.Check(ctx, c.cfg.Map.OfUser(user), []branch.CheckItem{{User: user, Currency: currency}})[0]
	return refusalOf(res.Code)
}

func refusalOf(check branch.Code) (branch.Code, error) {
	switch check {
	case branch.CodeOK:
		return "", nil
	case branch.CodeUnknownRecipient, branch.CodeRecipientNotPayable, branch.CodeOverloaded:
		return check, nil
	case branch.CodeShardUnavailable, branch.CodeOutcomeUnknown:
		return branch.CodeShardUnavailable, nil // a read that did not end has done nothing
	}
	return "", fmt.Errorf("check of a recipient answered %q", check)
}

// tried judges what became of a Try, counts it, and says what the client is
// told when there is no hold to show.
func (c *Coordinator) tried(shard int, item branch.TryItem, res *branch.TryResult) error {
	switch {
	case res.Code == branch.CodeOK:
		c.count(holdfast.Pending)
		return nil
	case res.Code == branch.CodeReplay && res.Refusal == "":
		return nil
	case res.Code == branch.CodeReplay:
		p := codeProblem(res.Refusal)
		p.Replayed = true
		return p
	case res.Code == branch.CodeInsufficientFunds:
		return problem.New(string(res.Code), fmt.Sprintf("%d is asked for, %d is available", item.Amount, res.Available))
	case res.Code == branch.CodeOutcomeUnknown && item.Refusal != "":
		// A refused Try only looks for its key, so nothing can have been done.
		return problem.New(problem.ShardUnavailable, "")
	}
	return c.stepProblem(branch.OpTry, shard, res.Code)
}

// codeProblem is the problem of a code that a shard decided on.
func codeProblem(code branch.Code) *problem.Problem { return problem.New(string(code), "") }

// stepProblem is codeProblem with the codes that no client caused: they are for
// the log and a bare 500 for the client.
func (c *Coordinator) stepProblem(op string, shard int, code branch.Code) error {
	if problem.Known(string(code)) {
		return codeProblem(code)
	}
	return fmt.Errorf("step %s on shard %d answered %q", op, shard, code)
}

// announce tells whoever schedules triggers which holds were just committed.
func (c *Coordinator) announce(shard int, ids []holdfast.HoldID) {
	if c.cfg.Created != nil && len(ids) > 0 {
		c.cfg.Created(shard, ids)
	}
}

// shown is a hold as the API writes it: all times in UTC.
func shown(h holdfast.Hold) holdfast.Hold {
	h.UnlockAt, h.CreatedAt = h.UnlockAt.UTC(), h.CreatedAt.UTC()
	h.ClaimedAt, h.DecidedAt, h.ExecutedAt = h.ClaimedAt.UTC(), h.DecidedAt.UTC(), h.ExecutedAt.UTC()
	h.CancelledAt, h.RefundedAt = h.CancelledAt.UTC(), h.RefundedAt.UTC()
	return h
}

func shownAll(holds []holdfast.Hold) []holdfast.Hold {
	out := make([]holdfast.Hold, len(holds)) // never null in the document
	for i, h := range holds {
		out[i] = shown(h)
	}
	return out
}

// party reports whether a token may see a hold.
func party(who *auth.Principal, h *holdfast.Hold) bool {
	return who.Service || !who.User.IsZero() && (who.User == h.Sender || who.User == h.Recipient)
}

func (c *Coordinator) getHold(w http.ResponseWriter, q *call) error {
	id, err := parseHold(q.id)
	if err != nil {
		return err
	}
	ctx, cancel := c.reading(q.Context())
	defer cancel()
	shard := c.cfg.Map.OfHold(id)
	res := c.shards.Get(ctx, shard, []branch.IDItem{{ID: id}})[0]
	if res.Code != branch.CodeOK {
		return c.readProblem(branch.OpGet, shard, res.Code)
	}
	if !party(q.who, &res.Hold) {
		return problem.New(problem.HoldNotFound, "")
	}
	problem.JSON(w, http.StatusOK, shown(res.Hold))
	return nil
}

// readProblem is stepProblem for steps that change nothing: when such a step
// did not end, the shard is as good as away.
func (c *Coordinator) readProblem(op string, shard int, code branch.Code) error {
	if code == branch.CodeOutcomeUnknown {
		code = branch.CodeShardUnavailable
	}
	return c.stepProblem(op, shard, code)
}

func (c *Coordinator) cancelHold(w http.ResponseWriter, q *call) error {
	id, err := parseHold(q.id)
	if err != nil {
		return err
	}
	item := branch.CancelItem{ID: id}
	if !q.who.Service {
		if q.who.User.IsZero() {
			return problem.New(problem.HoldNotFound, "") // a zero actor would be everybody
		}
		item.Actor = q.who.User
	}
	ctx, cancel := c.committed(q.Context())
	defer cancel()
	shard := c.cfg.Map.OfHold(id)
	res := c.shards.Cancel(ctx, shard, []branch.CancelItem{item})[0]
	c.countCancel(res.Code)
	known := !res.Hold.ID.IsZero()
	if known && !party(q.who, &res.Hold) {
		return problem.New(problem.HoldNotFound, "")
	}
	if res.Code == branch.CodeOK || res.Code == branch.CodeAlready {
		problem.JSON(w, http.StatusOK, shown(res.Hold))
		return nil
	}
	err = c.stepProblem(branch.OpCancel, shard, res.Code)
	var p *problem.Problem
	if known && errors.As(err, &p) && p.Status == http.StatusConflict {
		return p.With(shown(res.Hold))
	}
	return err
}

func (c *Coordinator) countCancel(code branch.Code) {
	if code == branch.CodeOK {
		c.count(holdfast.Cancelled)
	}
}
