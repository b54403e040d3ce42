-- The steps of a hold after its Try. Same rules as in 0002: one call is one
-- batch and one transaction, ids sorted and without repeats, holds before
-- accounts. Each step is a compare-and-set under the row lock; what was done
-- before is answered as such and does nothing.

-- Runs one UPDATE per day partition with the same new values for all ids: p_set
-- may use the time $2 and one text $3.
CREATE FUNCTION holdfast_set_holds(p_now timestamptz, p_day text[], p_ids uuid[], p_set text, p_arg text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE v_day text; v_ids uuid[]; v_n int; v_done int := 0;
BEGIN
    FOR v_day, v_ids IN SELECT d, array_agg(i ORDER BY i) FROM unnest(p_day, p_ids) t(d, i) GROUP BY d ORDER BY d LOOP
        EXECUTE format('UPDATE holds_%s SET %s WHERE id = ANY ($1)', v_day, p_set) USING v_ids, p_now, p_arg;
        GET DIAGNOSTICS v_n = ROW_COUNT;
        v_done := v_done + v_n;
    END LOOP;
    IF v_done <> cardinality(p_ids) THEN
        RAISE EXCEPTION 'changed % of % holds', v_done, cardinality(p_ids) USING ERRCODE = 'HF002';
    END IF;
END $$;

-- The same with a text of its own for each id: p_set may use t.a and the time $3.
CREATE FUNCTION holdfast_set_each_hold(p_now timestamptz, p_day text[], p_ids uuid[], p_set text, p_arg text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE v_day text; v_ids uuid[]; v_arg text[]; v_n int; v_done int := 0;
BEGIN
    FOR v_day, v_ids, v_arg IN
        SELECT d, array_agg(i ORDER BY i), array_agg(a ORDER BY i) FROM unnest(p_day, p_ids, p_arg) t(d, i, a) GROUP BY d ORDER BY d
    LOOP
        EXECUTE format('UPDATE holds_%s h SET %s FROM unnest($1, $2) t(i, a) WHERE h.id = t.i', v_day, p_set)
        USING v_ids, v_arg, p_now;
        GET DIAGNOSTICS v_n = ROW_COUNT;
        v_done := v_done + v_n;
    END LOOP;
    IF v_done <> cardinality(p_ids) THEN
        RAISE EXCEPTION 'changed % of % holds', v_done, cardinality(p_ids) USING ERRCODE = 'HF002';
    END IF;
END $$;

-- Adds dead letters; a second one with the same code changes nothing, but an
-- outcome that is unknown still, or again, is open again, and so is a state that
-- is impossible still: closing it has not mended anything.
CREATE FUNCTION holdfast_dead_letters(p_now timestamptz, p_ids uuid[], p_code text[], p_detail text[], p_unrefunded boolean) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO dead_letters (hold_id, created_at, unrefunded, code, detail)
    SELECT i, p_now, p_unrefunded, c, coalesce(d, '') FROM unnest(p_ids, p_code, p_detail) t(i, c, d) ORDER BY i
    ON CONFLICT (hold_id, code) DO UPDATE SET closed_at = NULL, closed_by = NULL
    WHERE dead_letters.code IN ('outcome_unknown', 'impossible_state') AND dead_letters.closed_at IS NOT NULL
$$;

-- Verdict refused: FAILED and its dead letter. The caller holds the row locks
-- and has checked that there is no verdict yet.
CREATE FUNCTION holdfast_fail(p_now timestamptz, p_day text[], p_ids uuid[], p_reason text[], p_detail text[], p_watch boolean[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM holdfast_set_each_hold(p_now, p_day, p_ids,
        'status = 4, verdict = 2, decided_at = $3, refusal_code = t.a, claimed_at = coalesce(h.claimed_at, $3),
         next_attempt_at = coalesce(h.next_attempt_at, $3)', p_reason);
    PERFORM holdfast_dead_letters(p_now, p_ids, p_reason, p_detail, true);
    -- A person's word is watched: a payment that shows up after it must be seen.
    UPDATE attempts a SET next_at = p_now + interval '1 minute'
    FROM unnest(p_ids, p_watch) t(i, w) WHERE a.hold_id = t.i AND t.w;
    DELETE FROM attempts a USING unnest(p_ids, p_watch) t(i, w) WHERE a.hold_id = t.i AND NOT t.w;
END $$;

-- True where p_lease names the drive that has the hold, which ends at p_next; 0 is
-- a person, who needs none. Whoever was slower than its lease is not asked.
CREATE FUNCTION holdfast_drives(p_next timestamptz, p_lease bigint) RETURNS boolean
LANGUAGE sql STABLE AS $$ SELECT p_lease = 0 OR coalesce((extract(epoch FROM p_next) * 1000000)::bigint, 0) = p_lease $$;

-- Claim: PENDING → EXECUTING where unlock_at has come, by this clock, read
-- under the row lock: from this commit on no Cancel can win. A hold that is
-- EXECUTING already is taken over when its attempt is over. p_refusal: found
-- before anything was sent, so it is FAILED at once.
CREATE FUNCTION holdfast_claim(p_epoch bigint, p_day text[], p_ids uuid[], p_refusal text[], p_lease_ms bigint)
RETURNS TABLE (id uuid, code text, in_ms bigint, attempts int, active_ms bigint, since_unsure_ms bigint, since_claim_ms bigint, hold holds)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := holdfast_begin(p_epoch);
    h holds; i int := 1; a record;
    v_claim uuid[] := '{}'; v_claim_day text[] := '{}';
    v_take uuid[] := '{}'; v_take_day text[] := '{}'; v_take_over timestamptz[] := '{}';
    v_late uuid[] := '{}'; v_late_day text[] := '{}';
    v_fail uuid[] := '{}'; v_fail_day text[] := '{}'; v_fail_code text[] := '{}';
    v_next timestamptz; v_first boolean := true;
BEGIN
    FOR h IN SELECT l.* FROM holdfast_lock_holds(p_day, p_ids) l LOOP
        IF v_first THEN
            v_now := clock_timestamp(); v_first := false;
            v_next := v_now + p_lease_ms * interval '1 millisecond';
        END IF;
        WHILE p_ids[i] <> h.id LOOP i := i + 1; END LOOP;
        id := h.id; hold := h; in_ms := 0; attempts := 0; active_ms := 0; since_unsure_ms := -1;
        since_claim_ms := 0;
        IF h.status = 1 THEN
            IF h.unlock_at > v_now THEN
                code := 'not_due';
                in_ms := ceil(extract(epoch FROM h.unlock_at - v_now) * 1000);
            ELSIF p_refusal[i] <> '' THEN
                code := 'refused';
                v_fail := v_fail || h.id; v_fail_day := v_fail_day || p_day[i]; v_fail_code := v_fail_code || p_refusal[i];
            ELSE
                code := 'claimed'; hold.next_attempt_at := v_next;
                v_claim := v_claim || h.id; v_claim_day := v_claim_day || p_day[i];
            END IF;
        ELSIF h.status = 2 OR h.status = 4 THEN
            SELECT t.n, t.active_ms, t.unsure_at, t.driving INTO a FROM attempts t WHERE t.hold_id = h.id;
            IF h.status = 4 THEN
                code := CASE WHEN h.refunded_at IS NULL THEN 'refund' WHEN a.n IS NOT NULL THEN 'watch' ELSE 'ended' END;
                IF a.n IS NOT NULL AND v_now - h.decided_at < interval '7 days' THEN
                    UPDATE attempts t SET next_at = v_now + interval '1 hour' WHERE t.hold_id = h.id;
                ELSIF a.n IS NOT NULL THEN
                    DELETE FROM attempts t WHERE t.hold_id = h.id; -- watched long enough
                END IF;
            ELSIF h.next_attempt_at > greatest(v_next, v_now + interval '62 minutes') THEN
                -- No attempt and no pause is that long, the longest is a quarantine
                -- of an hour: this clock was ahead when that was written. Whoever
                -- wrote it may still be sending, so it gets one full lease from now.
                code := 'busy'; in_ms := p_lease_ms;
                v_late := v_late || h.id; v_late_day := v_late_day || p_day[i];
            ELSIF h.next_attempt_at > v_now THEN
                code := 'busy';
                in_ms := ceil(extract(epoch FROM h.next_attempt_at - v_now) * 1000);
            ELSE
                code := CASE WHEN h.verdict = 1 THEN 'credit' ELSE 'redrive' END;
                hold.next_attempt_at := v_next;
                v_take := v_take || h.id; v_take_day := v_take_day || p_day[i]; v_take_over := v_take_over || h.next_attempt_at;
                -- Who claimed and never came back may have sent until its time was over.
                -- A time that lies ahead, by a clock that was, is not "never": that is -1.
                since_unsure_ms := CASE WHEN a.n IS NULL OR a.driving THEN floor(extract(epoch FROM v_now - h.next_attempt_at) * 1000)
                    WHEN a.unsure_at IS NULL THEN -1 ELSE greatest(0, floor(extract(epoch FROM v_now - a.unsure_at) * 1000)) END;
            END IF;
            attempts := coalesce(a.n, 0); active_ms := coalesce(a.active_ms, 0);
            since_claim_ms := floor(extract(epoch FROM v_now - h.claimed_at) * 1000);
        ELSE
            code := 'ended';
            DELETE FROM attempts t WHERE t.hold_id = h.id; -- nobody has to come for it again
        END IF;
        RETURN NEXT;
    END LOOP;
    IF v_claim <> '{}' THEN
        PERFORM holdfast_set_holds(v_now, v_claim_day, v_claim,
            'status = 2, claimed_at = $2, next_attempt_at = $3::timestamptz', v_next::text);
    END IF;
    IF v_late <> '{}' THEN
        PERFORM holdfast_set_holds(v_now, v_late_day, v_late, 'next_attempt_at = $3::timestamptz', v_next::text);
        UPDATE attempts t SET next_at = v_next WHERE t.hold_id = ANY (v_late);
    END IF;
    IF v_take <> '{}' THEN
        PERFORM holdfast_set_holds(v_now, v_take_day, v_take, 'next_attempt_at = $3::timestamptz', v_next::text);
        -- Its row must not come up again while it is being driven. Should this
        -- driver not come back, what it may have sent is counted from the end
        -- of its time, as it is for the one before.
        INSERT INTO attempts AS t (hold_id, next_at, n, active_ms, unsure_at, driving, last_error)
        SELECT x, v_next, 0, 0, o, true, 'the driver did not come back' FROM unnest(v_take, v_take_over) y(x, o) ORDER BY x
        ON CONFLICT (hold_id) DO UPDATE SET next_at = v_next, driving = true,
            unsure_at = CASE WHEN t.driving THEN excluded.unsure_at ELSE t.unsure_at END;
    END IF;
    IF v_fail <> '{}' THEN
        PERFORM holdfast_fail(v_now, v_fail_day, v_fail, v_fail_code,
            array_fill('the recipient was checked before the payment'::text, ARRAY[cardinality(v_fail)]),
            array_fill(false, ARRAY[cardinality(v_fail)]));
    END IF;
END $$;

-- What a verdict paid does, for holds that the caller has just given it to in
-- this statement: escrow → transit. Where p_near says so the recipient lives here
-- too, and is credited in the same posting. The caller sends no holds if none
-- took the verdict.
CREATE FUNCTION holdfast_settled(p_ids uuid[], p_sender uuid[], p_recipient uuid[], p_currency text[], p_amount bigint[],
    p_near boolean[], p_bucket smallint[], p_near_bucket smallint[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    n int := coalesce(cardinality(p_ids), 0);
    v_ids uuid[]; v_recipient uuid[]; v_currency text[]; v_amount bigint[]; v_bucket smallint[]; k int;
BEGIN
    IF n = 0 THEN
        RETURN;
    END IF;
    IF true = ANY (p_near) THEN
        SELECT array_agg(i), array_agg(r), array_agg(c), array_agg(m), array_agg(b) INTO v_ids, v_recipient, v_currency, v_amount, v_bucket
        FROM unnest(p_ids, p_recipient, p_currency, p_amount, p_near_bucket, p_near) t(i, r, c, m, b, near) WHERE near;
        DELETE FROM attempts t WHERE t.hold_id = ANY (v_ids);
    END IF;
    k := coalesce(cardinality(v_ids), 0);
    PERFORM holdfast_barrier(clock_timestamp(), p_ids || v_ids, array_fill(1::smallint, ARRAY[n]) || array_fill(2::smallint, ARRAY[k]),
        2::smallint, p_bucket || v_bucket);
    PERFORM holdfast_post(p_sender || v_recipient, p_currency || v_currency, p_amount || v_amount, p_ids || v_ids,
        array_fill(2::smallint, ARRAY[n]) || array_fill(3::smallint, ARRAY[k]));
END $$;

-- Why holds were not settled. A payment that shows up after a refusal gets its
-- dead letter; the verdict stands.
CREATE FUNCTION holdfast_not_settled(p_epoch bigint, p_day text[], p_ids uuid[], p_payment text[], p_local uuid[])
RETURNS TABLE (id uuid, code text, hold holds)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE v_now timestamptz := holdfast_begin(p_epoch); h holds; i int := 1;
BEGIN
    FOR h IN SELECT l.* FROM holdfast_lock_holds(p_day, p_ids) l LOOP
        WHILE p_ids[i] <> h.id LOOP i := i + 1; END LOOP;
        id := h.id; hold := h;
        IF h.verdict = 1 THEN
            code := 'already';
        ELSIF h.status = 4 THEN
            code := 'verdict_is_other';
            PERFORM holdfast_dead_letters(v_now, ARRAY[h.id], ARRAY['late_success'], ARRAY['payment ' || p_payment[i]], false);
            DELETE FROM attempts t WHERE t.hold_id = h.id;
        ELSIF h.status = 2 AND p_local[i] <> h.recipient THEN
            RAISE EXCEPTION 'hold % pays % and not %', h.id, h.recipient, p_local[i] USING ERRCODE = 'HF002';
        ELSIF h.status = 2 THEN
            code := 'outcome_unknown'; -- it changed between the two looks: the next drive finds out
        ELSE
            code := 'impossible_state';
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;

-- Verdict refused.
CREATE FUNCTION holdfast_refuse(p_epoch bigint, p_day text[], p_ids uuid[], p_reason text[], p_detail text[], p_watch boolean[],
    p_lease bigint[])
RETURNS TABLE (id uuid, code text, hold holds)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := holdfast_begin(p_epoch);
    h holds; i int := 1;
    v_ids uuid[] := '{}'; v_day text[] := '{}'; v_reason text[] := '{}'; v_detail text[] := '{}'; v_watch boolean[] := '{}';
BEGIN
    FOR h IN SELECT l.* FROM holdfast_lock_holds(p_day, p_ids) l LOOP
        WHILE p_ids[i] <> h.id LOOP i := i + 1; END LOOP;
        id := h.id;
        IF h.status = 2 AND h.verdict IS NULL AND NOT holdfast_drives(h.next_attempt_at, p_lease[i]) THEN
            code := 'busy'; -- another driver has it, and may have a payment open
        ELSIF h.status = 2 AND h.verdict IS NULL THEN
            code := 'ok';
            v_ids := v_ids || h.id; v_day := v_day || p_day[i]; v_reason := v_reason || p_reason[i];
            v_detail := v_detail || p_detail[i]; v_watch := v_watch || p_watch[i];
            h.status := 4; h.verdict := 2; h.decided_at := v_now; h.refusal_code := p_reason[i];
        ELSE
            code := CASE WHEN h.status = 4 THEN 'already' WHEN h.verdict = 1 THEN 'verdict_is_other' ELSE 'impossible_state' END;
        END IF;
        hold := h;
        RETURN NEXT;
    END LOOP;
    IF v_ids <> '{}' THEN
        PERFORM holdfast_fail(v_now, v_day, v_ids, v_reason, v_detail, v_watch);
    END IF;
END $$;
