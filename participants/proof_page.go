package participants

import (
	"bytes"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/holdfast-escrow/holdfast/internal/branch"
)

// anyTime is a time that may be −infinity.
type anyTime = pgtype.Timestamptz

// cutPage finds up to where both sides of a page are complete and drops the
// rest: the side that was cut off by the limit says how far.
func cutPage(a branch.TransitAnswer, limit int) branch.TransitAnswer {
	for _, side := range [][]branch.TransitItem{a.Paid, a.Credits} {
		if len(side) < limit {
			continue
		}
		if last := side[len(side)-1].ID; !a.More || bytes.Compare(last[:], a.Through[:]) < 0 {
			a.More, a.Through = true, last
		}
	}
	if a.More {
		a.Paid, a.Credits = upTo(a.Paid, a.Through[:]), upTo(a.Credits, a.Through[:])
	}
	return a
}

func upTo(side []branch.TransitItem, through []byte) []branch.TransitItem {
	for i := range side {
		if bytes.Compare(side[i].ID[:], through) > 0 {
			return side[:i]
		}
	}
	return side
}
