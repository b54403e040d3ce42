package chaos

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Where a storm strikes: at the end of a statement that changes balances, or in
// the commit, after the statement has sent its rows.
const (
	afterUpdate = `CREATE TRIGGER chaos_storm AFTER UPDATE ON accounts FOR EACH STATEMENT EXECUTE FUNCTION chaos_storm()`
	inCommit    = `CREATE CONSTRAINT TRIGGER chaos_storm AFTER INSERT OR UPDATE ON holds DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION chaos_storm()`
)

const (
	// The sequence counts what was struck: it is not rolled back.
	stormSQL = `
CREATE SEQUENCE IF NOT EXISTS chaos_struck;
CREATE OR REPLACE FUNCTION chaos_storm() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $f$
BEGIN
	IF random() < %[2]g THEN
		PERFORM nextval('chaos_struck');
		RAISE EXCEPTION 'struck by the harness' USING ERRCODE = '%[1]s';
	END IF;
	RETURN NULL;
END $f$;
DROP TRIGGER IF EXISTS chaos_storm ON accounts;
DROP TRIGGER IF EXISTS chaos_storm ON holds;
%[3]s`

	stormsSQL = `SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM chaos_struck`
)

var stormOverSQL = []string{`DROP TRIGGER IF EXISTS chaos_storm ON accounts`, `DROP TRIGGER IF EXISTS chaos_storm ON holds`,
	`DROP FUNCTION IF EXISTS chaos_storm()`}

// clear runs statements one by one until each is done: what locks tables under
// load may be the victim of a deadlock, and a fault that stays is no fault of
// the product.
func (r *Run) clear(ctx context.Context, shard int, statements ...string) error {
	for _, sql := range statements {
		err := r.exec(ctx, shard, sql)
		for try := 1; err != nil && try < 10; try++ {
			if r.Wait(ctx, 200*time.Millisecond) != nil {
				break
			}
			err = r.exec(ctx, shard, sql)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// errorStorm lets a share of what a trigger sees fail with an error code.
func errorStorm(trigger, code string, share float64) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) (err error) {
		defer func() {
			for i := range r.Cluster.Shards() {
				err = errors.Join(err, r.clear(context.WithoutCancel(ctx), i, stormOverSQL...))
			}
		}()
		for i := range r.Cluster.Shards() {
			if err := r.exec(ctx, i, fmt.Sprintf(stormSQL, code, share, trigger)); err != nil {
				return err
			}
		}
		before, err := r.sum(ctx, stormsSQL)
		if err != nil {
			return err
		}
		if err := r.Wait(ctx, 4*time.Second); err != nil {
			return err
		}
		after, err := r.sum(ctx, stormsSQL)
		r.Struck(int(after - before))
		return err
	}
}
