package coordinator

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/problem"
	"github.com/holdfast-escrow/holdfast/internal/strictjson"
)

// userOf reads the user of the path and checks that the token may act for them.
func (c *Coordinator) userOf(q *call) (holdfast.UserID, error) {
	user, err := parseUser("user_id", q.id)
	if err == nil && !q.who.MaySpendFor(user) {
		err = problem.New(problem.ForbiddenAccount, "")
	}
	return user, err
}

// accountQuery reads the user of the path and the currency of the query.
func (c *Coordinator) accountQuery(q *call, known ...string) (r branch.AccountRequest, _ map[string][]string, err error) {
	if r.User, err = c.userOf(q); err != nil {
		return r, nil, err
	}
	values, err := params(q, append(known, "currency")...)
	if err != nil {
		return r, nil, err
	}
	r.Currency, err = c.currencyOf(values.Get("currency"), values.Has("currency"))
	return r, values, err
}

// writeError is the answer for a write whose transport failed.
func writeError(err error) error {
	if errors.Is(err, holdfast.ErrShardUnavailable) || errors.Is(err, holdfast.ErrOverloaded) {
		return err
	}
	return holdfast.ErrOutcomeUnknown
}

func shownAccount(a holdfast.Account) holdfast.Account {
	a.OpenedAt = a.OpenedAt.UTC()
	return a
}

// openAccount opens an account. The body is optional; it can name a currency.
func (c *Coordinator) openAccount(w http.ResponseWriter, q *call) error {
	user, err := c.userOf(q)
	if err != nil {
		return err
	}
	currency, err := c.currencyOf("", false)
	if q.ContentLength != 0 {
		err = c.withBody(w, q, c.cfg.MaxBody, func(body []byte) (err error) {
			names := []string{"currency"}
			var v [1]strictjson.Value
			if err := fieldsOf(body, names, v[:]); err != nil {
				return err
			}
			s, err := text(names, v[:], 0)
			if err == nil {
				currency, err = c.currencyOf(s, v[0].Kind != strictjson.None)
			}
			return err
		})
	}
	if err != nil {
		return err
	}
	ctx, cancel := c.committed(q.Context())
	defer cancel()
	shard := c.cfg.Map.OfUser(user)
	a, err := c.shards.Open(ctx, shard, branch.AccountRequest{User: user, Currency: currency, Actor: q.who.Subject})
	if err != nil {
		return c.logged(branch.OpOpen, shard, err)
	}
	if a.Code != branch.CodeOK {
		return c.stepProblem(branch.OpOpen, shard, a.Code)
	}
	status := http.StatusOK
	if a.Created {
		status = http.StatusCreated
		w.Header().Set("Location", "/v1/accounts/"+user.String())
	}
	problem.JSON(w, status, shownAccount(a.Account))
	return nil
}

// logged keeps the detail of a failed write, which the client is not told.
func (c *Coordinator) logged(op string, shard int, err error) error {
	c.log.Warn("write to a shard did not end", "op", op, "shard", shard, "error", err.Error())
	return writeError(err)
}

func (c *Coordinator) getAccount(w http.ResponseWriter, q *call) error {
	r, _, err := c.accountQuery(q)
	if err != nil {
		return err
	}
	ctx, cancel := c.reading(q.Context())
	defer cancel()
	shard := c.cfg.Map.OfUser(r.User)
	a, err := c.shards.Account(ctx, shard, r)
	if err != nil {
		return c.readError(branch.OpAccount, shard, err)
	}
	if a.Code != branch.CodeOK {
		return c.readProblem(branch.OpAccount, shard, a.Code)
	}
	problem.JSON(w, http.StatusOK, shownAccount(a.Account))
	return nil
}

func (c *Coordinator) patchAccount(w http.ResponseWriter, q *call) error {
	r := branch.AccountRequest{Actor: q.who.Subject}
	var err error
	if r.User, err = c.userOf(q); err != nil {
		return err
	}
	err = c.withBody(w, q, c.cfg.MaxBody, func(body []byte) (err error) {
		names := []string{"status", "currency", "reason"}
		var v [3]strictjson.Value
		var texts [3]string
		if err := fieldsOf(body, names, v[:]); err != nil {
			return err
		}
		for i := range names {
			if texts[i], err = text(names, v[:], i); err != nil {
				return err
			}
		}
		if v[0].Kind == strictjson.None {
			return missing("status")
		}
		if r.Status.UnmarshalText([]byte(texts[0])) != nil {
			return problem.New(problem.InvalidField, "status must be open, banned or closed").At("status")
		}
		if r.Currency, err = c.currencyOf(texts[1], v[1].Kind != strictjson.None); err != nil {
			return err
		}
		r.Reason = texts[2]
		return checkNote("reason", r.Reason)
	})
	if err != nil {
		return err
	}
	ctx, cancel := c.committed(q.Context())
	defer cancel()
	shard := c.cfg.Map.OfUser(r.User)
	a, err := c.shards.SetStatus(ctx, shard, r)
	if err != nil {
		return c.logged(branch.OpSetStatus, shard, err)
	}
	if a.Code != branch.CodeOK {
		return c.stepProblem(branch.OpSetStatus, shard, a.Code)
	}
	problem.JSON(w, http.StatusOK, shownAccount(a.Account))
	return nil
}

// movement is the answer to a deposit or a withdrawal. Amount is always
// positive; the kind says which way.
type movement struct {
	Ref      holdfast.HoldID   `json:"movement_id"`
	Kind     holdfast.Movement `json:"kind"`
	User     holdfast.UserID   `json:"user_id"`
	Amount   int64             `json:"amount"`
	Currency string            `json:"currency"`
	At       time.Time         `json:"created_at"`
	Account  holdfast.Account  `json:"account"`
}

func (c *Coordinator) deposit(w http.ResponseWriter, q *call) error {
	return c.cash(w, q, holdfast.MoveDeposit)
}

func (c *Coordinator) withdraw(w http.ResponseWriter, q *call) error {
	return c.cash(w, q, holdfast.MoveWithdraw)
}

func (c *Coordinator) cash(w http.ResponseWriter, q *call, kind holdfast.Movement) error {
	user, err := c.userOf(q)
	if err != nil {
		return err
	}
	item := branch.CashItem{User: user}
	if err = c.withBody(w, q, c.cfg.MaxBody, func(body []byte) error { return c.readCash(body, q.Header, &item) }); err != nil {
		return err
	}
	amount, letter := item.Amount, byte('d')
	if kind == holdfast.MoveWithdraw {
		item.Amount, letter = -amount, 'w'
	}
	item.RequestHash = hashOf(letter, user, holdfast.UserID{}, [3]int64{amount}, item.Currency)
	flight := flightKey{user, letter, item.Key}
	if !c.edge.keys.enter(q.Context(), flight) {
		return problem.New(problem.KeyInFlight, "")
	}
	defer c.edge.keys.leave(flight)
	ctx, cancel := c.committed(q.Context())
	defer cancel()
	shard := c.cfg.Map.OfUser(user)
	res := c.shards.Cash(ctx, shard, []branch.CashItem{item})[0]
	replay := res.Code == branch.CodeReplay
	if replay && res.Refusal != "" {
		p := codeProblem(res.Refusal)
		p.Replayed = true
		return p
	}
	if !replay && res.Code != branch.CodeOK {
		return c.stepProblem(branch.OpCash, shard, res.Code)
	}
	if replay {
		w.Header().Set("Idempotent-Replayed", "true")
	}
	problem.JSON(w, http.StatusCreated, movement{Ref: res.Ref, Kind: kind, User: user, Amount: amount,
		Currency: item.Currency, At: res.At.UTC(), Account: shownAccount(res.Account)})
	return nil
}

func (c *Coordinator) readCash(body []byte, h http.Header, item *branch.CashItem) error {
	names := []string{"amount", "currency", "idempotency_key"}
	var v [3]strictjson.Value
	if err := fieldsOf(body, names, v[:]); err != nil {
		return err
	}
	currency, err := text(names, v[:], 1)
	if err != nil {
		return err
	}
	key, err := text(names, v[:], 2)
	if err != nil {
		return err
	}
	amount, amountErr := amountOf(names, v[:], 0)
	if is(amountErr, problem.InvalidJSON) || is(amountErr, strictjson.DuplicateField) {
		return amountErr
	}
	if item.Key, err = keyOf(h, key, v[2].Kind != strictjson.None); err != nil {
		return err
	}
	if amountErr != nil {
		return amountErr
	}
	item.Amount = amount
	item.Currency, err = c.currencyOf(currency, v[1].Kind != strictjson.None)
	return err
}

func (c *Coordinator) listEntries(w http.ResponseWriter, q *call) error {
	r, values, err := c.accountQuery(q, "page_size", "page_token")
	if err != nil {
		return err
	}
	p, err := pageOf(values, "entries "+r.User.String()+" "+r.Currency)
	if err != nil {
		return err
	}
	if p.before != "" {
		if r.Before, err = strconv.ParseInt(p.before, 10, 64); err != nil || r.Before < 1 {
			return problem.New(problem.InvalidPageToken, "").At("page_token")
		}
	}
	r.Limit = p.size
	ctx, cancel := c.reading(q.Context())
	defer cancel()
	shard := c.cfg.Map.OfUser(r.User)
	a, err := c.shards.Statement(ctx, shard, r)
	if err != nil {
		return c.readError(branch.OpStatement, shard, err)
	}
	if a.Code != branch.CodeOK {
		return c.readProblem(branch.OpStatement, shard, a.Code)
	}
	next := ""
	if a.Next > 0 {
		next = p.token(strconv.FormatInt(a.Next, 10))
	}
	problem.JSON(w, http.StatusOK, struct {
		Entries []holdfast.Entry `json:"entries"`
		Next    string           `json:"next_page_token,omitempty"`
	}{shownEntries(a.Entries), next})
	return nil
}

func shownEntries(entries []holdfast.Entry) []holdfast.Entry {
	out := make([]holdfast.Entry, len(entries)) // never null in the document
	for i, e := range entries {
		e.PostedAt = e.PostedAt.UTC()
		out[i] = e
	}
	return out
}
