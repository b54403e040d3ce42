package bench

import (
	"encoding/binary"
	"math/rand/v2"

	"github.com/holdfast-escrow/holdfast"
)

// Kinds of users of a run; a sender is never a recipient.
const (
	kindSender = iota + 1
	kindRecipient
)

// userAt is the i-th user of a kind. The ids are computed instead of kept: a
// run may have millions. seed tells runs apart.
func userAt(seed uint64, kind, i int) holdfast.UserID {
	var u holdfast.UserID
	binary.BigEndian.PutUint64(u[:8], mix(seed^uint64(kind)<<56^uint64(i)))
	binary.BigEndian.PutUint64(u[8:], mix(seed+uint64(kind)<<48+uint64(i)+1<<63))
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return u
}

// mix spreads consecutive numbers over all 64 bits (SplitMix64's finisher).
func mix(z uint64) uint64 {
	z += 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// picker draws users: uniformly, or by a Zipf law in which user 0 is the most
// frequent.
type picker struct {
	n    int
	rng  *rand.Rand
	zipf *rand.Zipf
}

// newPicker: exponent 0 is uniform, otherwise above 1.
func newPicker(rng *rand.Rand, n int, exponent float64) picker {
	p := picker{n: n, rng: rng}
	if exponent > 1 && n > 1 {
		p.zipf = rand.NewZipf(rng, exponent, 1, uint64(n-1))
	}
	return p
}

func (p *picker) next() int {
	if p.zipf != nil {
		return int(p.zipf.Uint64())
	}
	return p.rng.IntN(p.n)
}
