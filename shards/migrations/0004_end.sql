-- The steps that end a hold, or its drive. Same rules as in 0002 and 0003.

-- Credit: branch 02 on the recipient's shard. The barrier row alone decides
-- whether it was done; the account's status is never asked.
CREATE FUNCTION holdfast_credit(p_epoch bigint, p_ids uuid[], p_recipient uuid[], p_currency text[], p_amount bigint[], p_bucket smallint[])
RETURNS TABLE (id uuid, code text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := holdfast_begin(p_epoch);
    v_new uuid[]; i int; j int := 1;
    u uuid[] := '{}'; c text[] := '{}'; m bigint[] := '{}';
BEGIN
    WITH new AS (
        INSERT INTO barrier (gid, created_at, branch, op, owner_bucket)
        SELECT g, v_now, 2, 2, o FROM unnest(p_ids, p_bucket) t(g, o) ORDER BY g
        ON CONFLICT DO NOTHING RETURNING gid)
    SELECT coalesce(array_agg(gid ORDER BY gid), '{}') INTO v_new FROM new;
    IF cardinality(v_new) < cardinality(p_ids) THEN
        PERFORM holdfast_vouch();
    END IF;
    FOR i IN 1 .. cardinality(p_ids) LOOP
        id := p_ids[i]; code := 'already';
        IF v_new[j] = p_ids[i] THEN
            code := 'ok'; j := j + 1;
            u := u || p_recipient[i]; c := c || p_currency[i]; m := m || p_amount[i];
        END IF;
        RETURN NEXT;
    END LOOP;
    IF u <> '{}' THEN
        PERFORM holdfast_post(u, c, m, v_new, array_fill(3::smallint, ARRAY[cardinality(v_new)]));
    END IF;
END $$;

-- Drops the attempts of holds that have just been ended by the statement that
-- calls this. It is a function for the sake of its snapshot: the statement may
-- have waited for a driver who put the row there meanwhile, and would not see it.
CREATE FUNCTION holdfast_drop_attempts(p_ids uuid[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM attempts t WHERE t.hold_id = ANY (p_ids);
END $$;

-- The end of the good path: the recipient has been credited.
CREATE FUNCTION holdfast_executed(p_epoch bigint, p_day text[], p_ids uuid[])
RETURNS TABLE (id uuid, code text, hold holds)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := holdfast_begin(p_epoch);
    h holds; i int := 1; v_ids uuid[] := '{}'; v_day text[] := '{}';
BEGIN
    FOR h IN SELECT l.* FROM holdfast_lock_holds(p_day, p_ids) l LOOP
        WHILE p_ids[i] <> h.id LOOP i := i + 1; END LOOP;
        id := h.id;
        IF h.status = 2 AND h.verdict = 1 THEN
            code := 'ok'; v_ids := v_ids || h.id; v_day := v_day || p_day[i];
            h.status := 3; h.executed_at := v_now;
        ELSE
            code := CASE WHEN h.status = 3 THEN 'already' ELSE 'impossible_state' END;
        END IF;
        hold := h;
        RETURN NEXT;
    END LOOP;
    IF v_ids <> '{}' THEN
        PERFORM holdfast_set_holds(v_now, v_day, v_ids, 'status = 3, executed_at = $2', NULL);
        DELETE FROM attempts t WHERE t.hold_id = ANY (v_ids);
    END IF;
END $$;

-- A drive that ended without a verdict, or before the credit was done.
CREATE FUNCTION holdfast_defer(p_epoch bigint, p_day text[], p_ids uuid[], p_delay_ms bigint[], p_active_ms bigint[],
    p_error text[], p_dead text[], p_unsure boolean[], p_lease bigint[])
RETURNS TABLE (id uuid, code text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := holdfast_begin(p_epoch);
    h holds; i int := 1; v_ids uuid[] := '{}'; v_day text[] := '{}'; v_next text[] := '{}'; v_at int[] := '{}';
    v_dead uuid[] := '{}'; v_dead_code text[] := '{}'; v_why text[] := '{}';
BEGIN
    FOR h IN SELECT l.* FROM holdfast_lock_holds(p_day, p_ids) l LOOP
        WHILE p_ids[i] <> h.id LOOP i := i + 1; END LOOP;
        id := h.id; code := 'already';
        IF h.status = 2 AND NOT holdfast_drives(h.next_attempt_at, p_lease[i]) THEN
            code := 'busy'; -- another driver has it: when it comes up again is not ours to say
        ELSIF h.status = 2 THEN
            code := 'ok'; v_at := v_at || i;
            v_ids := v_ids || h.id; v_day := v_day || p_day[i];
            v_next := v_next || (v_now + p_delay_ms[i] * interval '1 millisecond')::text;
        END IF;
        IF p_dead[i] = 'impossible_state' OR (p_dead[i] <> '' AND code = 'ok' AND h.verdict IS NULL) THEN
            v_dead := v_dead || h.id; v_dead_code := v_dead_code || p_dead[i]; v_why := v_why || p_error[i];
        END IF;
        RETURN NEXT;
    END LOOP;
    IF v_ids <> '{}' THEN
        PERFORM holdfast_set_each_hold(v_now, v_day, v_ids, 'next_attempt_at = t.a::timestamptz', v_next);
        INSERT INTO attempts AS t (hold_id, next_at, n, active_ms, unsure_at, last_error)
        SELECT p_ids[o], v_now + p_delay_ms[o] * interval '1 millisecond', 1, p_active_ms[o],
               CASE WHEN p_unsure[o] THEN v_now END, p_error[o] FROM unnest(v_at) o
        ON CONFLICT (hold_id) DO UPDATE SET next_at = excluded.next_at, n = t.n + 1,
            active_ms = t.active_ms + excluded.active_ms, last_error = excluded.last_error,
            unsure_at = coalesce(excluded.unsure_at, t.unsure_at), driving = false;
    END IF;
    PERFORM holdfast_dead_letters(v_now, v_dead, v_dead_code, v_why, false);
END $$;

-- The way back of a FAILED hold: escrow → sender.
CREATE FUNCTION holdfast_refund(p_epoch bigint, p_day text[], p_ids uuid[], p_bucket smallint[])
RETURNS TABLE (id uuid, code text, hold holds)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := holdfast_begin(p_epoch);
    h holds; i int := 1; v_ids uuid[] := '{}'; v_day text[] := '{}'; v_bucket smallint[] := '{}';
    u uuid[] := '{}'; c text[] := '{}'; m bigint[] := '{}';
BEGIN
    FOR h IN SELECT l.* FROM holdfast_lock_holds(p_day, p_ids) l LOOP
        WHILE p_ids[i] <> h.id LOOP i := i + 1; END LOOP;
        id := h.id;
        IF h.status <> 4 THEN
            code := 'not_refundable';
        ELSIF h.refunded_at IS NOT NULL THEN
            code := 'already';
        ELSE
            code := 'ok'; h.refunded_at := v_now;
            v_ids := v_ids || h.id; v_day := v_day || p_day[i]; v_bucket := v_bucket || p_bucket[i];
            u := u || h.sender; c := c || h.currency; m := m || h.amount;
        END IF;
        hold := h;
        RETURN NEXT;
    END LOOP;
    IF v_ids <> '{}' THEN
        PERFORM holdfast_barrier(v_now, v_ids, array_fill(1::smallint, ARRAY[cardinality(v_ids)]), 3::smallint, v_bucket);
        PERFORM holdfast_set_holds(v_now, v_day, v_ids, 'refunded_at = $2', NULL);
        PERFORM holdfast_post(u, c, m, v_ids, array_fill(4::smallint, ARRAY[cardinality(v_ids)]));
        UPDATE dead_letters d SET unrefunded = false, resolution = coalesce(d.resolution, 'refunded')
        WHERE d.hold_id = ANY (v_ids) AND d.unrefunded;
    END IF;
END $$;

-- Cancel: PENDING → CANCELLED while unlock_at is ahead, by the clock read under
-- the row lock. With an operator it is a release: for matured holds that are
-- still PENDING, which proves that nothing was sent. p_null: a hold that does
-- not exist leaves the barrier row of a Try, which suspends a later one.
CREATE FUNCTION holdfast_cancel(p_epoch bigint, p_day text[], p_ids uuid[], p_actor uuid[], p_operator text[],
    p_reason text[], p_null boolean[], p_bucket smallint[])
RETURNS TABLE (id uuid, code text, hold holds)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := holdfast_begin(p_epoch);
    h holds; i int; v_first boolean := true;
    v_ids uuid[] := '{}'; v_day text[] := '{}'; v_bucket smallint[] := '{}'; v_absent uuid[]; v_new uuid[];
    u uuid[] := '{}'; c text[] := '{}'; m bigint[] := '{}';
BEGIN
    -- Barrier rows come before the holds. Either this row is new, and then no
    -- Try of this gid can ever do anything, or a Try (or an earlier null
    -- cancel) was first, and its hold, if there is one, can be seen below.
    IF true = ANY (p_null) THEN
        WITH new AS (
            INSERT INTO barrier (gid, created_at, branch, op, owner_bucket)
            SELECT g, v_now, 1, 1, o FROM unnest(p_ids, p_null, p_bucket) t(g, nul, o) WHERE nul ORDER BY g
            ON CONFLICT DO NOTHING RETURNING gid)
        SELECT coalesce(array_agg(gid), '{}') INTO v_absent FROM new;
        INSERT INTO barrier (gid, created_at, branch, op, owner_bucket)
        SELECT g, v_now, 1, 3, o FROM unnest(p_ids, p_bucket) t(g, o) WHERE g = ANY (v_absent) ORDER BY g
        ON CONFLICT DO NOTHING;
        FOREACH id IN ARRAY v_absent LOOP
            code := 'null_cancel';
            RETURN NEXT;
        END LOOP;
    END IF;
    i := 1;
    FOR h IN SELECT l.* FROM holdfast_lock_holds(p_day, p_ids) l LOOP
        IF v_first THEN
            v_now := clock_timestamp(); v_first := false;
        END IF;
        WHILE p_ids[i] <> h.id LOOP i := i + 1; END LOOP;
        id := h.id;
        code := CASE
            WHEN p_actor[i] IS NOT NULL AND p_actor[i] = h.recipient THEN 'forbidden_cancel'
            WHEN p_actor[i] IS NOT NULL AND p_actor[i] <> h.sender THEN 'hold_not_found'
            WHEN h.status = 5 THEN 'already'
            WHEN h.status = 3 THEN 'hold_already_executed'
            WHEN h.status = 4 THEN 'hold_failed'
            WHEN h.status = 2 THEN 'hold_matured'
            WHEN p_operator[i] = '' AND h.unlock_at <= v_now THEN 'hold_matured'
            WHEN p_operator[i] <> '' AND h.unlock_at > v_now THEN 'hold_not_matured'
            ELSE 'ok' END;
        IF code = 'ok' THEN
            h.status := 5; h.cancelled_at := v_now;
            v_ids := v_ids || h.id; v_day := v_day || p_day[i]; v_bucket := v_bucket || p_bucket[i];
            u := u || h.sender; c := c || h.currency; m := m || h.amount;
            IF p_operator[i] <> '' THEN
                INSERT INTO audit (at, hold_id, actor, action, reason) VALUES (v_now, h.id, p_operator[i], 'release', p_reason[i]);
            END IF;
        END IF;
        hold := h;
        RETURN NEXT;
    END LOOP;
    IF v_ids <> '{}' THEN
        PERFORM holdfast_barrier(v_now, v_ids, array_fill(1::smallint, ARRAY[cardinality(v_ids)]), 3::smallint, v_bucket);
        PERFORM holdfast_set_holds(v_now, v_day, v_ids, 'status = 5, cancelled_at = $2', NULL);
        PERFORM holdfast_post(u, c, m, v_ids, array_fill(5::smallint, ARRAY[cardinality(v_ids)]));
    END IF;
END $$;
