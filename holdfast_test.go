package holdfast_test

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

func TestHoldID(t *testing.T) {
	t.Parallel()
	const lastMS = 1<<48 - 1
	t.Run("gives back the time and the bucket it was made of", func(t *testing.T) {
		t.Parallel()
		for _, ms := range []int64{0, 1, 86_399_999, 1_700_000_000_123, lastMS} {
			for _, bucket := range []int{0, 1, 255, 256, 0xabc, holdfast.Buckets - 1} {
				for _, random := range []uint64{0, 1, 1<<62 - 1, 1 << 62, 1<<64 - 1} {
					id := holdfast.NewHoldID(ms, bucket, random)
					if id.UnlockAtMS() != ms || id.Bucket() != bucket || !id.Valid() || id.IsZero() {
						t.Errorf("(%d, %d, %x) made %s: %d ms, bucket %d, valid %t", ms, bucket, random, id, id.UnlockAtMS(), id.Bucket(), id.Valid())
					}
					if id[6]>>4 != 8 || id[8]>>6 != 2 {
						t.Errorf("%s has version %d and variant %b", id, id[6]>>4, id[8]>>6)
					}
					if at := id.UnlockAt(); at.UnixMilli() != ms || at.Location() != time.UTC {
						t.Errorf("%s unlocks at %s", id, at)
					}
					back, err := holdfast.ParseHoldID(id.String())
					if err != nil || back != id {
						t.Errorf("%s read back as %s, %v", id, back, err)
					}
				}
			}
		}
	})
	t.Run("all 62 bits of randomness count", func(t *testing.T) {
		t.Parallel()
		seen := map[holdfast.HoldID]bool{}
		for bit := range 62 {
			seen[holdfast.NewHoldID(5, 5, 1<<bit)] = true
		}
		if len(seen) != 62 {
			t.Errorf("62 different numbers made %d ids", len(seen))
		}
	})
	t.Run("its order is the order of maturity", func(t *testing.T) {
		t.Parallel()
		for range 10_000 {
			a, b := rand.Int64N(lastMS), rand.Int64N(lastMS)
			if rand.IntN(2) == 0 {
				b = a + 1 // neighbours differ whatever comes behind the time
			}
			x := holdfast.NewHoldID(a, rand.IntN(holdfast.Buckets), rand.Uint64())
			y := holdfast.NewHoldID(b, rand.IntN(holdfast.Buckets), rand.Uint64())
			if a != b && (bytes.Compare(x[:], y[:]) < 0) != (a < b) {
				t.Fatalf("%d and %d ms made %s and %s", a, b, x, y)
			}
			if (x.String() < y.String()) != (bytes.Compare(x[:], y[:]) < 0) {
				t.Fatalf("the text order of %s and %s is another", x, y)
			}
		}
	})
	t.Run("other UUIDs can be read but are no hold ids", func(t *testing.T) {
		t.Parallel()
		for _, s := range []string{
			"00000000-0000-0000-0000-000000000000", "018f2f5e-7b5c-7abc-9def-0123456789ab", // versions 0 and 7
			"018f2f5e-7b5c-8abc-4def-0123456789ab", "018f2f5e-7b5c-8abc-cdef-0123456789ab", // other variants
		} {
			if id, err := holdfast.ParseHoldID(s); err != nil || id.Valid() {
				t.Errorf("%s: valid %t, %v", s, id.Valid(), err)
			}
		}
	})
}

func TestParseUUID(t *testing.T) {
	t.Parallel()
	const good = "018f2f5e-7b5c-8abc-9def-0123456789ab"
	if u, err := holdfast.ParseUserID("018F2F5E-7B5C-8ABC-9DEF-0123456789AB"); err != nil || u.String() != good {
		t.Errorf("upper case is read as %s, %v", u, err)
	}
	for _, s := range []string{
		"", "x", good[:35], good + "0", " " + good[1:], good[:35] + " ", "{" + good[:34] + "}",
		"018f2f5e07b5c-8abc-9def-0123456789ab", "018f2f5e-7b5c08abc-9def-0123456789ab",
		"018f2f5e-7b5c-8abc09def-0123456789ab", "018f2f5e-7b5c-8abc-9def00123456789ab",
		"g18f2f5e-7b5c-8abc-9def-0123456789ab", "018f2f5e-7b5c-8abc-9def-0123456789a-",
		"018f2f5e7b5c8abc9def0123456789ab", "0é8f2f5e-7b5c-8abc-9def-0123456789a",
	} {
		h, herr := holdfast.ParseHoldID(s)
		u, uerr := holdfast.ParseUserID(s)
		if !errors.Is(herr, holdfast.ErrInvalid) || !errors.Is(uerr, holdfast.ErrInvalid) || !h.IsZero() || !u.IsZero() {
			t.Errorf("%q was read as %s (%v) and %s (%v)", s, h, herr, u, uerr)
		}
	}
	if _, err := holdfast.ParseUserID("00000000-0000-0000-0000-000000000000"); !errors.Is(err, holdfast.ErrInvalid) {
		t.Errorf("the nil UUID is a user: %v", err)
	}
}

func TestUserBuckets(t *testing.T) {
	t.Parallel()
	random := func() (u holdfast.UserID) {
		for i := range u {
			u[i] = byte(rand.Uint32())
		}
		return u
	}
	counter := uint32(0)
	for name, next := range map[string]func() holdfast.UserID{
		"random ids": random,
		"ids that count up behind one prefix": func() (u holdfast.UserID) {
			counter++
			u[0], u[12], u[13], u[14], u[15] = 1, byte(counter>>24), byte(counter>>16), byte(counter>>8), byte(counter)
			return u
		},
	} {
		const each = 50
		var got [holdfast.Buckets]int
		for range holdfast.Buckets * each {
			got[next().Bucket()]++
		}
		// The variance of an even spread is about the mean; eight deviations are
		// beyond any luck.
		chi := 0.0
		for _, n := range got {
			chi += float64((n-each)*(n-each)) / each
		}
		if perBucket := chi / (holdfast.Buckets - 1); perBucket < 0.8 || perBucket > 1.2 {
			t.Errorf("%s: chi square per bucket is %.2f, an even spread has 1", name, perBucket)
		}
	}
	// The bucket is part of every stored id: it may never change.
	for s, want := range map[string]int{
		"00000000-0000-0000-0000-000000000001": 2648,
		"018f2f5e-7b5c-8abc-9def-0123456789ab": 1366,
		"ffffffff-ffff-ffff-ffff-ffffffffffff": 3459,
	} {
		if u, err := holdfast.ParseUserID(s); err != nil || u.Bucket() != want {
			t.Errorf("%s is in bucket %d, it was made for %d (%v)", s, u.Bucket(), want, err)
		}
	}
}

func TestShardMap(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2, 3, 4, 7, 64, holdfast.Buckets} {
		m := holdfast.EvenShardMap(n)
		count := make([]int, n)
		for b, owner := range m.Owner {
			if owner < 0 || int(owner) >= n || b > 0 && owner < m.Owner[b-1] {
				t.Fatalf("%d shards: bucket %d belongs to %d", n, b, owner)
			}
			count[owner]++
		}
		for shard, got := range count {
			if got < holdfast.Buckets/n || got > holdfast.Buckets/n+1 {
				t.Errorf("%d shards: shard %d has %d buckets", n, shard, got)
			}
		}
		if m.Shards != n || m.Epoch != 1 {
			t.Errorf("%d shards: map %d, epoch %d", n, m.Shards, m.Epoch)
		}
		for range 100 {
			var u holdfast.UserID
			u[3], u[9] = byte(rand.Uint32()), byte(rand.Uint32())
			id := holdfast.NewHoldID(rand.Int64N(1<<48), u.Bucket(), rand.Uint64())
			if m.OfHold(id) != m.OfUser(u) {
				t.Fatalf("hold %s of user %s is on shard %d, the user on %d", id, u, m.OfHold(id), m.OfUser(u))
			}
		}
	}
}

var allStatuses = []holdfast.Status{holdfast.Pending, holdfast.Executing, holdfast.Executed, holdfast.Failed, holdfast.Cancelled}

func TestStatusGraph(t *testing.T) {
	t.Parallel()
	graph := map[[2]holdfast.Status]bool{
		{holdfast.Pending, holdfast.Executing}: true, {holdfast.Pending, holdfast.Cancelled}: true,
		{holdfast.Executing, holdfast.Executed}: true, {holdfast.Executing, holdfast.Failed}: true,
	}
	for _, from := range allStatuses {
		for _, to := range allStatuses {
			if got := holdfast.CanMove(from, to); got != graph[[2]holdfast.Status{from, to}] {
				t.Errorf("CanMove(%s, %s) is %t", from, to, got)
			}
		}
		if got, want := from.Ended(), from != holdfast.Pending && from != holdfast.Executing; got != want {
			t.Errorf("%s.Ended() is %t", from, got)
		}
	}
	for _, none := range []holdfast.Status{holdfast.StatusUnknown, -1, 6} {
		for _, s := range allStatuses {
			if holdfast.CanMove(none, s) || holdfast.CanMove(s, none) {
				t.Errorf("there is a move between %s and %s", none, s)
			}
		}
	}
	if holdfast.StatusUnknown.Ended() {
		t.Error("a status nobody knows has ended")
	}
}

// roundTrip writes v as text and as JSON and reads both back into a new value.
func roundTrip[T comparable, P interface {
	*T
	encoding.TextUnmarshaler
}](t *testing.T, v T, want string) {
	t.Helper()
	text, err := any(v).(encoding.TextMarshaler).MarshalText()
	if err != nil || string(text) != want {
		t.Errorf("%v is written %q, want %q (%v)", v, text, want, err)
	}
	var back T
	if err := P(&back).UnmarshalText(text); err != nil || back != v {
		t.Errorf("%q is read as %v: %v", text, back, err)
	}
	doc, err := json.Marshal(map[string]T{"x": v})
	var read map[string]T
	if err != nil || json.Unmarshal(doc, &read) != nil || read["x"] != v {
		t.Errorf("%v went through JSON as %s and came back as %v", v, doc, read["x"])
	}
}

func refuses[T any, P interface {
	*T
	encoding.TextUnmarshaler
}](t *testing.T, texts ...string) {
	t.Helper()
	for _, s := range texts {
		var v T
		if err := P(&v).UnmarshalText([]byte(s)); err == nil {
			t.Errorf("%q is read as %v", s, v)
		}
	}
}

// The words are part of the contract and the numbers stand in the tables.
func TestNamesAndNumbers(t *testing.T) {
	t.Parallel()
	for i, name := range []string{"PENDING", "EXECUTING", "EXECUTED", "FAILED", "CANCELLED"} {
		roundTrip(t, holdfast.Status(i+1), name)
	}
	refuses[holdfast.Status](t, "", "pending", "UNKNOWN", "EXECUTED ", "1")
	for i, name := range []string{"", "paid", "refused"} {
		roundTrip(t, holdfast.Verdict(i), name)
	}
	refuses[holdfast.Verdict](t, "PAID", "unknown", "1")
	for i, name := range []string{"open", "banned", "closed"} {
		roundTrip(t, holdfast.AccountStatus(i+1), name)
	}
	refuses[holdfast.AccountStatus](t, "", "OPEN", "frozen")
	for i, name := range []string{"available", "held", "transit", "issuer"} {
		roundTrip(t, holdfast.Book(i+1), name)
	}
	refuses[holdfast.Book](t, "", "escrow")
	for i, name := range []string{"reserve", "settle", "credit", "refund", "cancel", "deposit", "withdraw"} {
		roundTrip(t, holdfast.Movement(i+1), name)
	}
	refuses[holdfast.Movement](t, "", "transfer")
	roundTrip(t, holdfast.NewHoldID(7, 8, 9), "00000000-0007-8008-8000-000000000009")
	roundTrip(t, holdfast.UserID{15: 1}, "00000000-0000-0000-0000-000000000001")
	refuses[holdfast.HoldID](t, "", "x")
	refuses[holdfast.UserID](t, "", "x")
	for _, odd := range []fmt.Stringer{holdfast.Status(-1), holdfast.Status(6), holdfast.AccountStatus(0), holdfast.AccountStatus(4),
		holdfast.Book(0), holdfast.Book(5), holdfast.Movement(0), holdfast.Movement(8)} {
		if s := odd.String(); s == "" {
			t.Errorf("%T has no name for a number nobody knows", odd)
		}
	}
}

// Times that have not come and a verdict that was not given are left out.
func TestHoldInJSON(t *testing.T) {
	t.Parallel()
	at := time.Date(2031, 2, 3, 4, 5, 6, 789e6, time.UTC)
	h := holdfast.Hold{ID: holdfast.NewHoldID(at.UnixMilli(), 3, 1), Status: holdfast.Pending, Sender: holdfast.UserID{15: 1},
		Recipient: holdfast.UserID{15: 2}, Amount: holdfast.MaxAmount, Currency: "RBX", UnlockAt: at, CreatedAt: at.Add(-time.Hour)}
	doc, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"hold_id":"` + h.ID.String() + `","status":"PENDING","sender_id":"00000000-0000-0000-0000-000000000001",` +
		`"recipient_id":"00000000-0000-0000-0000-000000000002","amount":9007199254740991,"currency":"RBX",` +
		`"unlock_at":"2031-02-03T04:05:06.789Z","created_at":"2031-02-03T03:05:06.789Z"}`
	if string(doc) != want {
		t.Errorf("a pending hold is\n%s, want\n%s", doc, want)
	}
	var back holdfast.Hold
	if err := json.Unmarshal(doc, &back); err != nil || back != h {
		t.Errorf("it came back as %+v, %v", back, err)
	}
}

func TestHoldIDPrior(t *testing.T) {
	t.Parallel()
	id := holdfast.NewHoldID(1<<20, 0, 0)
	id[6], id[8] = 0, 0
	if p := id.Prior(); bytes.Compare(p[:], id[:]) >= 0 || p.UnlockAtMS() != 1<<20-1 || p[15] != 0xff {
		t.Errorf("prior of %s is %s", id, p)
	}
	if (holdfast.HoldID{}).Prior() != (holdfast.HoldID{}) {
		t.Error("nothing is below the first")
	}
}
