package chaos

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-escrow/holdfast/harness/cluster"
)

// ways are the links between kinds of parts.
var ways = []struct{ from, to string }{
	{"coordinator", "participant"},
	{"participant", "shard"},
	{"coordinator", "payment"},
	{"coordinator", "redis"},
	{"scheduler", "redis"},
	{"scheduler", "coordinator"},
	{"scheduler", "shard"},
	{"client", "coordinator"},
}

func networkFaults() []Fault {
	var out []Fault
	for _, w := range ways {
		out = append(out, Fault{Name: fmt.Sprintf("partition-%s-%s", w.from, w.to), Theme: "network", Quick: true, Covers: "1, I12",
			About:  fmt.Sprintf("The network between every %s and %s is gone, both ways, for three seconds; what was sent arrives after it.", w.from, w.to),
			Strike: partition(w.from, w.to), Within: shardWithin(w.to)})
	}
	return append(out,
		Fault{Name: "one-way-requests-lost", Theme: "network", Quick: true, Covers: "1, I4",
			About: "Requests between roles, shards and payments come late, answers pass.", Strike: oneWay(cluster.Up)},
		Fault{Name: "one-way-answers-lost", Theme: "network", Quick: true, Covers: "1, I4, I7",
			About: "Requests between roles, shards and payments are carried out, their answers do not come.", Strike: oneWay(cluster.Down)},
		Fault{Name: "one-replica-cut-off", Theme: "network", Quick: true, Covers: "1, I12",
			About: "One replica of each role can reach nobody and be reached by nobody; the others carry on.", Strike: cutOff},
		Fault{Name: "latency-500-400", Theme: "network", Quick: true, Covers: "I12", Within: 20 * time.Second,
			About: "Every link between the roles, shards, Redis and payments has 500 ± 400 ms of latency each way.", Strike: latency},
		Fault{Name: "resets-5-percent", Theme: "network", Quick: true, Covers: "1, I4, I7",
			About: "Every link resets a connection at 5 % of the chunks.", Strike: resets},
		Fault{Name: "connections-refused", Theme: "network", Quick: true, Covers: "1, I12",
			About: "Links between roles refuse connections, one after the other.", Strike: refusals},
		Fault{Name: "bandwidth-2-kb", Theme: "network", Quick: true, Covers: "I12",
			About: "Every link to a shard carries 2 kB a second.", Strike: narrow, Within: 20 * time.Second},
		Fault{Name: "swizzle-clog", Theme: "network", Quick: true, Covers: "I12",
			About: "Links are clogged one by one in random order and released in another.", Strike: swizzle})
}

func shardWithin(to string) time.Duration {
	if to == "shard" {
		return 20 * time.Second
	}
	return 0
}

// inner is every link but the clients'.
func (r *Run) inner() (out []*cluster.Link) {
	for _, l := range r.Cluster.Links() {
		if l.From != "client" {
			out = append(out, l)
		}
	}
	return out
}

// on breaks links, waits, heals them, and counts what was hit.
func (r *Run) on(ctx context.Context, links []*cluster.Link, d time.Duration, broken func(*cluster.Link) error) error {
	before := struckBy(links)
	for _, l := range links {
		if err := broken(l); err != nil {
			return err
		}
	}
	err := r.Wait(ctx, d)
	r.Struck(struckBy(links) - before)
	for _, l := range links {
		if healErr := l.Heal(); err == nil {
			err = healErr
		}
	}
	return err
}

func struckBy(links []*cluster.Link) (n int) {
	for _, l := range links {
		n += l.Struck()
	}
	return n
}

func partition(from, to string) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		return r.on(ctx, r.Cluster.Links(from, to), 3*time.Second, func(l *cluster.Link) error { l.Cut(); return nil })
	}
}

func oneWay(d cluster.Direction) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		for _, w := range r.Rand.Perm(len(ways))[:3] {
			err := r.on(ctx, r.Cluster.Links(ways[w].from, ways[w].to), 1500*time.Millisecond, func(l *cluster.Link) error { l.CutOneWay(d); return nil })
			if err != nil {
				return err
			}
		}
		return nil
	}
}

func cutOff(ctx context.Context, r *Run) error {
	var links []*cluster.Link
	for _, role := range []cluster.Role{cluster.Coordinator, cluster.Participant, cluster.Scheduler} {
		name := r.one(role).Name
		for _, l := range r.inner() {
			if l.From == name || l.To == name {
				links = append(links, l)
			}
		}
	}
	return r.on(ctx, links, 4*time.Second, func(l *cluster.Link) error { l.Cut(); return nil })
}

func latency(ctx context.Context, r *Run) error {
	return r.on(ctx, r.inner(), 5*time.Second, func(l *cluster.Link) error {
		l.Latency(500*time.Millisecond, 400*time.Millisecond)
		return nil
	})
}

func resets(ctx context.Context, r *Run) error {
	return r.on(ctx, r.Cluster.Links(), 4*time.Second, func(l *cluster.Link) error { return l.ResetPeer(0.05) })
}

func refusals(ctx context.Context, r *Run) error {
	links := r.inner()
	for _, i := range r.Rand.Perm(len(links))[:6] {
		err := r.on(ctx, links[i:i+1], 600*time.Millisecond, func(l *cluster.Link) error { l.Refuse(); return nil })
		if err != nil {
			return err
		}
	}
	return nil
}

func narrow(ctx context.Context, r *Run) error {
	return r.on(ctx, r.Cluster.Links("participant", "shard"), 4*time.Second, func(l *cluster.Link) error { l.Bandwidth(2); return nil })
}

// swizzle is FoundationDB's favourite: the order of the releases is what finds
// mistakes in who waits for whom.
func swizzle(ctx context.Context, r *Run) error {
	links := r.inner()
	some := r.Rand.Perm(len(links))[:len(links)/2]
	before := struckBy(links)
	for _, i := range some {
		links[i].Cut()
		if err := r.Wait(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	r.Rand.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
	if err := r.Wait(ctx, time.Second); err != nil {
		return err
	}
	for _, i := range some {
		if err := links[i].Heal(); err != nil {
			return err
		}
		if err := r.Wait(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	r.Struck(struckBy(links) - before)
	return nil
}
