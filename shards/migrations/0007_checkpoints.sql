-- Rolls the checkpoints forward to the beginning of a day (UTC), so that the
-- ledger proof replays from there and older entries may go cold. To be called
-- by the owner for a day that began at least an hour ago, after a proof that
-- found the books whole: what is summed up here is not replayed again. Returns
-- how many accounts moved forward.
--
-- An account's checkpoint ends before its first entry of the day, by number and
-- not by time, so that it is a stretch without gaps. Where the numbers have a
-- gap the account keeps its old checkpoint, and the next proof says so.
CREATE FUNCTION holdfast_checkpoint(p_day date) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    v_until timestamptz := p_day::timestamp AT TIME ZONE 'UTC';
    v_since timestamptz; v_n bigint;
BEGIN
    IF v_until > clock_timestamp() - interval '1 hour' THEN
        RAISE EXCEPTION 'the day before % has not been over for an hour', p_day USING ERRCODE = '22023';
    END IF;
    SELECT coalesce(max(before_day)::timestamp AT TIME ZONE 'UTC', '-infinity') INTO v_since FROM checkpoints;
    IF v_until <= v_since THEN
        RETURN 0;
    END IF;
    WITH cut AS (
        SELECT user_id, currency, min(seq) AS first FROM entries
        WHERE book <= 2 AND posted_at >= v_until GROUP BY user_id, currency
    )
    INSERT INTO checkpoints AS c (user_id, currency, before_day, available, held, seq)
    SELECT e.user_id, e.currency, p_day,
           coalesce(o.available, 0) + coalesce(sum(e.amount) FILTER (WHERE e.book = 1), 0),
           coalesce(o.held, 0) + coalesce(sum(e.amount) FILTER (WHERE e.book = 2), 0), max(e.seq)
    FROM entries e
    LEFT JOIN checkpoints o ON o.user_id = e.user_id AND o.currency = e.currency
    LEFT JOIN cut ON cut.user_id = e.user_id AND cut.currency = e.currency
    WHERE e.book <= 2 AND e.posted_at >= v_since - interval '1 day' AND e.posted_at < v_until
      AND e.seq > coalesce(o.seq, 0) AND (cut.first IS NULL OR e.seq < cut.first)
    GROUP BY e.user_id, e.currency, o.available, o.held, o.seq
    HAVING count(*) = max(e.seq) - coalesce(o.seq, 0)
    ON CONFLICT (user_id, currency) DO UPDATE SET before_day = excluded.before_day, available = excluded.available,
        held = excluded.held, seq = excluded.seq;
    GET DIAGNOSTICS v_n = ROW_COUNT;
    RETURN v_n;
END $$;
REVOKE ALL ON FUNCTION holdfast_checkpoint(date) FROM PUBLIC;
