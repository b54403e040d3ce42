package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"github.com/holdfast-escrow/holdfast/internal/embed"
)

// Direction is one of the two ways over a link.
type Direction string

const (
	// Up is from the one who dials to the one who listens: requests.
	Up Direction = "upstream"
	// Down is the way back: answers.
	Down Direction = "downstream"
)

// Link is the way from one part of the cluster to another: a proxy of its own,
// so that it can fail while everything else between the same machines is well.
// Its faults add up until Heal. All methods may be called at any moment.
type Link struct {
	From, To string
	Addr     string // where From dials

	proxy    *toxiproxy.Proxy
	up, down *lane

	mu      sync.Mutex
	refused bool         // by Refuse
	dead    bool         // nobody listens behind it
	closed  bool         // for good
	rst     bool         // the proxy ends connections with RST
	drops   atomic.Int64 // connections closed by Refuse
}

// proxies is the toxiproxy server of one cluster.
type proxies struct {
	server *toxiproxy.ApiServer
	seed   uint64
	taken  map[int]bool // ports of processes that do not listen yet
}

func newProxies(seed int64, taken map[int]bool) *proxies {
	registerGate()
	return &proxies{toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), uint64(seed), taken}
}

// portTries bounds how often a proxy looks for another port when somebody else
// was faster.
const portTries = 20

// link opens the way to an address. The port lies where embed takes its own.
func (p *proxies) link(from, to, upstream string) (*Link, error) {
	l := &Link{From: from, To: to}
	l.up, l.down = newLane(p.seed, l.String(), Up), newLane(p.seed, l.String(), Down)
	for try := 1; ; try++ {
		port, err := embed.FreePort()
		if err != nil {
			return nil, err
		}
		if p.taken[port] {
			continue
		}
		l.proxy = toxiproxy.NewProxy(p.server, l.String(), fmt.Sprintf("127.0.0.1:%d", port), upstream)
		if err := l.gates(); err != nil {
			return nil, fmt.Errorf("link %s: %w", l, err)
		}
		if err = l.proxy.Start(); err == nil {
			l.Addr = l.proxy.Listen
			return l, nil
		}
		if try == portTries {
			return nil, fmt.Errorf("link %s: %w", l, err)
		}
	}
}

// gates puts a gate into each direction; nobody is connected yet.
func (l *Link) gates() error {
	for dir, lane := range map[Direction]*lane{Up: l.up, Down: l.down} {
		w, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(
			`{"name":"gate_%s","type":%q,"stream":%q,"attributes":{}}`, dir, gateType, dir)))
		if err != nil {
			return err
		}
		w.Toxic.(*gate).lane = lane
	}
	return nil
}

func (l *Link) String() string { return l.From + "→" + l.To }

// Cut lets nothing through any more, in both directions, as a network that is
// gone: connections stay open and are silent. What was sent meanwhile is under
// way, and arrives after Heal, however late.
func (l *Link) Cut() {
	l.CutOneWay(Up)
	l.CutOneWay(Down)
}

// CutOneWay is Cut in one direction: with Down a request is done and its
// answer does not come.
func (l *Link) CutOneWay(d Direction) { l.lane(d).set(func(r *rules) { r.stalled = true }) }

// Latency delays every chunk by d ± jitter in each direction.
func (l *Link) Latency(d, jitter time.Duration) {
	l.each(func(r *rules) { r.latency, r.jitter = d, jitter })
}

// Bandwidth limits each connection and direction, in kB (1,000 bytes) a second.
func (l *Link) Bandwidth(kBps int) { l.Trickle(int64(kBps) * 1000) }

// Trickle is Bandwidth in bytes per second.
func (l *Link) Trickle(bytesPerSecond int64) {
	l.each(func(r *rules) { r.perSecond = bytesPerSecond })
}

// LimitBytes closes each connection when n more bytes have passed in a
// direction.
func (l *Link) LimitBytes(d Direction, n int64) {
	l.lane(d).set(func(r *rules) { r.limited, r.limit = true, n })
}

// CutAt closes the connection at a chunk that contains text (empty: at any
// chunk): before it passes, or right after. It strikes the given number of
// times. A text that falls between two chunks is not seen; requests of the
// roles are small and come in one.
func (l *Link) CutAt(d Direction, text string, after bool, times int) {
	rule := &cutRule{text: []byte(text), after: after, left: new(atomic.Int64)}
	rule.left.Store(int64(times))
	l.lane(d).set(func(r *rules) { r.cut = rule })
}

// ResetPeer resets a connection with a probability at each chunk, in both
// directions. Connections that are open already end with FIN, new ones with RST.
func (l *Link) ResetPeer(probability float64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.each(func(r *rules) { r.reset = probability })
	if l.rst {
		return nil
	}
	// Toxiproxy closes with RST while a chain has this toxic; at toxicity 0 it
	// does nothing else.
	for _, d := range []Direction{Up, Down} {
		_, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(
			`{"name":"rst_%s","type":"reset_peer","stream":%q,"toxicity":0,"attributes":{}}`, d, d)))
		if err != nil && !errors.Is(err, toxiproxy.ErrToxicAlreadyExists) {
			return fmt.Errorf("link %s: %w", l, err)
		}
	}
	l.rst = true
	return nil
}

// Refuse closes every connection and refuses new ones, as a firewall does that
// answers.
func (l *Link) Refuse() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.refused {
		l.refused = true
		l.drops.Add(1)
		_ = l.open() // to close cannot fail
	}
}

// healTime is how long a closed link tries to get its own port back.
const healTime = 10 * time.Second

// Heal ends every fault. What was held back arrives now.
func (l *Link) Heal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.each(func(r *rules) { *r = rules{number: r.number} })
	if l.rst {
		for _, d := range []Direction{Up, Down} {
			if err := l.proxy.Toxics.RemoveToxic(context.Background(), "rst_"+string(d)); err != nil && !errors.Is(err, toxiproxy.ErrToxicNotFound) {
				return fmt.Errorf("heal %s: %w", l, err)
			}
		}
		l.rst = false
	}
	l.refused = false
	return l.open()
}

// alive tells the link whether somebody listens behind it. A proxy would take
// the connection and drop it; a machine refuses it, and who dials can tell that
// surely nothing was sent.
func (l *Link) alive(is bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = !is
	return l.open()
}

// open makes the proxy listen or not, as it should; mu is held.
func (l *Link) open() error {
	if l.refused || l.dead || l.closed {
		l.proxy.Stop()
		return nil
	}
	deadline := time.Now().Add(healTime)
	for {
		err := l.proxy.Start()
		if err == nil || errors.Is(err, toxiproxy.ErrProxyAlreadyStarted) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("open the link %s: %w", l, err)
		}
		<-time.After(pollEvery)
	}
}

// Struck is how often faults of this link hit something since the start: each
// chunk held up, delayed or slowed counts once, and so does each connection
// that was closed, and each Refuse.
func (l *Link) Struck() int {
	return int(l.up.struck.Load() + l.down.struck.Load() + l.drops.Load())
}

// StruckOneWay is Struck of one direction, without Refuse.
func (l *Link) StruckOneWay(d Direction) int { return int(l.lane(d).struck.Load()) }

// Traffic is how much has gone over the link since the start.
func (l *Link) Traffic() (connections, chunks, bytes int64) {
	return l.up.conns.Load(), l.up.chunks.Load() + l.down.chunks.Load(), l.up.bytes.Load() + l.down.bytes.Load()
}

func (l *Link) lane(d Direction) *lane {
	if d == Down {
		return l.down
	}
	return l.up
}

func (l *Link) each(change func(*rules)) {
	l.up.set(change)
	l.down.set(change)
}

// close ends the proxy for good.
func (l *Link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.each(func(r *rules) { *r = rules{number: r.number} })
	l.closed = true
	_ = l.open()
}
