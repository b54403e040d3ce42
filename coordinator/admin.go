package coordinator

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/coordinator/payment"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/problem"
)

// fanTimeout bounds a question to all shards: a dead one is reported, it does
// not hold up the answer of the others.
const fanTimeout = 5 * time.Second

func (c *Coordinator) allShards() []int {
	all := make([]int, c.cfg.Map.Shards)
	for i := range all {
		all[i] = i
	}
	return all
}

// askShards asks shards at the same time and returns the answers by shard and
// the shards that gave none.
func askShards[T any](ctx context.Context, shards []int, f func(ctx context.Context, shard int) (T, error)) (answers map[int]T, away []int) {
	ctx, cancel := context.WithTimeout(ctx, fanTimeout)
	defer cancel()
	answers = map[int]T{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, shard := range shards {
		wg.Go(func() {
			a, err := f(ctx, shard)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				away = append(away, shard)
				return
			}
			answers[shard] = a
		})
	}
	wg.Wait()
	slices.Sort(away)
	return answers, away
}

// fanPage is a list over several shards: every shard gives its part of the page
// and the token remembers each one's position.
type fanPage struct {
	page
	shards []int          // that have more to give
	before map[int]string // positions
	each   int            // how many of each shard
}

func (c *Coordinator) fanPageOf(values url.Values, query string) (f fanPage, err error) {
	if f.page, err = pageOf(values, "admin "+query+" "+values.Get("shard")); err != nil {
		return f, err
	}
	f.shards = c.allShards()
	if values.Has("shard") {
		n, err := strconv.Atoi(values.Get("shard"))
		if err != nil || n < 0 || n >= c.cfg.Map.Shards {
			return f, problem.New(problem.InvalidField, "there is no such shard").At("shard")
		}
		f.shards = []int{n}
	}
	if f.page.before != "" {
		if json.Unmarshal([]byte(f.page.before), &f.before) != nil {
			return f, problem.New(problem.InvalidPageToken, "").At("page_token")
		}
		f.shards = slices.DeleteFunc(f.shards, func(s int) bool { _, more := f.before[s]; return !more })
	}
	f.each = (f.size + len(f.shards) - 1) / max(1, len(f.shards))
	return f, nil
}

// next is the token for the shards that have more; a shard that is away is left
// out of it and reported instead, or a reader would turn pages for ever.
func (f fanPage) next(positions map[int]string) string {
	for s, p := range positions {
		if p == "" {
			delete(positions, s)
		}
	}
	if len(positions) == 0 {
		return ""
	}
	b, _ := json.Marshal(positions) // ints to strings always marshal
	return f.token(string(b))
}

func boolOf(values url.Values, name string, unset bool) (bool, error) {
	switch {
	case !values.Has(name):
		return unset, nil
	case values.Get(name) == "true":
		return true, nil
	case values.Get(name) == "false":
		return false, nil
	}
	return false, problem.New(problem.InvalidField, name+" must be true or false").At(name)
}

func (c *Coordinator) adminHolds(w http.ResponseWriter, q *call) error {
	values, err := params(q, "status", "overdue", "shard", "page_size", "page_token")
	if err != nil {
		return err
	}
	var r branch.AdminListRequest
	if r.Status, err = statusOf(values); err != nil {
		return err
	}
	if r.Overdue, err = boolOf(values, "overdue", false); err != nil {
		return err
	}
	f, err := c.fanPageOf(values, "holds "+r.Status.String()+strconv.FormatBool(r.Overdue))
	if err != nil {
		return err
	}
	answers, away := askShards(q.Context(), f.shards, func(ctx context.Context, shard int) (branch.ListAnswer, error) {
		r := r
		r.Before, r.Limit = f.before[shard], f.each
		return c.shards.AdminHolds(ctx, shard, r)
	})
	doc := holdPage{Holds: []holdfast.Hold{}, Unavailable: away}
	positions := map[int]string{}
	for shard, a := range answers {
		doc.Holds = append(doc.Holds, shownAll(a.Holds)...)
		positions[shard] = a.Next
	}
	slices.SortFunc(doc.Holds, func(a, b holdfast.Hold) int {
		if r.Overdue {
			return slices.Compare(a.ID[:], b.ID[:]) // the longest overdue first
		}
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), slices.Compare(b.ID[:], a.ID[:]))
	})
	doc.Next = f.next(positions)
	problem.JSON(w, http.StatusOK, doc)
	return nil
}

func (c *Coordinator) deadLetters(w http.ResponseWriter, q *call) error {
	values, err := params(q, "open", "code", "shard", "page_size", "page_token")
	if err != nil {
		return err
	}
	r := branch.AdminListRequest{Code: values.Get("code")}
	if err := checkNote("code", r.Code); err != nil {
		return err
	}
	// What a person may have to do something about is what they ask for.
	if r.Open, err = boolOf(values, "open", true); err != nil {
		return err
	}
	f, err := c.fanPageOf(values, "dead "+strconv.FormatBool(r.Open)+r.Code)
	if err != nil {
		return err
	}
	answers, away := askShards(q.Context(), f.shards, func(ctx context.Context, shard int) (branch.DeadLetterAnswer, error) {
		r := r
		r.Before, r.Limit = f.before[shard], f.each
		return c.shards.DeadLetters(ctx, shard, r)
	})
	letters := []branch.DeadLetter{}
	positions := map[int]string{}
	for shard, a := range answers {
		letters = append(letters, shownLetters(a.DeadLetters)...)
		positions[shard] = a.Next
	}
	slices.SortFunc(letters, func(a, b branch.DeadLetter) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), slices.Compare(b.HoldID[:], a.HoldID[:]))
	})
	problem.JSON(w, http.StatusOK, struct {
		DeadLetters []branch.DeadLetter `json:"dead_letters"`
		Next        string              `json:"next_page_token,omitempty"`
		Unavailable []int               `json:"shards_unavailable,omitempty"`
	}{letters, f.next(positions), away})
	return nil
}

func shownLetters(letters []branch.DeadLetter) []branch.DeadLetter {
	out := make([]branch.DeadLetter, len(letters)) // never null in the document
	for i, d := range letters {
		d.CreatedAt, d.ClosedAt, d.Hold = d.CreatedAt.UTC(), d.ClosedAt.UTC(), shown(d.Hold)
		out[i] = d
	}
	return out
}

func (c *Coordinator) audit(w http.ResponseWriter, q *call) error {
	values, err := params(q, "shard", "page_size", "page_token")
	if err != nil {
		return err
	}
	f, err := c.fanPageOf(values, "audit")
	if err != nil {
		return err
	}
	answers, away := askShards(q.Context(), f.shards, func(ctx context.Context, shard int) (branch.AuditAnswer, error) {
		return c.shards.Audit(ctx, shard, branch.AdminListRequest{Before: f.before[shard], Limit: f.each})
	})
	rows := []branch.AuditRow{}
	positions := map[int]string{}
	for shard, a := range answers {
		rows = append(rows, shownAudit(a.Rows)...)
		positions[shard] = a.Next
	}
	slices.SortStableFunc(rows, func(a, b branch.AuditRow) int { return cmp.Or(b.At.Compare(a.At), a.Shard-b.Shard) })
	problem.JSON(w, http.StatusOK, struct {
		Rows        []branch.AuditRow `json:"audit"`
		Next        string            `json:"next_page_token,omitempty"`
		Unavailable []int             `json:"shards_unavailable,omitempty"`
	}{rows, f.next(positions), away})
	return nil
}

func shownAudit(rows []branch.AuditRow) []branch.AuditRow {
	out := make([]branch.AuditRow, len(rows)) // never null in the document
	for i, r := range rows {
		r.At = r.At.UTC()
		out[i] = r
	}
	return out
}

// shardStates asks every shard for its state. A shard whose participant says
// that it is down counts as away like one that gives no answer.
func (c *Coordinator) shardStates(ctx context.Context) (states []branch.ShardStatus, away []int) {
	answers, _ := askShards(ctx, c.allShards(), c.shards.Status)
	for shard := range c.cfg.Map.Shards {
		s, ok := answers[shard]
		if !ok {
			s = branch.ShardStatus{Error: "no answer"}
		}
		s.Shard = shard
		if !s.Up {
			away = append(away, shard)
		}
		states = append(states, s)
	}
	return states, away
}

func (c *Coordinator) listShards(w http.ResponseWriter, q *call) error {
	states, away := c.shardStates(q.Context())
	problem.JSON(w, http.StatusOK, struct {
		Epoch       int64                `json:"map_epoch"`
		Shards      []branch.ShardStatus `json:"shards"`
		Unavailable []int                `json:"shards_unavailable,omitempty"`
	}{c.cfg.Map.Epoch, states, away})
	return nil
}

type breakerDoc struct {
	State  string         `json:"state"`
	Counts payment.Counts `json:"counts"`
}

func (c *Coordinator) breakerNow() *breakerDoc {
	if c.cfg.Payment == nil {
		return nil
	}
	return &breakerDoc{c.cfg.Payment.State(), c.cfg.Payment.Counts()}
}

func (c *Coordinator) breaker(w http.ResponseWriter, _ *call) error {
	b := c.breakerNow()
	if b == nil {
		return problem.New(problem.NotServedHere, "")
	}
	problem.JSON(w, http.StatusOK, b)
	return nil
}

func (c *Coordinator) scheduler(w http.ResponseWriter, q *call) error {
	if c.cfg.Scheduler == nil {
		return problem.New(problem.NotServedHere, "no scheduler runs in this process")
	}
	ctx, cancel := c.reading(q.Context())
	defer cancel()
	problem.JSON(w, http.StatusOK, c.cfg.Scheduler(ctx))
	return nil
}

// proofTimeout bounds a proof; it reads every book of every shard.
const proofTimeout = 10 * time.Minute

// prove answers 200 whether the ledger is whole or not: the field ok says it.
func (c *Coordinator) prove(w http.ResponseWriter, q *call) error {
	ctx, cancel := context.WithTimeout(q.Context(), proofTimeout)
	defer cancel()
	// The server's timeouts are made for small answers. The one for reading ends
	// the request's context too. A writer that has no connection behind it has no
	// deadlines to move either.
	rc, until := http.NewResponseController(w), time.Now().Add(proofTimeout)
	_, _ = rc.SetReadDeadline(until), rc.SetWriteDeadline(until)
	problem.JSON(w, http.StatusOK, c.ProveLedger(ctx))
	return nil
}
