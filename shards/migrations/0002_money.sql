-- The steps that move money. One call is one batch and one transaction. Every
-- function takes its locks in the same order, each kind sorted: idempotency
-- keys, barrier rows, holds, accounts; so two batches can wait for one another
-- but never in a circle. Rows of holds are addressed through the partition of
-- their day (p_day, 'YYYYMMDD' in UTC), so that a batch locks the tables of its
-- own days and not those of all of them. Ids come sorted and without repeats.
--
-- Errors that name a cause: HF001 stale shard map, HF002 impossible state,
-- HF003 a Try with a given id was refused (the message is the code),
-- HF004 issuance cap reached.

-- Every money transaction begins here: right shard map, a transaction id taken
-- before the clock is read (the watermark counts on that order), the time.
CREATE FUNCTION holdfast_begin(p_epoch bigint) RETURNS timestamptz
LANGUAGE plpgsql AS $$
DECLARE v_epoch bigint;
BEGIN
    SELECT s.epoch INTO v_epoch FROM shard_self s;
    IF v_epoch IS DISTINCT FROM p_epoch THEN
        RAISE EXCEPTION 'shard map epoch is %, the caller has %', v_epoch, p_epoch USING ERRCODE = 'HF001';
    END IF;
    PERFORM pg_current_xact_id();
    RETURN clock_timestamp();
END $$;

-- The one place where balances change and entries are written. Item i moves
-- p_amount[i] of one user from one book to another, which ones its movement
-- says: two entries, a debit and a credit, that sum to zero. Locks and updates
-- the accounts in ascending order, each once, and numbers the entries of each
-- account in the order of the items, each with the balance after it. The time
-- of posting is read under the locks, so that it never runs backwards within an
-- account. One statement fewer here is worth more than any other: nearly every
-- batch of the system comes through.
CREATE FUNCTION holdfast_post(p_user uuid[], p_currency text[], p_amount bigint[], p_ref uuid[], p_movement smallint[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    -- By movement: 1 reserve 2 settle 3 credit 4 refund 5 cancel 6 deposit
    -- 7 withdraw. Transit and issuer (books 3 and 4) have no balance row.
    c_from      CONSTANT smallint[] := '{1,2,3,2,2,4,1}';
    c_to        CONSTANT smallint[] := '{2,3,1,1,1,1,4}';
    c_available CONSTANT int[] := '{-1,0,1,1,1,1,-1}'; -- what it does to each balance,
    c_held      CONSTANT int[] := '{1,-1,0,-1,-1,0,0}';
    c_each      CONSTANT int[] := '{2,1,1,2,2,1,1}';   -- and how many of its entries have one
    v_updated int; v_wanted int; v_now timestamptz;
    v_available bigint[]; v_held bigint[]; v_seq bigint[];
BEGIN
    WITH t AS (
        SELECT u, c, sum(m * c_available[v])::bigint AS available, sum(m * c_held[v])::bigint AS held, sum(c_each[v]) AS n
        FROM unnest(p_user, p_currency, p_amount, p_movement) t(u, c, m, v) GROUP BY u, c ORDER BY u, c
    ), changed AS (
        UPDATE accounts a SET available = a.available + t.available, held = a.held + t.held, seq = a.seq + t.n
        FROM t WHERE a.user_id = t.u AND a.currency = t.c
        RETURNING a.user_id, a.currency, a.available - t.available AS available, a.held - t.held AS held, a.seq - t.n AS seq
    )
    SELECT (SELECT count(*) FROM t), count(*), array_agg(available ORDER BY user_id, currency),
           array_agg(held ORDER BY user_id, currency), array_agg(seq ORDER BY user_id, currency)
    INTO v_wanted, v_updated, v_available, v_held, v_seq FROM changed;
    IF v_updated <> v_wanted THEN
        RAISE EXCEPTION 'posting to % accounts found %', v_wanted, v_updated USING ERRCODE = 'HF002';
    END IF;
    v_now := clock_timestamp();
    INSERT INTO entries (posted_at, ref, user_id, amount, seq, balance_after, movement, book, currency)
    SELECT v_now, r, u, sign * m,
           CASE WHEN book <= 2 THEN v_seq[slot] + seq - CASE leg WHEN 1 THEN c_each[v] - 1 ELSE 0 END END,
           CASE book WHEN 1 THEN v_available[slot] + available WHEN 2 THEN v_held[slot] + held END, v, book, c
    FROM (SELECT u, c, m, r, v, ord, dense_rank() OVER (ORDER BY u, c) AS slot, sum(c_each[v]) OVER w AS seq,
                 (sum(m * c_available[v]) OVER w)::bigint AS available, (sum(m * c_held[v]) OVER w)::bigint AS held
          FROM unnest(p_user, p_currency, p_amount, p_ref, p_movement) WITH ORDINALITY AS t(u, c, m, r, v, ord)
          WINDOW w AS (PARTITION BY u, c ORDER BY ord)) x
    CROSS JOIN LATERAL (VALUES (1, c_from[v], -1), (2, c_to[v], 1)) AS l(leg, book, sign)
    ORDER BY ord, leg;
END $$;

-- Locks holds in ascending id and returns them as they are under the lock.
-- Ids whose day has no partition, or that do not exist, return nothing.
CREATE FUNCTION holdfast_lock_holds(p_day text[], p_ids uuid[]) RETURNS SETOF holds
LANGUAGE plpgsql ROWS 200 AS $$
DECLARE v_day text; v_ids uuid[];
BEGIN
    FOR v_day, v_ids IN SELECT d, array_agg(i ORDER BY i) FROM unnest(p_day, p_ids) t(d, i) GROUP BY d ORDER BY d LOOP
        CONTINUE WHEN to_regclass('holds_' || v_day) IS NULL;
        -- The whole row, as the result type says: a column that a later migration
        -- adds must not stop this function. Partitions have their parent's order.
        RETURN QUERY EXECUTE format(
            'SELECT h.* FROM holds_%s h WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE', v_day) USING v_ids;
    END LOOP;
END $$;

-- Inserts barrier rows of one op that must be new: the hold's own
-- compare-and-set has already decided, a row that exists all the same means an
-- impossible state.
CREATE FUNCTION holdfast_barrier(p_now timestamptz, p_gid uuid[], p_branch smallint[], p_op smallint, p_bucket smallint[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE v_n int;
BEGIN
    INSERT INTO barrier (gid, created_at, branch, op, owner_bucket)
    SELECT g, p_now, b, p_op, o FROM unnest(p_gid, p_branch, p_bucket) t(g, b, o) ORDER BY g, b
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS v_n = ROW_COUNT;
    IF v_n <> cardinality(p_gid) THEN
        RAISE EXCEPTION 'barrier (%, %): % of % rows are new', p_branch[1], p_op, v_n, cardinality(p_gid) USING ERRCODE = 'HF002';
    END IF;
END $$;

-- Makes the commit of a transaction that answers for an earlier one wait as that
-- one had to. With a synchronous standby, what can be read here may not have
-- reached it yet, and a commit that has written nothing does not wait: its answer
-- would vouch for what a failover can still lose.
CREATE FUNCTION holdfast_vouch() RETURNS void
LANGUAGE sql AS $$ SELECT pg_logical_emit_message(true, 'holdfast', '') $$;

-- Try. Items in arrival order. p_skip: only look the key up. p_id: given ids,
-- null where the id is made here, on this clock: p_delay_ms from now, or
-- p_unlock_ms; p_tail is its random last 16 hex digits.
CREATE FUNCTION holdfast_try(
    p_epoch bigint, p_sender uuid[], p_recipient uuid[], p_currency text[], p_amount bigint[],
    p_key text[], p_hash bytea[], p_unlock_ms bigint[], p_delay_ms bigint[], p_reference text[],
    p_bucket smallint[], p_tail text[], p_skip boolean[], p_id uuid[])
RETURNS TABLE (idx int, code text, hold_id uuid, refusal text, available bigint, unlock_at timestamptz, created_at timestamptz)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    n int := cardinality(p_sender);
    v_now timestamptz := holdfast_begin(p_epoch);
    v_floor uuid := (SELECT w.floor FROM watermark w); -- read after the transaction has its id
    v_now_ms bigint := floor(extract(epoch FROM v_now) * 1000);
    v_ms bigint[]; v_id uuid[]; v_code text[]; v_refusal text[]; v_available bigint[]; v_hold uuid[];
    v_new uuid[]; r record; v_slot bigint; v_left bigint; v_n int;
BEGIN
    -- 1. When does each mature, and may it? (Up to 1 s less than the least
    -- delay is forgiven for the way through the network.) Below the floor nobody
    -- looks for holds any more: this clock is behind what it was.
    SELECT array_agg(ms ORDER BY ord), array_agg(id ORDER BY ord),
           array_agg(CASE WHEN skip THEN 'skip'
                          WHEN ms <= v_now_ms OR ms > v_now_ms + 7776000001 THEN 'unlock_at_out_of_range'
                          WHEN id < v_floor THEN 'shard_unavailable' END ORDER BY ord)
    INTO v_ms, v_id, v_code
    FROM (SELECT ord, skip, ms,
                 coalesce(given, (lpad(to_hex(ms), 12, '0') || '8' || lpad(to_hex(bucket::int), 3, '0') || tail)::uuid) AS id
          FROM (SELECT ord, bucket, tail, skip, given,
                 CASE WHEN at BETWEEN 0 AND 281474976710655 THEN at ELSE 0 END AS ms
          FROM (SELECT ord, bucket, tail, skip, given,
                       coalesce(nullif(delay, 0) + ceil(extract(epoch FROM v_now) * 1000)::bigint, unlock) AS at
                FROM unnest(p_unlock_ms, p_delay_ms, p_bucket, p_tail, p_skip, p_id)
                     WITH ORDINALITY AS t(unlock, delay, bucket, tail, skip, given, ord)) y) z) x;
    v_refusal := array_fill(NULL::text, ARRAY[n]);
    v_available := array_fill(NULL::bigint, ARRAY[n]);
    v_hold := v_id;

    -- 2. Keys first: who comes second waits here for the first to commit. Items
    -- that are refused already take part, or they would not see a first one that
    -- has not committed yet, and say no to what is about to be done.
    WITH new AS (
        INSERT INTO idempotency (sender, key, request_hash, hold_id, expires_at)
        SELECT s, k, h, i, v_now + interval '72 hours' + make_interval(secs => greatest(0, ms - v_now_ms) / 1000.0)
        FROM unnest(p_sender, p_key, p_hash, v_id, v_ms) t(s, k, h, i, ms)
        ORDER BY s, k
        ON CONFLICT DO NOTHING RETURNING idempotency.hold_id)
    SELECT coalesce(array_agg(new.hold_id), '{}') INTO v_new FROM new;
    IF array_remove(v_code, NULL) <> '{}' THEN
        DELETE FROM idempotency i USING unnest(p_sender, p_key, v_id, v_code) t(s, k, id, c)
        WHERE i.sender = t.s AND i.key = t.k AND t.c IS NOT NULL AND t.id = ANY (v_new);
    END IF;
    IF cardinality(v_new) < n THEN
        PERFORM holdfast_vouch();
        FOR r IN
            SELECT t.ord, t.c, i.request_hash = t.h AS same, i.hold_id, i.refusal AS refused
            FROM (SELECT ord, s, k, h, c, id FROM unnest(p_sender, p_key, p_hash, v_code, v_id)
                  WITH ORDINALITY AS t(s, k, h, c, id, ord)
                  WHERE id <> ALL (v_new)) t
            LEFT JOIN LATERAL (SELECT i.request_hash, i.hold_id, i.refusal FROM idempotency i
                  WHERE i.sender = t.s AND i.key = t.k) i ON true
        LOOP
            IF r.same THEN
                v_code[r.ord] := 'replay'; v_hold[r.ord] := r.hold_id; v_refusal[r.ord] := r.refused;
            ELSIF r.same IS FALSE THEN
                v_code[r.ord] := 'idempotency_key_reused';
            ELSIF r.c IS NULL THEN
                -- The other transaction's row was there and is gone: aged out in
                -- between. The client repeats and finds a free key.
                v_code[r.ord] := 'outcome_unknown';
            END IF;
        END LOOP;
    END IF;

    -- 3. Given ids pass the barrier before the accounts are locked: a Cancel
    -- that came first has left its row, this Try is suspended for ever.
    IF EXISTS (SELECT FROM unnest(p_id, v_code) t(g, c) WHERE g IS NOT NULL AND c IS NULL) THEN
        WITH new AS (
            INSERT INTO barrier (gid, created_at, branch, op, owner_bucket)
            SELECT g, v_now, 1, 1, o FROM unnest(p_id, v_code, p_bucket) t(g, c, o)
            WHERE g IS NOT NULL AND c IS NULL ORDER BY g
            ON CONFLICT DO NOTHING RETURNING gid)
        SELECT count(*) INTO v_n FROM new;
        IF v_n < (SELECT count(*) FROM unnest(p_id, v_code) t(g, c) WHERE g IS NOT NULL AND c IS NULL) THEN
            RAISE EXCEPTION 'suspended_try' USING ERRCODE = 'HF003';
        END IF;
    END IF;

    -- 4. Lock the senders in ascending order and decide. Where all items of a
    -- sender fit its balance they are all accepted; otherwise in arrival order
    -- against what is left, and a refused one takes nothing.
    v_slot := -1;
    FOR r IN
        WITH item AS (
            SELECT ord, s, c, m, dense_rank() OVER (ORDER BY s, c) AS slot, sum(m) OVER (PARTITION BY s, c) AS wanted
            FROM unnest(p_sender, p_currency, p_amount, v_code) WITH ORDINALITY AS t(s, c, m, code, ord)
            WHERE code IS NULL
        ), locked AS MATERIALIZED (
            SELECT k.slot, a.available, a.status
            FROM (SELECT DISTINCT slot, s, c FROM item ORDER BY s, c) k
            LEFT JOIN LATERAL (SELECT a.available, a.status FROM accounts a
                WHERE a.user_id = k.s AND a.currency = k.c FOR NO KEY UPDATE) a ON true
        ), balance AS MATERIALIZED (
            SELECT array_agg(available ORDER BY slot) AS available, array_agg(status ORDER BY slot) AS status FROM locked
        )
        SELECT i.ord, i.slot, i.m, b.available[i.slot] AS available, b.status[i.slot] AS status
        FROM item i, balance b
        WHERE b.available[i.slot] IS NULL OR b.status[i.slot] <> 1 OR i.wanted > b.available[i.slot]
        ORDER BY i.slot, i.ord
    LOOP
        IF r.available IS NULL THEN
            v_code[r.ord] := 'unknown_sender';
        ELSIF r.status <> 1 THEN
            v_code[r.ord] := 'sender_not_active';
        ELSE
            IF r.slot <> v_slot THEN
                v_slot := r.slot; v_left := r.available;
            END IF;
            IF r.m > v_left THEN
                v_code[r.ord] := 'insufficient_funds'; v_available[r.ord] := v_left;
            ELSE
                v_left := v_left - r.m;
            END IF;
        END IF;
        IF p_id[r.ord] IS NOT NULL AND v_code[r.ord] IS NOT NULL THEN
            RAISE EXCEPTION '%', v_code[r.ord] USING ERRCODE = 'HF003';
        END IF;
        IF v_code[r.ord] = 'insufficient_funds' THEN
            UPDATE idempotency i SET refusal = v_code[r.ord], hold_id = NULL
            WHERE i.sender = p_sender[r.ord] AND i.key = p_key[r.ord];
        ELSIF v_code[r.ord] IS NOT NULL THEN
            DELETE FROM idempotency i WHERE i.sender = p_sender[r.ord] AND i.key = p_key[r.ord];
        END IF;
    END LOOP;

    -- 5. Write the accepted ones.
    IF array_position(v_code, NULL) IS NOT NULL THEN
        PERFORM holdfast_barrier(v_now, array_agg(id), array_agg(1::smallint), 1::smallint, array_agg(o))
        FROM unnest(v_id, p_bucket, v_code, p_id) t(id, o, c, given) WHERE c IS NULL AND given IS NULL HAVING count(*) > 0;
        INSERT INTO holds (id, sender, recipient, amount, unlock_at, created_at, currency, reference)
        SELECT id, s, r, m, 'epoch'::timestamptz + ms * interval '1 millisecond', v_now, k, ref
        FROM unnest(v_id, p_sender, p_recipient, p_amount, v_ms, p_currency, p_reference, v_code) t(id, s, r, m, ms, k, ref, c)
        WHERE c IS NULL ORDER BY id;
        PERFORM holdfast_post(array_agg(s ORDER BY ord), array_agg(k ORDER BY ord), array_agg(m ORDER BY ord),
            array_agg(id ORDER BY ord), array_agg(1::smallint))
        FROM unnest(p_sender, p_currency, p_amount, v_id, v_code) WITH ORDINALITY AS t(s, k, m, id, c, ord) WHERE c IS NULL;
    END IF;
    RETURN QUERY SELECT t.ord::int, coalesce(t.c, 'ok'), t.h, t.refused, t.left_over,
        'epoch'::timestamptz + t.ms * interval '1 millisecond', v_now
    FROM unnest(v_code, v_hold, v_refusal, v_available, v_ms) WITH ORDINALITY AS t(c, h, refused, left_over, ms, ord);
END $$;
