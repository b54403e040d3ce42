package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
)

// peer is one system that is compared with Holdfast, for one run.
type peer interface {
	// setup makes tables and accounts and starts what the system runs besides
	// the worker.
	setup(ctx context.Context) error
	// create takes the money from the sender and makes sure that the rest
	// happens at the due time; it returns when that is on disk.
	create(ctx context.Context, t *transfer) error
	// books are read when nothing is under way.
	books(ctx context.Context) (books, error)
	// kill and revive are kill -9 and a fresh start of what runs besides the
	// worker, if anything does.
	kill()
	revive(ctx context.Context) error
	close()
}

// books say what became of the transfers.
type books struct {
	done, open int64
	missing    int64 // money that is in no account and owed to nobody
}

// site is what a peer of one run gets: where its servers are.
type site struct {
	lab    *lab
	dsns   []string
	redis  string
	worker string // URL of the worker
	job    string
}

func newPeer(name string, s site) peer {
	switch name {
	case "river":
		return &riverPeer{site: s}
	case "asynq":
		return &asynqPeer{site: s}
	}
	return &dtmPeer{site: s}
}

// workerConfig is the argument of the worker process.
type workerConfig struct {
	Kind    string   `json:"kind"`
	DSNs    []string `json:"dsns"`
	Redis   string   `json:"redis"`
	Payment string   `json:"payment"`
	Addr    string   `json:"addr"`
}

// startWorker starts the peer's worker and waits until it works.
func (s site) startWorker(ctx context.Context, name string) (*proc, error) {
	arg, err := json.Marshal(workerConfig{name, s.dsns, s.redis, s.lab.pay.url, s.worker[len("http://"):]})
	if err != nil {
		return nil, err
	}
	p, err := spawn(name+" worker", s.lab.self, []string{"worker", string(arg)}, []string{"LOG_LEVEL=error"}, nil, nil)
	if err != nil {
		return nil, err
	}
	return p, p.until(ctx, func(ctx context.Context) bool { return answers(ctx, s.worker+"/ready") })
}

// workerCount is how many transfers the worker has finished; -1 if it does not
// answer.
func (s site) workerCount(ctx context.Context) int64 {
	n := int64(-1)
	_ = s.ask(ctx, "/count", &n) // the next look will tell
	return n
}

// workerDone asks the worker what it has finished.
func (s site) workerDone(ctx context.Context) (all []done, err error) {
	return all, s.ask(ctx, "/done", &all)
}

func (s site) ask(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.worker+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask the worker: %w", err)
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(into)
}
