//go:build planted

package planted

// Bugs in the ledger's SQL.
var ledgerBugs = []Bug{
	{
		Name:    "try_without_barrier",
		About:   "Try leaves no barrier row and looks for none: a Try that was held up on the way reserves coins after its Cancel.",
		Catches: "suspended-try: the try after its cancel is answered ok and reserves (I11); each hold in every cut: I11 barrier_missing (01, try)",
		Edits: []Edit{
			{"shards/migrations/0002_money.sql", `    IF EXISTS (SELECT FROM unnest(p_id, v_code) t(g, c) WHERE g IS NOT NULL AND c IS NULL) THEN
`, `    IF false THEN
`},
			{"shards/migrations/0002_money.sql", `        PERFORM holdfast_barrier(v_now, array_agg(id), array_agg(1::smallint), 1::smallint, array_agg(o))
        FROM unnest(v_id, p_bucket, v_code, p_id) t(id, o, c, given) WHERE c IS NULL AND given IS NULL HAVING count(*) > 0;
`, ``},
		},
	},
	{
		Name:    "null_cancel_without_row",
		About:   "A Cancel that finds no hold answers null_cancel and leaves no row, so that its Try, when it comes, is not suspended.",
		Catches: "suspended-try: the try after its cancel is answered ok and reserves (I11); the ledger proof cannot see it",
		Edits: []Edit{{"shards/migrations/0004_end.sql", `        WITH new AS (
            INSERT INTO barrier (gid, created_at, branch, op, owner_bucket)
            SELECT g, v_now, 1, 1, o FROM unnest(p_ids, p_null, p_bucket) t(g, nul, o) WHERE nul ORDER BY g
            ON CONFLICT DO NOTHING RETURNING gid)
        SELECT coalesce(array_agg(gid), '{}') INTO v_absent FROM new;
        INSERT INTO barrier (gid, created_at, branch, op, owner_bucket)
        SELECT g, v_now, 1, 3, o FROM unnest(p_ids, p_bucket) t(g, o) WHERE g = ANY (v_absent) ORDER BY g
        ON CONFLICT DO NOTHING;
`, `        SELECT coalesce(array_agg(g ORDER BY g), '{}') INTO v_absent FROM unnest(p_ids, p_null) t(g, nul)
        WHERE nul AND NOT EXISTS (SELECT FROM barrier b WHERE b.gid = g);
`}},
	},
	{
		Name:    "claim_without_status",
		About:   "The claim believes its trigger: it takes whatever is due and has no verdict, cancelled holds and those of another driver too.",
		Catches: "a cancelled hold whose trigger is still in Redis: I6 (CANCELLED and executed), I5, I2",
		Edits: []Edit{
			{"participants/ledger_drive.go", `SET status = 2, claimed_at = clock_timestamp(),
`, `SET status = 2, cancelled_at = NULL, claimed_at = clock_timestamp(),
`},
			{"participants/ledger_drive.go", `WHERE id = ANY ($2) AND status = 1 AND unlock_at <= clock_timestamp()`, `WHERE id = ANY ($2) AND verdict IS NULL AND unlock_at <= clock_timestamp()`},
			{"coordinator/drive.go", `case endedLately(r.Hold, b.started):`, `case r.Hold.Status == holdfast.Executed:`},
		},
	},
	{
		Name:    "cancel_ignores_unlock_at",
		About:   "Cancel asks only whether the hold is still PENDING, so that a matured hold can be taken back while its payment is due.",
		Catches: "cancel after maturity while nothing is claimed (breaker open, scheduler down): I6, I10 (cancelled_at ≥ unlock_at)",
		Edits: []Edit{{"shards/migrations/0004_end.sql", `            WHEN p_operator[i] = '' AND h.unlock_at <= v_now THEN 'hold_matured'
`, ``}},
	},
	{
		Name:    "lost_update",
		About:   "A balance is read, added to and written back, as an ORM does it: what another transaction added in between is overwritten.",
		Catches: "celebrity recipient, many credits at once: I1 (balance differs from the replay of its entries)",
		Edits: []Edit{
			{"shards/migrations/0002_money.sql", `    ), changed AS (
        UPDATE accounts a SET available = a.available + t.available,`, `    ), seen AS MATERIALIZED (
        SELECT x.user_id, x.currency, x.available FROM accounts x JOIN t ON x.user_id = t.u AND x.currency = t.c
    ), changed AS (
        UPDATE accounts a SET available = s.available + t.available,`},
			{"shards/migrations/0002_money.sql", `        FROM t WHERE a.user_id = t.u AND a.currency = t.c
`, `        FROM t JOIN seen s ON s.user_id = t.u AND s.currency = t.c WHERE a.user_id = t.u AND a.currency = t.c
`},
		},
	},
	{
		Name:    "idempotency_outside",
		About:   "Whether a key is known is asked before anything is written, and the row is written by whoever comes last: right for retries, wrong for two at once.",
		Catches: "the same key 100 times at once through both coordinators (try_uncommitted:delay=50ms:1+ makes it certain): I9",
		Edits: []Edit{{"shards/migrations/0002_money.sql", `        ORDER BY s, k
        ON CONFLICT DO NOTHING RETURNING idempotency.hold_id)
`, `        WHERE NOT EXISTS (SELECT FROM idempotency i WHERE i.sender = s AND i.key = k) ORDER BY s, k
        ON CONFLICT (sender, key) DO UPDATE SET hold_id = excluded.hold_id, refusal = NULL RETURNING idempotency.hold_id)
`}},
	},
	{
		Name:    "credit_without_barrier",
		About:   "A credit that is repeated pays again: its barrier row is written, but nobody looks whether it was new.",
		Catches: "exit or error at recipient_credited: I2 (a hold credited twice), I7",
		Edits: []Edit{{"shards/migrations/0004_end.sql", `    SELECT coalesce(array_agg(gid ORDER BY gid), '{}') INTO v_new FROM new;
    IF cardinality(v_new) < cardinality(p_ids) THEN
`, `    SELECT array_agg(g ORDER BY g) INTO v_new FROM unnest(p_ids) g;
    IF cardinality(v_new) < cardinality(p_ids) THEN
`}},
	},
	{
		Name:    "gateway_clock_claim",
		About:   "Whether a hold is due is decided by the clock of the process that claims, not by its shard's.",
		Catches: "shard-behind-early-triggers: I8 early (claimed before its maturity); a participant's clock 1.8 s ahead and early triggers",
		Edits: []Edit{
			{"participants/ledger_drive.go", `status = 1 AND unlock_at <= clock_timestamp()`, `status = 1 AND unlock_at <= to_timestamp($4::bigint / 1000.0)`},
			{"participants/ledger_drive.go", `return []any{lease} }`, `return []any{lease, l.now()} }`},
			{"participants/ledger.go", `	impossible func(string)
}
`, `	impossible func(string)
	now        func() int64
}
`},
			{"participants/node.go", `impossible: cfg.OnImpossible}
`, `impossible: cfg.OnImpossible, now: func() int64 { return cfg.Now().UnixMilli() }}
`},
		},
	},
}
