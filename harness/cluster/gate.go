package cluster

import (
	"bytes"
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Shopify/toxiproxy/v2/stream"
	"github.com/Shopify/toxiproxy/v2/toxics"
)

// gateType is the name under which toxiproxy knows the gate.
const gateType = "gate"

const (
	// gateBuffer is how many chunks one connection may have under way in one
	// direction; it keeps latency from becoming a limit of bandwidth.
	gateBuffer = 1024
	// deadWriter is how long a chunk may wait to be written. Whoever does not
	// read for so long is taken for gone: toxiproxy does not tell.
	deadWriter = 2 * time.Minute
	// slice is how often a connection of limited bandwidth sends.
	slice = 50 * time.Millisecond
)

var registerGate = sync.OnceFunc(func() { toxics.Register(gateType, new(gate)) })

// gate is the one toxic that every direction of every link always has. Its
// rules change while connections run, without touching toxiproxy's chains:
// those wait for a peer that stands still, and a heal must never hang.
type gate struct{ lane *lane }

// lane is one direction of a link.
type lane struct {
	mu      sync.Mutex
	rules   rules
	changed chan struct{} // closed at the next change
	dice    *rand.Rand

	conns, chunks, bytes atomic.Int64
	struck               atomic.Int64
}

// rules is what happens to a chunk. The zero value lets everything through.
type rules struct {
	stalled         bool // nothing passes until this is over; nothing is lost either
	latency, jitter time.Duration
	reset           float64 // probability per chunk
	perSecond       int64   // bytes; 0: no limit
	limited         bool
	limit           int64 // bytes per connection since the rule was made
	cut             *cutRule
	number          int64 // tells one set of rules from the next
}

// cutRule closes connections at a chunk that contains a text.
type cutRule struct {
	text  []byte // empty: any chunk
	after bool   // the chunk still passes
	left  *atomic.Int64
}

// newLane seeds the dice by the link's name, so that links do not throw alike.
func newLane(seed uint64, link string, d Direction) *lane {
	h := fnv.New64a()
	h.Write([]byte(link + string(d)))
	return &lane{changed: make(chan struct{}), dice: rand.New(rand.NewPCG(seed, h.Sum64()))}
}

func (l *lane) now() (rules, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rules, l.changed
}

func (l *lane) set(change func(*rules)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.rules)
	l.rules.number++
	close(l.changed)
	l.changed = make(chan struct{})
}

// conn is what the gate remembers of a connection.
type conn struct {
	pending *stream.StreamChunk
	judged  int64     // number of the rules that the next two are of
	doomed  bool      // the connection ends at the pending chunk
	due     time.Time // before that the pending chunk does not pass

	limitOf int64 // number of the rules that passed counts for
	passed  int64
}

// GetBufferSize is part of toxiproxy's contract.
func (g *gate) GetBufferSize() int { return gateBuffer }

// NewState is called once per connection.
func (g *gate) NewState() any {
	g.lane.conns.Add(1)
	return new(conn)
}

// Pipe moves chunks until the connection ends or toxiproxy interrupts it; an
// interrupted one goes on later with what it holds.
func (g *gate) Pipe(stub *toxics.ToxicStub) {
	c := stub.State.(*conn)
	for {
		if c.pending == nil {
			select {
			case <-stub.Interrupt:
				return
			case c.pending = <-stub.Input:
			}
			if c.pending == nil {
				stub.Close()
				return
			}
			c.judged = -1 // no rules have that number
			g.lane.chunks.Add(1)
			g.lane.bytes.Add(int64(len(c.pending.Data)))
		}
		switch g.step(stub, c) {
		case interrupted:
			return
		case broken:
			stub.Close()
			// Whatever still comes in must not block who sends it.
			go func() {
				for range stub.Input {
				}
			}()
			return
		}
	}
}

type outcome int

const (
	again outcome = iota // look at the rules again
	waited
	interrupted
	broken
)

// step takes the pending chunk one step on under the rules of this moment.
func (g *gate) step(stub *toxics.ToxicStub, c *conn) outcome {
	r, changed := g.lane.now()
	if c.judged != r.number {
		g.judge(r, c)
	}
	switch left := time.Until(c.due); {
	case r.stalled:
		return wait(stub, changed, 0)
	case c.doomed:
		g.lane.struck.Add(1)
		if r.cut != nil && r.cut.after {
			g.send(stub, c, len(c.pending.Data))
		}
		return broken
	case left > 0:
		return wait(stub, changed, left)
	}
	n := len(c.pending.Data)
	if r.perSecond > 0 {
		n = min(n, max(1, int(r.perSecond*int64(slice)/int64(time.Second))))
		if o := wait(stub, changed, time.Duration(n)*time.Second/time.Duration(r.perSecond)); o != waited {
			return o
		}
	}
	if r.limited {
		if c.limitOf != r.number {
			c.limitOf, c.passed = r.number, 0
		}
		if left := r.limit - c.passed; int64(n) >= left {
			g.lane.struck.Add(1)
			g.send(stub, c, int(max(0, left)))
			return broken
		}
	}
	return g.send(stub, c, n)
}

// judge is called once per chunk and set of rules. The delay counts from the
// arrival: chunks that wait in the buffer wait together.
func (g *gate) judge(r rules, c *conn) {
	c.judged = r.number
	l := g.lane
	l.mu.Lock()
	c.doomed = r.reset > 0 && l.dice.Float64() < r.reset
	late := r.latency
	if r.jitter > 0 {
		late += time.Duration(l.dice.Int64N(int64(2*r.jitter))) - r.jitter
	}
	l.mu.Unlock()
	if r.cut != nil && bytes.Contains(c.pending.Data, r.cut.text) && r.cut.left.Add(-1) >= 0 {
		c.doomed = true
	}
	c.due = c.pending.Timestamp.Add(late)
	if r.stalled || r.latency > 0 || r.perSecond > 0 {
		l.struck.Add(1)
	}
}

// send passes the first n bytes of the pending chunk on.
func (g *gate) send(stub *toxics.ToxicStub, c *conn, n int) outcome {
	if n > 0 {
		out := &stream.StreamChunk{Data: c.pending.Data[:n], Timestamp: c.pending.Timestamp}
		late := time.NewTimer(deadWriter)
		defer late.Stop()
		select {
		case stub.Output <- out:
		case <-stub.Interrupt:
			return interrupted
		case <-late.C:
			return broken
		}
		c.passed += int64(n)
	}
	if n == len(c.pending.Data) {
		c.pending = nil
	} else {
		c.pending = &stream.StreamChunk{Data: c.pending.Data[n:], Timestamp: c.pending.Timestamp}
	}
	return again
}

// wait ends after d (0: never), or when the rules change.
func wait(stub *toxics.ToxicStub, changed <-chan struct{}, d time.Duration) outcome {
	var over <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		over = t.C
	}
	select {
	case <-stub.Interrupt:
		return interrupted
	case <-changed:
		return again
	case <-over:
		return waited
	}
}
