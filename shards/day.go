package shards

import (
	"fmt"
	"time"

	"github.com/holdfast-escrow/holdfast"
)

const dayMS = 24 * 60 * 60 * 1000

// dayLayout is the suffix of a partition's name.
const dayLayout = "20060102"

// Day is one day in UTC, counted from 1970-01-01. Partitions are cut at its
// bounds; no server's or session's time zone has a say in it.
type Day int

// DayAt is the day that holds t.
func DayAt(t time.Time) Day { return dayAtMS(t.UnixMilli()) }

// DayOf is the suffix of the partitions of holds and barrier that an id belongs
// to: the UTC day of its maturity as 20061102.
func DayOf(id holdfast.HoldID) string { return dayAtMS(id.UnlockAtMS()).String() }

// dayAtMS rounds down, also before 1970.
func dayAtMS(ms int64) Day {
	d := ms / dayMS
	if ms%dayMS < 0 {
		d--
	}
	return Day(d)
}

// ParseDay reads a suffix such as 20061102.
func ParseDay(suffix string) (Day, error) {
	t, err := time.Parse(dayLayout, suffix)
	if err != nil {
		return 0, fmt.Errorf("%w: %q is not a day of the form 20061102", holdfast.ErrInvalid, suffix)
	}
	return DayAt(t), nil
}

// Start is the first instant of the day.
func (d Day) Start() time.Time { return time.UnixMilli(int64(d) * dayMS).UTC() }

func (d Day) String() string { return d.Start().Format(dayLayout) }

// Bounds are the lowest id of the day and the lowest id of the next one: the
// time bits of an id with every other bit zero. They are not ids of holds.
func (d Day) Bounds() (from, to holdfast.HoldID) { return lowest(d), lowest(d + 1) }

func lowest(d Day) (id holdfast.HoldID) {
	ms := uint64(d) * dayMS
	id[0], id[1], id[2] = byte(ms>>40), byte(ms>>32), byte(ms>>24)
	id[3], id[4], id[5] = byte(ms>>16), byte(ms>>8), byte(ms)
	return id
}
