package shards

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-escrow/holdfast"
)

// ErrMiswired says that a DSN leads to a database that is not the shard it
// stands for. No money may move until a person has looked.
var ErrMiswired = errors.New("wrong wiring")

// ErrNotMigrated says that a database has no tables of ours yet.
var ErrNotMigrated = errors.New("not migrated")

// identity is who a shard says it is.
type identity struct {
	cluster [16]byte
	shard   int
	shards  int
	epoch   int64
}

// identityExistsSQL keeps the question about a table that is not there from
// being an error, which would end the transaction it is asked in.
const identityExistsSQL = `SELECT to_regclass('shard_self') IS NOT NULL`

const identitySQL = `SELECT cluster_id, shard, shards, epoch FROM shard_self`

// queryer is what a connection, a pool and a transaction have in common.
type queryer interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// readIdentity answers found = false for a database that is still empty.
func readIdentity(ctx context.Context, q queryer) (id identity, found bool, err error) {
	if err := q.QueryRow(ctx, identityExistsSQL).Scan(&found); err != nil || !found {
		return id, false, err
	}
	err = q.QueryRow(ctx, identitySQL).Scan(&id.cluster, &id.shard, &id.shards, &id.epoch)
	if errors.Is(err, pgx.ErrNoRows) {
		return id, false, nil
	}
	return id, err == nil, err
}

const readMapSQL = `
SELECT s.epoch, s.shards, m.owner
FROM shard_self s JOIN shard_map m ON m.epoch = s.epoch`

// readMap reads the map that a shard works with.
func readMap(ctx context.Context, q queryer) (*holdfast.ShardMap, error) {
	m := &holdfast.ShardMap{}
	var owner []int16
	if err := q.QueryRow(ctx, readMapSQL).Scan(&m.Epoch, &m.Shards, &owner); err != nil {
		return nil, fmt.Errorf("read shard map: %w", err)
	}
	copy(m.Owner[:], owner)
	return m, checkMap(m, m.Shards)
}

// checkMap refuses a map that leaves a bucket without one of the n shards.
func checkMap(m *holdfast.ShardMap, n int) error {
	if m.Shards != n {
		return fmt.Errorf("%w: the shard map is for %d shards, but %d DSNs are given", ErrMiswired, m.Shards, n)
	}
	for b, o := range m.Owner {
		if o < 0 || int(o) >= n {
			return fmt.Errorf("%w: the shard map gives bucket %d to shard %d of %d", ErrMiswired, b, o, n)
		}
	}
	return nil
}

// sameMap compares the map of the process with that of a shard.
func sameMap(shard int, stored, ours *holdfast.ShardMap) error {
	if stored.Epoch != ours.Epoch {
		return fmt.Errorf("%w: DSN %d stores shard map epoch %d, this process has epoch %d", ErrMiswired, shard, stored.Epoch, ours.Epoch)
	}
	if stored.Owner != ours.Owner {
		return fmt.Errorf("%w: DSN %d stores another shard map under the same epoch %d", ErrMiswired, shard, stored.Epoch)
	}
	return nil
}

// check holds what the database at DSN i says against what it should be.
// DSNs count from 0, like shards. A zero cluster is not known yet.
func (id identity) check(i, n int, cluster [16]byte) error {
	switch {
	case id.shards != n:
		return fmt.Errorf("%w: DSN %d leads to a cluster of %d shards, but %d DSNs are given", ErrMiswired, i, id.shards, n)
	case id.shard != i:
		return fmt.Errorf("%w: DSN %d leads to shard %d; list the DSNs in the order of the shards, from 0", ErrMiswired, i, id.shard)
	case cluster != [16]byte{} && id.cluster != cluster:
		return fmt.Errorf("%w: DSN %d leads to cluster %s, the others to cluster %s", ErrMiswired, i, short(id.cluster), short(cluster))
	}
	return nil
}

// short is enough of a cluster id for a person to tell two apart.
func short(id [16]byte) string { return hex.EncodeToString(id[:4]) }

// newCluster makes a random (version 4) UUID.
func newCluster() (id [16]byte) {
	rand.Read(id[:]) // never fails: it ends the process instead
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return id
}

const (
	insertSelfSQL = `INSERT INTO shard_self (cluster_id, shard, shards, epoch) VALUES ($1, $2, $3, $4)`
	insertMapSQL  = `INSERT INTO shard_map (epoch, owner) VALUES ($1, $2)`
)

// settle writes identity and map on first use and verifies them ever after.
// The caller holds the shard's migration lock.
func settle(ctx context.Context, conn *pgx.Conn, shard int, cluster [16]byte, m *holdfast.ShardMap) error {
	id, found, err := readIdentity(ctx, conn)
	if err != nil {
		return fmt.Errorf("DSN %d: read identity: %w", shard, err)
	}
	if found {
		if err := id.check(shard, m.Shards, cluster); err != nil {
			return err
		}
		stored, err := readMap(ctx, conn)
		if err != nil {
			return fmt.Errorf("DSN %d: %w", shard, err)
		}
		return sameMap(shard, stored, m)
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, insertSelfSQL, cluster, shard, m.Shards, m.Epoch); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, insertMapSQL, m.Epoch, m.Owner[:])
		return err
	})
	if err != nil {
		return fmt.Errorf("DSN %d: write identity: %w", shard, err)
	}
	return nil
}
