-- What the triggers on every partition of entries call. They hold for the owner
-- as well: a correction is a new movement, never a changed row. HF009 names the
-- cause for callers.
CREATE FUNCTION holdfast_refuse_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'ledger entries are immutable' USING
        ERRCODE = 'HF009',
        DETAIL = format('%s on %I was refused.', TG_OP, TG_TABLE_NAME),
        HINT = 'Correct the books with a new movement.';
END $$;
