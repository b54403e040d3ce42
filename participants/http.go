package participants

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"github.com/gorilla/mux"
	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// op is one step of the branch protocol, called with Go values or with JSON.
type op struct {
	local func(ctx context.Context, shard int, in, out any) error
	wire  func(ctx context.Context, shard int, body []byte) (any, error)
}

// maxItems bounds one request; the lanes cut it into batches.
const maxItems = 5000

// batched makes the op of a step that goes through lanes.
func batched[I, O any](_ *Node, lanes func(shard int) doer[I, O]) op {
	return op{
		local: func(ctx context.Context, shard int, in, out any) error {
			items, ok := in.([]I)
			answer, ok2 := out.(*[]O)
			if !ok || !ok2 {
				return fmt.Errorf("%w: %T → %T is not this step", holdfast.ErrInvalid, in, out)
			}
			res, err := lanes(shard).Do(ctx, items)
			*answer = res
			return err
		},
		wire: func(ctx context.Context, shard int, body []byte) (any, error) {
			var items []I
			if err := decode(body, &items); err != nil {
				return nil, err
			}
			if len(items) > maxItems {
				return nil, fmt.Errorf("%w: %d items, at most %d", holdfast.ErrInvalid, len(items), maxItems)
			}
			if len(items) == 0 {
				return []O{}, nil
			}
			return lanes(shard).Do(ctx, items)
		},
	}
}

// single makes the op of a step that is one call.
func single[I, O any](_ *Node, do func(ctx context.Context, shard int, in I) (O, error)) op {
	return op{
		local: func(ctx context.Context, shard int, in, out any) error {
			request, ok := in.(I)
			answer, ok2 := out.(*O)
			if !ok || !ok2 {
				return fmt.Errorf("%w: %T → %T is not this step", holdfast.ErrInvalid, in, out)
			}
			res, err := do(ctx, shard, request)
			*answer = res
			return err
		},
		wire: func(ctx context.Context, shard int, body []byte) (any, error) {
			var in I
			if err := decode(body, &in); err != nil {
				return nil, err
			}
			return do(ctx, shard, in)
		},
	}
}

func decode(body []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%w: %v", holdfast.ErrInvalid, err)
	}
	return nil
}

// Handler serves POST /branch/v1/{shard}/{op}, signed requests only. It belongs
// on the internal listener.
func (n *Node) Handler(secret []byte) http.Handler {
	router := mux.NewRouter()
	router.Handle("/branch/v1/{shard}/{op}", branch.Signed(secret, n.cfg.Now, func(w http.ResponseWriter, r *http.Request, body []byte) {
		vars := mux.Vars(r)
		shard, err := strconv.Atoi(vars["shard"])
		o, known := n.ops[vars["op"]]
		if count := r.URL.Query().Get(branch.ShardsQuery); count != "" && count != strconv.Itoa(len(n.shards)) {
			http.Error(w, fmt.Sprintf("there are %d shards here and %s in the caller's map: set HOLDFAST_SHARD_COUNT", len(n.shards), count), http.StatusBadRequest)
			return
		}
		if err != nil || shard < 0 || shard >= len(n.shards) || !known {
			http.Error(w, "there is no such shard or step", http.StatusNotFound)
			return
		}
		// A coordinator that hangs up has not undone what is in the lanes; the
		// answer is simply not read.
		answer, err := o.wire(r.Context(), shard, body)
		branch.WriteAnswer(w, answer, err)
	})).Methods(http.MethodPost)
	return router
}
