package workload

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

// Hand is a customer who does what it is told, for a test that wants more than
// the seed's intents. Its operations are part of the history like all others.
// It does one thing at a time; Settle must not have begun.
type Hand struct {
	w *World
	l *lane
}

// firstHand keeps the hands' names apart from the clients' and their helpers'.
const firstHand = 1 << 16

// Hand is customer n; one number gives the same pace of retries every time.
func (w *World) Hand(n int) *Hand { return &Hand{w, newLane(&w.cfg, firstHand+n)} }

// Key is a key of this world that no intent uses.
func (w *World) Key(format string, args ...any) string {
	return w.mark + "-hand-" + fmt.Sprintf(format, args...)
}

// Create asks for a hold that unlocks at a moment, with all the retries of a
// client.
func (h *Hand) Create(ctx context.Context, key string, sender, recipient holdfast.UserID, amount int64, unlockAt time.Time) Op {
	return h.w.create(ctx, h.l, holdBody{Sender: sender, Recipient: recipient, Amount: amount, Key: key, Reference: key,
		UnlockAt: unlockAt.UTC().Format("2006-01-02T15:04:05.000Z07:00")}, 0)
}

// Cancel asks for the end of the hold that an operation was answered with.
func (h *Hand) Cancel(ctx context.Context, created Op) Op {
	return h.w.cancel(ctx, h.l, seenOf(created))
}

// Read asks for it.
func (h *Hand) Read(ctx context.Context, created Op) Op { return h.w.get(ctx, h.l, seenOf(created)) }
