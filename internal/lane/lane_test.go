package lane

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

func TestDo(t *testing.T) {
	t.Parallel()
	t.Run("what arrives during a batch forms the next one", func(t *testing.T) {
		t.Parallel()
		var mu sync.Mutex
		var sizes []int
		started, gate := make(chan struct{}, 100), make(chan struct{})
		l := New(Config[int, int, int]{Lanes: 1, Flush: func(in []int) []int {
			started <- struct{}{}
			<-gate
			mu.Lock()
			sizes = append(sizes, len(in))
			mu.Unlock()
			return in
		}})
		var wg sync.WaitGroup
		do := func(n int) {
			wg.Add(1)
			go func() {
				defer wg.Done()
				out, err := l.Do(context.Background(), []int{n})
				if err != nil || out[0] != n {
					t.Errorf("Do(%d) = %v, %v", n, out, err)
				}
			}()
		}
		do(0)
		<-started
		for i := 1; i <= 20; i++ {
			do(i)
		}
		for queued(l) < 20 {
		}
		close(gate)
		wg.Wait()
		if len(sizes) != 2 || sizes[0] != 1 || sizes[1] != 20 {
			t.Errorf("batches of %v, want 1 and 20", sizes)
		}
	})
	t.Run("items that share a key never share a batch and keep their order", func(t *testing.T) {
		t.Parallel()
		var seen [][]int
		l := New(Config[int, int, int]{Lanes: 1, MaxBatch: 4, Key: func(i *int) int { return *i % 10 },
			Flush: func(in []int) []int { seen = append(seen, append([]int(nil), in...)); return in }})
		out, err := l.Do(context.Background(), []int{1, 11, 2, 21, 3, 4, 5})
		if err != nil || len(out) != 7 || out[3] != 21 {
			t.Fatalf("Do = %v, %v", out, err)
		}
		for _, b := range seen {
			keys := map[int]bool{}
			for _, i := range b {
				if keys[i%10] {
					t.Errorf("batch %v repeats a key", b)
				}
				keys[i%10] = true
			}
		}
	})
	t.Run("a full queue refuses and does nothing", func(t *testing.T) {
		t.Parallel()
		l := New(Config[int, int, int]{MaxQueue: 3, Flush: func(in []int) []int { t.Error("flushed"); return in }})
		if _, err := l.Do(context.Background(), []int{1, 2, 3, 4}); !errors.Is(err, holdfast.ErrOverloaded) {
			t.Errorf("err = %v, want overloaded", err)
		}
	})
	t.Run("a batch that stays away does not hold up the next", func(t *testing.T) {
		t.Parallel()
		gate, away := make(chan struct{}), make(chan struct{})
		l := New(Config[int, int, int]{Lanes: 1, Patience: time.Millisecond, Flush: func(in []int) []int {
			if in[0] == 0 {
				close(away)
				<-gate
			}
			return in
		}})
		first := make(chan error, 1)
		go func() {
			_, err := l.Do(context.Background(), []int{0})
			first <- err
		}()
		<-away // or the next item may be in the same batch
		for n := 1; n <= 3; n++ {
			if out, err := l.Do(t.Context(), []int{n}); err != nil || out[0] != n {
				t.Fatalf("Do(%d) behind a batch that is away = %v, %v", n, out, err)
			}
		}
		close(gate)
		if err := <-first; err != nil {
			t.Errorf("the batch that was away: %v", err)
		}
		l.Close(context.Background())
		if l.away != 0 || l.busy != 0 {
			t.Errorf("%d batches away and %d lanes busy at the end", l.away, l.busy)
		}
	})
	t.Run("a caller that leaves undoes nothing", func(t *testing.T) {
		t.Parallel()
		gate, done := make(chan struct{}), make(chan int, 1)
		l := New(Config[int, int, int]{Flush: func(in []int) []int { <-gate; done <- in[0]; return in }})
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := l.Do(ctx, []int{7}); !errors.Is(err, holdfast.ErrOutcomeUnknown) {
			t.Errorf("err = %v, want outcome unknown", err)
		}
		close(gate)
		if got := <-done; got != 7 {
			t.Errorf("flushed %d, want 7", got)
		}
		l.Close(context.Background())
		if _, err := l.Do(context.Background(), []int{8}); !errors.Is(err, holdfast.ErrShardUnavailable) {
			t.Errorf("after Close err = %v, want unavailable", err)
		}
	})
}

func queued[I any, K comparable, O any](l *Lanes[I, K, O]) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}
