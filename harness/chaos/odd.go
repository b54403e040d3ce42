package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-escrow/holdfast"
)

func oddFaults() []Fault {
	return []Fault{
		{Name: "odd-documents", Theme: "protocol", Quick: true, Covers: "I14, I15",
			About: "Creates with a field twice, in another case, with a fraction or text behind: refused, no account changes.", Strike: oddDocuments},
		{Name: "tampered-ledger", Theme: "protocol", Cluster: "tampered", Covers: "7, I2",
			About: "A credit that no verdict explains is put into the books by hand: the product's own proof must find it.", Strike: tamperLedger},
	}
}

// oddDocuments are creates that a lenient reader takes; each says its own key.
var oddForms = []string{
	`{%[1]s,"amount":1,"amount":2,"unlock_in_seconds":600}`,
	`{%[1]s,"amount":1,"unlock_in_seconds":600,"unlock_in_seconds":1}`,
	`{%[1]s,"Amount":1,"unlock_in_seconds":600}`,
	`{%[1]s,"amount":1,"AMOUNT":5,"unlock_in_seconds":600}`,
	`{%[1]s,"amount":1.5,"unlock_in_seconds":600}`,
	`{%[1]s,"amount":1e2,"unlock_in_seconds":600}`,
	`{%[1]s,"amount":9007199254740993,"unlock_in_seconds":600}`,
	`{%[1]s,"amount":"7","unlock_in_seconds":600}`,
	`{%[1]s,"amount":1,"unlock_in_seconds":600,"surprise":true}`,
	`{%[1]s,"amount":1,"unlock_in_seconds":600} trailing`,
	`{%[1]s,"amount":1,"unlock_in_seconds":600.5}`,
	`{%[1]s,"amount":null,"unlock_in_seconds":600}`,
}

func oddDocuments(ctx context.Context, r *Run) error {
	for i, form := range oddForms {
		sender, recipient := r.World.Senders[0], r.World.Recipients[0]
		body := fmt.Sprintf(form, fmt.Sprintf(`"sender_id":%q,"recipient_id":%q,"idempotency_key":%q`, sender, recipient, r.World.Key("odd-%d", i)))
		status, text, err := r.post(ctx, body)
		if err != nil {
			return err
		}
		r.Struck(1)
		if status/100 != 4 {
			r.Fail("%s was answered %d %s", body, status, text)
		}
	}
	return nil
}

func (r *Run) post(ctx context.Context, body string) (int, string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.Cluster.APIs()[0]+"/v1/holds", strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+r.Cluster.Token())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	return resp.StatusCode, string(text), err
}

const (
	// forgeSQL is the product's own credit, of a hold of another shard that
	// nobody has ever paid.
	forgeSQL = `SELECT code FROM holdfast_credit((SELECT epoch FROM shard_self), ARRAY[$1::uuid], ARRAY[$2::uuid], ARRAY['RBX'], ARRAY[5::bigint], ARRAY[$3::smallint])`
	// undoSQL takes it back, for the checker that comes after.
	undoTriggersSQL = `DO $$ DECLARE t record; BEGIN
		FOR t IN SELECT tgrelid::regclass::text AS name, tgname FROM pg_trigger WHERE NOT tgisinternal AND tgparentid = 0
			AND tgrelid IN (SELECT relid FROM pg_partition_tree('entries') UNION ALL SELECT relid FROM pg_partition_tree('barrier')) LOOP
			EXECUTE format('ALTER TABLE %%s %[1]s TRIGGER %%I', t.name, t.tgname);
		END LOOP; END $$`
	undoEntriesSQL = `DELETE FROM entries WHERE ref = $1`
	undoBarrierSQL = `DELETE FROM barrier WHERE gid = $1`
	undoBalanceSQL = `UPDATE accounts SET available = available - 5, seq = seq - 1 WHERE user_id = $1`
)

// tamperLedger waits for rest, so that nothing but the forged credit is on its
// way, and no cut of the checker sees it come and go.
func tamperLedger(ctx context.Context, r *Run) error {
	r.endLoad()
	if err := r.Checker.WaitSettled(ctx, 200*time.Millisecond); err != nil {
		return err
	}
	r.endCuts()
	recipient := r.World.Recipients[0]
	shard := r.World.Map.OfUser(recipient)
	stranger := r.World.Senders[0]
	for _, u := range r.World.Senders {
		if r.World.Map.OfUser(u) != shard {
			stranger = u
		}
	}
	id := holdfast.NewHoldID(time.Now().Add(-time.Second).UnixMilli(), stranger.Bucket(), r.Rand.Uint64())
	var code string
	if err := r.row(ctx, shard, forgeSQL, &code, [16]byte(id), [16]byte(recipient), int16(recipient.Bucket())); err != nil || code != "ok" {
		return fmt.Errorf("forge a credit: %q, %w", code, err)
	}
	r.Struck(1)
	proof, text, proofErr := r.API(0).Prove(ctx)
	if proofErr == nil && proof.OK {
		r.Fail("the ledger proof says that the books are whole although a credit has no verdict: %s", text)
	}
	err := errors.Join(proofErr, r.undo(ctx, shard, id, recipient))
	// A checker that has not seen it.
	r.Checker.Close()
	r.Checker = r.theater.checker(r)
	return err
}

func (r *Run) undo(ctx context.Context, shard int, id holdfast.HoldID, recipient holdfast.UserID) error {
	conn, err := r.connect(ctx, shard)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf(undoTriggersSQL, "DISABLE")); err != nil {
			return err
		}
		for _, step := range []struct {
			sql string
			arg [16]byte
		}{{undoEntriesSQL, id}, {undoBarrierSQL, id}, {undoBalanceSQL, recipient}} {
			if _, err := tx.Exec(ctx, step.sql, step.arg); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, fmt.Sprintf(undoTriggersSQL, "ENABLE ALWAYS"))
		return err
	})
}
