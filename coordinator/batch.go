package coordinator

import (
	"context"
	"fmt"
	"net/http"
	"sync"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/problem"
	"github.com/holdfast-escrow/holdfast/internal/strictjson"
)

const (
	maxBatch     = 100
	maxBatchBody = 256 << 10
)

// batchItem is what became of one item; exactly one of Hold and Problem is set.
type batchItem struct {
	Status   int              `json:"status"`
	Hold     *holdfast.Hold   `json:"hold,omitempty"`
	Replayed bool             `json:"idempotent_replayed,omitempty"`
	Problem  *problem.Problem `json:"problem,omitempty"`
}

// batchCreate creates up to maxBatch holds. A document that is not JSON is
// refused as a whole; everything else is the matter of one item.
func (c *Coordinator) batchCreate(w http.ResponseWriter, q *call) error {
	if len(q.Header["X-Idempotency-Key"])+len(q.Header["Idempotency-Key"]) > 0 {
		return problem.New(problem.KeyConflict, "each item of a batch carries its own idempotency_key; the header is not read here")
	}
	var items []branch.TryItem
	var errs []error
	err := c.withBody(w, q, max(maxBatchBody, c.cfg.MaxBody), func(body []byte) (err error) {
		items, errs, err = c.readBatch(body, q)
		return err
	})
	if err != nil {
		return err
	}
	c.edge.rate.charge(q.who.Subject, len(items)-1)
	ctx, cancel := c.committed(q.Context())
	defer cancel()
	c.checkAll(ctx, items, errs)
	results := c.tryAll(ctx, items, errs)
	answer := struct {
		Atomic  bool        `json:"atomic"`
		Results []batchItem `json:"results"`
	}{Results: make([]batchItem, len(items))}
	for i := range items {
		answer.Results[i] = c.batchResult(w, items[i], &results[i], errs[i])
	}
	problem.JSON(w, http.StatusOK, answer)
	return nil
}

// readBatch reads the items; errs[i] is why item i will not be sent.
func (c *Coordinator) readBatch(body []byte, q *call) (items []branch.TryItem, errs []error, err error) {
	names := []string{"holds"}
	var v [1]strictjson.Value
	if err := fieldsOf(body, names, v[:]); err != nil {
		return nil, nil, err
	}
	switch v[0].Kind {
	case strictjson.None:
		return nil, nil, missing("holds")
	case strictjson.Array:
	default:
		return nil, nil, wrongKind("holds", v[0], "an array")
	}
	err = v[0].Elements(func(e strictjson.Value) error {
		if len(items) == maxBatch {
			return problem.New(problem.BatchTooLarge, fmt.Sprintf("at most %d holds", maxBatch)).At("holds")
		}
		var fields holdValues
		var item branch.TryItem
		err := jsonProblem(e.Fields(holdFields, fields[:]))
		if err == nil {
			item, err = c.readHold(&fields, http.Header{}, q.who)
		}
		items, errs = append(items, item), append(errs, err)
		return nil
	})
	if err == nil && len(items) == 0 {
		err = problem.New(problem.InvalidField, "holds is empty").At("holds")
	}
	return items, errs, err
}

// byShard runs f once for each shard with the indexes that belong to it, all
// shards at the same time.
func byShard(n int, shardOf func(i int) (shard int, wanted bool), f func(shard int, indexes []int)) {
	groups := map[int][]int{}
	for i := range n {
		if s, wanted := shardOf(i); wanted {
			groups[s] = append(groups[s], i)
		}
	}
	var wg sync.WaitGroup
	for s, indexes := range groups {
		wg.Go(func() { f(s, indexes) })
	}
	wg.Wait()
}

// checkAll asks the recipients' shards, see payable.
func (c *Coordinator) checkAll(ctx context.Context, items []branch.TryItem, errs []error) {
	byShard(len(items),
		func(i int) (int, bool) { return c.cfg.Map.OfUser(items[i].Recipient), errs[i] == nil },
		func(shard int, indexes []int) {
			ask := make([]branch.CheckItem, len(indexes))
			for n, i := range indexes {
				ask[n] = branch.CheckItem{User: items[i].Recipient, Currency: items[i].Currency}
			}
			for n, res := range c.shards.Check(ctx, shard, ask) {
				i := indexes[n]
				items[i].Refusal, errs[i] = refusalOf(res.Code)
			}
		})
}

// tryAll sends each sender's shard its items in one call, in the order of the
// request.
func (c *Coordinator) tryAll(ctx context.Context, items []branch.TryItem, errs []error) []branch.TryResult {
	results := make([]branch.TryResult, len(items))
	byShard(len(items),
		func(i int) (int, bool) { return c.cfg.Map.OfUser(items[i].Sender), errs[i] == nil },
		func(shard int, indexes []int) {
			batch := make([]branch.TryItem, len(indexes))
			for n, i := range indexes {
				batch[n] = items[i]
			}
			var created []holdfast.HoldID
			for n, res := range c.shards.Try(ctx, shard, batch) {
				i := indexes[n]
				results[i] = res
				errs[i] = c.tried(shard, items[i], &results[i])
				if res.Code == branch.CodeOK {
					created = append(created, res.Hold.ID)
				}
			}
			c.announce(shard, created)
		})
	return results
}

func (c *Coordinator) batchResult(w http.ResponseWriter, item branch.TryItem, res *branch.TryResult, err error) batchItem {
	if err != nil {
		p := *c.explain(&route{method: http.MethodPost, path: "/v1/holds:batchCreate"}, w, err)
		p.RequestID = w.Header().Get(problem.RequestID)
		return batchItem{Status: p.Status, Problem: &p, Replayed: p.Replayed}
	}
	h := shown(res.Hold)
	return batchItem{Status: http.StatusCreated, Hold: &h, Replayed: res.Code == branch.CodeReplay}
}
