package branch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// silence is how long a server may say nothing before new calls go to another
// one. The call itself waits on: whether it was done only its answer can tell.
const silence = 2 * time.Second

// homeEvery is how often the calls of a shard that had to leave its own server
// ask whether that is back. Without it all shards would end on the server that
// was restarted longest ago.
const homeEvery = 2 * time.Second

// homeAtMost bounds the pause between two questions. It doubles from homeEvery
// each time that the server answered the question and then failed the calls
// again, and begins anew when they stayed for homeAtMost.
const homeAtMost = time.Minute

// route is what the calls of one shard have learnt about the servers.
type route struct {
	moved atomic.Int64 // added to the shard's number; moves on when a server fails or falls silent

	mu    sync.Mutex
	doubt time.Duration // the pause after the last departure from a silent server
	pause time.Duration // between questions, since the last departure
	ask   time.Duration // when the shard's own server is asked next, by HTTP.clock
	home  time.Duration // when the calls came back to it
}

// post tries every server once, as long as surely nothing was done, or nothing
// can be.
func (h *HTTP) post(ctx context.Context, shard int, call request, out any) (err error) {
	caller, limit := ctx, h.cfg.Timeout
	if call.proof {
		limit = proofTime
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	found, _ := h.routes.LoadOrStore(shard, new(route))
	r := found.(*route)
	first, n := r.moved.Load(), int64(len(h.cfg.URLs))
	if first%n != 0 {
		h.lookHome(r, first, shard, call.drive)
	}
	for i := range n {
		var text []byte
		hush := func() bool { return true }
		if !call.patient {
			hush = time.AfterFunc(h.silence, func() { h.leave(r, first, false) }).Stop
		}
		text, err = h.once(ctx, h.cfg.URLs[(first+int64(shard)+i)%n]+call.path, call.body)
		hush()
		if err == nil {
			err = decodeAnswer(text, out)
		}
		switch {
		case err == nil:
			if i == 0 && !call.drive && (first+1)%n != 0 && allUnavailable(text) {
				// This server's way to the shard is bad, or the shard is down. The
				// calls try every server once and stay with the last one until the
				// first reaches the shard again: they do not go round.
				h.leave(r, first, false)
			}
		case errors.Is(caller.Err(), context.Canceled) || caller.Err() != nil && !call.drive:
			// A caller who hangs up, or has less time than silence takes, says
			// nothing about the server.
		default:
			// A proof that breaks off is no sign for the steps of a hold.
			if !call.proof || errors.Is(err, holdfast.ErrShardUnavailable) {
				h.leave(r, first, ctx.Err() == nil)
			}
		}
		if err == nil || ctx.Err() != nil || !(call.read || errors.Is(err, holdfast.ErrShardUnavailable)) {
			return err
		}
	}
	return err
}

// decodeAnswer leaves nothing of a garbled answer behind: the next server's is
// read into the same place.
func decodeAnswer(text []byte, out any) error {
	if err := json.Unmarshal(text, out); err != nil {
		reflect.ValueOf(out).Elem().SetZero()
		return fmt.Errorf("%w: garbled answer: %v", holdfast.ErrOutcomeUnknown, err)
	}
	return nil
}

// allUnavailable reports whether an answer says of every item that the shard
// could not be reached.
func allUnavailable(text []byte) bool {
	if !bytes.HasPrefix(text, []byte("[")) || !bytes.Contains(text, []byte(`"`+CodeShardUnavailable+`"`)) {
		return false
	}
	var items []CodeResult
	if json.Unmarshal(text, &items) != nil {
		return false
	}
	for _, item := range items {
		if item.Code != CodeShardUnavailable {
			return false
		}
	}
	return len(items) > 0
}

// leave lets the next calls go to the next server. told: the server has said no,
// or its connection broke, so that its answer to the question means that it is
// well again, or another process. Otherwise it was silent, or cut off from the
// shard: each stay may cost calls whose outcome is unknown, and a server that
// answers the question but not the calls is asked ever more rarely.
func (h *HTTP) leave(r *route, first int64, told bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, n := h.clock(), int64(len(h.cfg.URLs))
	if (first+1)%n == 0 && first%n != 0 && !told && now < r.ask {
		// The next server is home, which was left for a reason not long ago: that
		// it is well again, its answer to a question shows, not this one's failure.
		return
	}
	if !r.moved.CompareAndSwap(first, first+1) {
		return
	}
	if first%n == 0 {
		r.pause = homeEvery
		if !told {
			if r.doubt == 0 || now-r.home >= homeAtMost {
				r.doubt = homeEvery
			} else {
				r.doubt = min(2*r.doubt, homeAtMost)
			}
			r.pause = r.doubt
		}
		r.ask = now + r.pause
	}
	if (first+1)%n == 0 {
		r.home = now
	}
}

// lookHome asks the shard's own server, now and then and beside the calls, and
// lets them go back when it answers.
func (h *HTTP) lookHome(r *route, first int64, shard int, drive bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, n := h.clock(), int64(len(h.cfg.URLs))
	if now < r.ask {
		return
	}
	r.ask = now + r.pause
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), homeEvery)
		defer cancel()
		if !h.isHome(ctx, h.cfg.URLs[int64(shard)%n], shard, drive) {
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.moved.CompareAndSwap(first, first+n-first%n) {
			r.home = h.clock()
		}
	}()
}

// isHome reports whether a server is there and, if it is a participant, whether
// it reaches the shard. Only a question that PostgreSQL has to answer shows
// that: a read of a hold of today that nobody has.
func (h *HTTP) isHome(ctx context.Context, server string, shard int, drive bool) bool {
	if drive {
		_, err := h.once(ctx, server+askOpen.path, askOpen.body)
		return err == nil
	}
	body, err := json.Marshal([]IDItem{{ID: holdfast.NewHoldID(h.cfg.Now().UnixMilli(), 0, 0)}})
	if err != nil {
		return false
	}
	text, err := h.once(ctx, server+h.stepPath(shard, OpGet), body)
	var holds []HoldResult
	return err == nil && json.Unmarshal(text, &holds) == nil && len(holds) == 1 && holds[0].Code == CodeNotFound
}
