package holdfast

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"time"
)

// UserID is a user's UUID of any version.
type UserID [16]byte

// HoldID is a version-8 UUID (RFC 9562) that says where and when: 48 bits of
// unlock_at in Unix milliseconds, 12 bits of the sender's bucket, 62 random
// bits. Byte order is maturity order, which makes the primary key of the holds
// table its maturity index.
type HoldID [16]byte

// NewHoldID makes an id; only the low 62 bits of random are used. bucket is
// 0 … Buckets-1.
func NewHoldID(unlockAtMS int64, bucket int, random uint64) HoldID {
	var id HoldID
	ms := uint64(unlockAtMS)
	id[0], id[1], id[2] = byte(ms>>40), byte(ms>>32), byte(ms>>24)
	id[3], id[4], id[5] = byte(ms>>16), byte(ms>>8), byte(ms)
	id[6], id[7] = 0x80|byte(bucket>>8)&0x0f, byte(bucket)
	binary.BigEndian.PutUint64(id[8:], random&(1<<62-1)|1<<63)
	return id
}

// UnlockAtMS is the maturity in Unix milliseconds.
func (id HoldID) UnlockAtMS() int64 {
	return int64(binary.BigEndian.Uint64(id[:8]) >> 16)
}

// UnlockAt is the maturity.
func (id HoldID) UnlockAt() time.Time { return time.UnixMilli(id.UnlockAtMS()).UTC() }

// Bucket is the sender's bucket, 0 … Buckets-1.
func (id HoldID) Bucket() int { return int(id[6]&0x0f)<<8 | int(id[7]) }

// Valid reports whether the id has the version and variant of a hold id.
func (id HoldID) Valid() bool { return id[6]>>4 == 8 && id[8]>>6 == 2 }

// IsZero reports whether the id is unset.
func (id HoldID) IsZero() bool { return id == HoldID{} }

// Prior is the id just below, so that "after id.Prior()" includes id.
func (id HoldID) Prior() HoldID {
	for i := len(id) - 1; i >= 0; i-- {
		id[i]--
		if id[i] != 0xff {
			return id
		}
	}
	return HoldID{} // below the first is still the first
}

func (id HoldID) String() string { return formatUUID(id) }

// MarshalText writes the canonical form.
func (id HoldID) MarshalText() ([]byte, error) { return []byte(formatUUID(id)), nil }

// UnmarshalText reads the canonical form.
func (id *HoldID) UnmarshalText(b []byte) error {
	u, err := parseUUID(string(b))
	*id = u
	return err
}

// ParseHoldID reads a UUID in its 36-character form. It does not ask for
// version 8: an id that no hold can have is "not found", not malformed.
func ParseHoldID(s string) (HoldID, error) {
	u, err := parseUUID(s)
	return HoldID(u), err
}

// ParseUserID reads a UUID of any version in its 36-character form. The nil
// UUID is refused: it marks "no user" in the ledger.
func ParseUserID(s string) (UserID, error) {
	u, err := parseUUID(s)
	if err == nil && u == [16]byte{} {
		err = fmt.Errorf("%w: the nil UUID is not a user", ErrInvalid)
	}
	return UserID(u), err
}

// Bucket is the user's slice of the keyspace, 0 … Buckets-1: FNV-1a over the 16
// bytes, finished with a 64-bit mix because the ids may share long prefixes.
func (u UserID) Bucket() int {
	h := uint64(14695981039346656037)
	for _, b := range u {
		h = (h ^ uint64(b)) * 1099511628211
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	return int((h ^ h>>33) % Buckets)
}

// IsZero reports whether the id is unset.
func (u UserID) IsZero() bool { return u == UserID{} }

func (u UserID) String() string { return formatUUID(u) }

// MarshalText writes the canonical form.
func (u UserID) MarshalText() ([]byte, error) { return []byte(formatUUID(u)), nil }

// UnmarshalText reads the canonical form.
func (u *UserID) UnmarshalText(b []byte) error {
	v, err := parseUUID(string(b))
	*u = v
	return err
}

func formatUUID(u [16]byte) string {
	var s [36]byte
	hex.Encode(s[0:8], u[0:4])
	s[8] = '-'
	hex.Encode(s[9:13], u[4:6])
	s[13] = '-'
	hex.Encode(s[14:18], u[6:8])
	s[18] = '-'
	hex.Encode(s[19:23], u[8:10])
	s[23] = '-'
	hex.Encode(s[24:36], u[10:16])
	return string(s[:])
}

func parseUUID(s string) (u [16]byte, err error) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return u, fmt.Errorf("%w: not a UUID of the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx", ErrInvalid)
	}
	digits := s[0:8] + s[9:13] + s[14:18] + s[19:23] + s[24:36]
	if _, err := hex.Decode(u[:], []byte(digits)); err != nil {
		return [16]byte{}, fmt.Errorf("%w: not a UUID: %v", ErrInvalid, err)
	}
	return u, nil
}

// ShardMap says which shard owns which bucket. Every shard stores it too; a
// process with another epoch is refused by the shard, not wrong.
type ShardMap struct {
	Epoch  int64
	Shards int            // number of shards, numbered from 0
	Owner  [Buckets]int16 // bucket → shard
}

// EvenShardMap spreads the buckets over n shards in contiguous runs, epoch 1.
func EvenShardMap(n int) *ShardMap {
	m := &ShardMap{Epoch: 1, Shards: n}
	for b := range m.Owner {
		m.Owner[b] = int16(b * n / Buckets)
	}
	return m
}

// OfUser is the shard that owns the user's accounts.
func (m *ShardMap) OfUser(u UserID) int { return int(m.Owner[u.Bucket()]) }

// OfHold is the shard that owns the hold: its sender's.
func (m *ShardMap) OfHold(id HoldID) int { return int(m.Owner[id.Bucket()]) }
