// Command peers measures Holdfast side by side with the programs that a user
// could pick instead: dtm, River and asynq. All do the same job on one machine,
// one after the other, on PostgreSQL servers with the same settings. It is a
// module of its own, so that nothing of it gets into the product. It uses the
// peers through their public packages only; docs/peers.md says what is compared
// with what, and where the comparison is lame.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are what a run can be told.
type options struct {
	peers, jobs []string
	pairs       int
	duration    time.Duration
	warmup      time.Duration
	settle      time.Duration
	clients     int
	shards      int // of Holdfast
	rates       []float64
	senders     int
	recipients  int
	redisFsync  string
	output      string
	binary      string
	minWait     time.Duration // delay between a create and its due time
	maxWait     time.Duration
	crashRate   float64
	crashFor    time.Duration
}

var (
	allPeers = []string{"dtm", "river", "asynq"}
	allJobs  = []string{"start", "lifecycle", "lag", "crash"}
)

func main() {
	if len(os.Args) > 1 {
		// The processes that a run starts are this program again.
		switch os.Args[1] {
		case "dtm-server":
			dtmServer()
			return
		case "worker":
			if err := workerMain(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, "worker:", err)
				os.Exit(1)
			}
			return
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := realMain(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func realMain(ctx context.Context, args []string) error {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	l, err := newLab(ctx, o)
	if err != nil {
		return err
	}
	defer l.close()
	rows, err := l.compare(ctx)
	if err != nil && len(rows) == 0 {
		return err
	}
	// What was measured before an error is shown all the same.
	return errors.Join(err, show(os.Stdout, o, rows))
}

func parse(args []string) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("peers", flag.ContinueOnError)
	peers := f.String("peers", strings.Join(allPeers, ","), "which peers")
	jobs := f.String("jobs", strings.Join(allJobs, ","), "which jobs")
	delay := f.String("delay", "1s..4s", "from a create to its due time")
	rates := f.String("rates", "300,1000", "creates per second of the lag job")
	f.IntVar(&o.pairs, "pairs", 3, "how often each pair (peer, Holdfast) is measured")
	f.DurationVar(&o.duration, "duration", 15*time.Second, "measured window of one run, at least twice the longest delay")
	f.DurationVar(&o.warmup, "warmup", 3*time.Second, "load before it that is not counted")
	f.DurationVar(&o.settle, "settle", 30*time.Second, "how long after the load the last due times are waited for; the crash job waits four times as long")
	f.IntVar(&o.clients, "clients", 64, "clients at once, for each system")
	f.IntVar(&o.senders, "senders", 2000, "accounts that pay")
	f.IntVar(&o.recipients, "recipients", 2000, "accounts that are paid")
	f.IntVar(&o.shards, "shards", 2, "Holdfast's shards, 1 to 4, on servers of their own")
	f.StringVar(&o.redisFsync, "redis-fsync", "always", "how asynq's Redis keeps its log: always (as durable as PostgreSQL here), everysec, no")
	f.StringVar(&o.output, "o", "table", "table or json")
	f.StringVar(&o.binary, "holdfast", "", "the holdfast program (default: built from ../..)")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if o.shards < 1 || o.shards > 4 {
		return nil, fmt.Errorf("-shards is %d, choose 1 to 4", o.shards)
	}
	o.peers, o.jobs = strings.Split(*peers, ","), strings.Split(*jobs, ",")
	for _, r := range strings.Split(*rates, ",") {
		var rate float64
		if _, err := fmt.Sscanf(r, "%g", &rate); err != nil || rate <= 0 {
			return nil, fmt.Errorf("-rates: %q is no rate", r)
		}
		o.rates = append(o.rates, rate)
	}
	low, high, _ := strings.Cut(*delay, "..")
	var err1, err2 error
	o.minWait, err1 = time.ParseDuration(low)
	o.maxWait, err2 = time.ParseDuration(high)
	if err1 != nil || err2 != nil {
		return nil, fmt.Errorf("-delay is %q, write it like 1s..4s", *delay)
	}
	o.crashRate, o.crashFor = 200, 12*time.Second
	return o, o.check()
}

func (o *options) check() error {
	for _, p := range o.peers {
		if !slices.Contains(allPeers, p) {
			return fmt.Errorf("there is no peer %q: choose from %s", p, strings.Join(allPeers, ","))
		}
	}
	for _, j := range o.jobs {
		if !slices.Contains(allJobs, j) {
			return fmt.Errorf("there is no job %q: choose from %s", j, strings.Join(allJobs, ","))
		}
	}
	switch {
	case o.pairs < 1:
		return errors.New("-pairs must be at least 1")
	case o.minWait < time.Second || o.maxWait < o.minWait:
		return errors.New("-delay must be at least 1s and its end not before its start")
	case o.duration < 2*o.maxWait:
		return errors.New("-duration must be at least twice the longest delay: a shorter window has no steady part")
	case o.clients < 1 || o.clients > 256:
		return errors.New("-clients must be between 1 and 256")
	case o.senders < 1 || o.recipients < 1:
		return errors.New("there must be a sender and a recipient at least")
	case !slices.Contains([]string{"always", "everysec", "no"}, o.redisFsync):
		return errors.New("-redis-fsync is always, everysec or no")
	case o.output != "table" && o.output != "json":
		return errors.New("-o is table or json")
	}
	return nil
}
