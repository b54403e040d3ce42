package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// worker is the process that finishes the transfers of a peer: River's and
// asynq's workers, dtm's branches. It is a process of its own so that it can be
// killed, and so that the client's work is not in its figures.
type worker struct {
	cfg workerConfig
	pay *payments
	mux *http.ServeMux

	mu   sync.Mutex
	done []done
}

func workerMain(args []string) error {
	if len(args) != 1 {
		return errors.New("want one argument")
	}
	w := &worker{mux: http.NewServeMux(), done: make([]done, 0, 1<<16)}
	if err := json.Unmarshal([]byte(args[0]), &w.cfg); err != nil {
		return err
	}
	w.pay = newPayments(w.cfg.Payment)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	start := map[string]func(context.Context, *worker) (func(), error){
		"river": startRiver, "asynq": startAsynq, "dtm": startBranches}[w.cfg.Kind]
	if start == nil {
		return fmt.Errorf("there is no worker of %q", w.cfg.Kind)
	}
	end, err := start(ctx, w)
	if err != nil {
		return err
	}
	defer end()
	w.mux.HandleFunc("GET /ready", func(http.ResponseWriter, *http.Request) {})
	w.mux.HandleFunc("GET /done", w.tell)
	w.mux.HandleFunc("GET /count", w.count)
	l, err := net.Listen("tcp4", w.cfg.Addr)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: w.mux}
	go func() {
		<-ctx.Done()
		srv.Close()
	}()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// finished is called right after the commit of the credit.
func (w *worker) finished(t transfer) {
	now := time.Now().UnixMicro()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = append(w.done, done{AtUS: now, LagUS: now - t.DueUS})
}

func (w *worker) count(rw http.ResponseWriter, _ *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	json.NewEncoder(rw).Encode(len(w.done))
}

func (w *worker) tell(rw http.ResponseWriter, _ *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	json.NewEncoder(rw).Encode(w.done)
}
