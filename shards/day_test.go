package shards

import (
	"bytes"
	"testing"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

func TestDay(t *testing.T) {
	t.Parallel()
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, c := range []struct{ at, want string }{
		{"2026-11-22T00:00:00Z", "20261122"},
		{"2026-11-22T23:59:59.999Z", "20261122"},
		{"2026-11-23T00:00:00Z", "20261123"},
		{"2026-11-23T00:30:00+01:00", "20261122"}, // the day is UTC's, not the clock's on the wall
		{"2026-11-22T20:00:00-05:00", "20261123"},
		{"1969-12-31T23:59:59Z", "19691231"},
		{"2028-02-29T12:00:00Z", "20280229"},
	} {
		if got := DayAt(at(c.at)).String(); got != c.want {
			t.Errorf("DayAt(%s) = %s, want %s", c.at, got, c.want)
		}
	}
}

func TestDayOf(t *testing.T) {
	t.Parallel()
	midnight := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC).UnixMilli()
	for bucket := range holdfast.Buckets {
		if got := DayOf(holdfast.NewHoldID(midnight-1, bucket, ^uint64(0))); got != "20261122" {
			t.Fatalf("the last id of the day with bucket %d is on %s", bucket, got)
		}
		if got := DayOf(holdfast.NewHoldID(midnight, bucket, 0)); got != "20261123" {
			t.Fatalf("the first id of the day with bucket %d is on %s", bucket, got)
		}
	}
}

func TestDayBounds(t *testing.T) {
	t.Parallel()
	day, err := ParseDay("20261122")
	if err != nil {
		t.Fatal(err)
	}
	from, to := day.Bounds()
	first := holdfast.NewHoldID(day.Start().UnixMilli(), 0, 0)
	last := holdfast.NewHoldID((day+1).Start().UnixMilli()-1, holdfast.Buckets-1, ^uint64(0))
	if bytes.Compare(from[:], first[:]) > 0 || bytes.Compare(last[:], to[:]) >= 0 {
		t.Errorf("bounds [%s, %s) leave out %s or %s", from, to, first, last)
	}
	if _, next := (day - 1).Bounds(); next != from {
		t.Errorf("the day before ends at %s, this one begins at %s", next, from)
	}
	if _, err := ParseDay("2026-11-22"); err == nil {
		t.Error("a day with dashes was read")
	}
}

func TestBuckets(t *testing.T) {
	t.Parallel()
	const n, shards = 400_000, 4
	m := holdfast.EvenShardMap(shards)
	perShard, perBucket := make([]int, shards), make([]int, holdfast.Buckets)
	for i := range n { // ids that share 12 bytes, as ids of a counter do
		u := holdfast.UserID{12: byte(i >> 24), 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}
		perShard[m.OfUser(u)]++
		perBucket[u.Bucket()]++
	}
	for s, got := range perShard {
		if got < n/shards*98/100 || got > n/shards*102/100 {
			t.Errorf("shard %d has %d of %d users", s, got, n)
		}
	}
	// 97.7 expected per bucket, standard deviation 9.9: six of them are never seen.
	for b, got := range perBucket {
		if got < 38 || got > 157 {
			t.Errorf("bucket %d has %d of %d users", b, got, n)
		}
	}
}
