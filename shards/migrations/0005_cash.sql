-- Deposits (amount > 0) and withdrawals (amount < 0), once per (user, kind,
-- key). Items in arrival order, at most one per (user, kind, key).
CREATE FUNCTION holdfast_cash(p_epoch bigint, p_user uuid[], p_currency text[], p_amount bigint[], p_key text[], p_hash bytea[], p_ref uuid[])
RETURNS TABLE (idx int, code text, ref uuid, refusal text, at timestamptz, available bigint, held bigint, status smallint, opened_at timestamptz)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := holdfast_begin(p_epoch);
    n int := cardinality(p_user);
    v_code text[] := array_fill(NULL::text, ARRAY[n]); v_ref uuid[] := p_ref; v_refusal text[] := array_fill(NULL::text, ARRAY[n]);
    v_at timestamptz[] := array_fill(v_now, ARRAY[n]);
    v_new uuid[]; r record; v_left bigint; v_account record; v_known record; v_cap bigint; v_issued bigint;
    u uuid[] := '{}'; c text[] := '{}'; m bigint[] := '{}'; f uuid[] := '{}'; v_move smallint := CASE WHEN p_amount[1] > 0 THEN 6 ELSE 7 END;
BEGIN
    WITH new AS (
        INSERT INTO cash (user_id, ref, at, amount, kind, currency, key, request_hash)
        SELECT i, g, v_now, abs(a), v_move, k, y, h
        FROM unnest(p_user, p_ref, p_amount, p_currency, p_key, p_hash) t(i, g, a, k, y, h) ORDER BY i, y
        ON CONFLICT DO NOTHING RETURNING cash.ref)
    SELECT coalesce(array_agg(new.ref), '{}') INTO v_new FROM new;
    v_left := NULL;
    FOR r IN
        SELECT ord, i, k, a, g NOT IN (SELECT unnest(v_new)) AS known,
               row_number() OVER (PARTITION BY i, k ORDER BY ord) = 1 AS first
        FROM unnest(p_user, p_currency, p_amount, p_ref) WITH ORDINALITY AS t(i, k, a, g, ord) ORDER BY i, k, ord
    LOOP
        IF r.first THEN
            SELECT x.available, x.status INTO v_account FROM accounts x WHERE x.user_id = r.i AND x.currency = r.k FOR NO KEY UPDATE;
            v_left := v_account.available;
        END IF;
        IF r.known THEN
            SELECT x.request_hash = p_hash[r.ord] AS same, x.ref, x.refusal, x.at INTO v_known
            FROM cash x WHERE x.user_id = r.i AND x.kind = v_move AND x.key = p_key[r.ord];
            v_code[r.ord] := CASE WHEN v_known.same THEN 'replay' ELSE 'idempotency_key_reused' END;
            v_ref[r.ord] := v_known.ref; v_refusal[r.ord] := v_known.refusal; v_at[r.ord] := v_known.at;
            CONTINUE;
        END IF;
        v_code[r.ord] := CASE
            WHEN v_left IS NULL THEN 'account_not_found'
            WHEN v_account.status = 3 THEN 'account_closed'
            WHEN r.a < 0 AND v_account.status <> 1 THEN 'sender_not_active'
            WHEN v_left + r.a < 0 THEN 'insufficient_funds' ELSE 'ok' END;
        IF v_code[r.ord] = 'ok' THEN
            v_left := v_left + r.a;
            u := u || r.i; c := c || r.k; m := m || abs(r.a); f := f || v_ref[r.ord];
        ELSIF v_code[r.ord] = 'insufficient_funds' THEN
            UPDATE cash x SET refusal = v_code[r.ord] WHERE x.user_id = r.i AND x.kind = v_move AND x.key = p_key[r.ord];
        ELSE
            DELETE FROM cash x WHERE x.user_id = r.i AND x.kind = v_move AND x.key = p_key[r.ord];
        END IF;
    END LOOP;
    IF u <> '{}' THEN
        PERFORM holdfast_post(u, c, m, f, array_fill(v_move, ARRAY[cardinality(u)]));
        SELECT 9000000000000000000 / s.shards INTO v_cap FROM shard_self s;
        FOR r IN SELECT k, (CASE v_move WHEN 6 THEN 1 ELSE -1 END * sum(a))::bigint AS delta FROM unnest(c, m) t(k, a) GROUP BY k ORDER BY k LOOP
            INSERT INTO issuance AS x (currency, issued) VALUES (r.k, greatest(r.delta, 0))
            ON CONFLICT (currency) DO UPDATE SET issued = greatest(x.issued + r.delta, 0) RETURNING x.issued INTO v_issued;
            IF v_issued > v_cap THEN
                RAISE EXCEPTION 'this shard has issued % %, its cap is %', v_issued, r.k, v_cap USING ERRCODE = 'HF004';
            END IF;
        END LOOP;
    END IF;
    RETURN QUERY SELECT t.ord::int, t.c, t.g, t.f, t.w, a.available, a.held, a.status, a.opened_at
    FROM unnest(v_code, v_ref, v_refusal, v_at, p_user, p_currency) WITH ORDINALITY AS t(c, g, f, w, i, k, ord)
    LEFT JOIN LATERAL (SELECT a.available, a.held, a.status, a.opened_at FROM accounts a WHERE a.user_id = t.i AND a.currency = t.k) a ON true;
END $$;

-- Opens accounts and deposits the same amount into each: the quick way to fund
-- a benchmark, through the same ledger. Returns how many were opened.
CREATE FUNCTION holdfast_bulk_fund(p_epoch bigint, p_users uuid[], p_currency text, p_amount bigint) RETURNS int
LANGUAGE plpgsql AS $$
DECLARE v_n int; v_now timestamptz := holdfast_begin(p_epoch); v_ref uuid[];
BEGIN
    INSERT INTO accounts (user_id, currency, opened_at) SELECT u, p_currency, v_now FROM unnest(p_users) u ORDER BY u ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS v_n = ROW_COUNT;
    SELECT array_agg(gen_random_uuid()) INTO v_ref FROM unnest(p_users);
    INSERT INTO cash (user_id, ref, at, amount, kind, currency, key, request_hash)
    SELECT u, g, v_now, p_amount, 6, p_currency, 'bulk ' || g, sha256(uuid_send(g)) FROM unnest(p_users, v_ref) t(u, g) ORDER BY u;
    PERFORM holdfast_post(array_agg(u ORDER BY u), array_agg(p_currency), array_agg(p_amount), array_agg(g ORDER BY u), array_agg(6::smallint))
    FROM unnest(p_users, v_ref) t(u, g);
    INSERT INTO issuance AS x (currency, issued) VALUES (p_currency, p_amount * cardinality(p_users))
    ON CONFLICT (currency) DO UPDATE SET issued = x.issued + excluded.issued;
    RETURN v_n;
END $$;
