-- The tables of one shard. Money is bigint minor units everywhere.

-- Who this shard is. The number is checked at each new connection, the epoch
-- inside each money transaction, so that a stale or wrongly wired process is
-- refused, not wrong. owner: bucket i+1 of the array belongs to that shard.
CREATE TABLE shard_self (
    one         boolean     PRIMARY KEY DEFAULT true CHECK (one),
    cluster_id  uuid        NOT NULL,
    shard       smallint    NOT NULL,
    shards      smallint    NOT NULL,
    epoch       bigint      NOT NULL,
    CHECK (shard >= 0 AND shard < shards)
);

-- Coins brought into being on this shard. Capped so that all coins of all
-- shards still fit one bigint: whatever flows where, no credit can overflow.
CREATE TABLE issuance (
    currency    text        PRIMARY KEY,
    issued      bigint      NOT NULL CHECK (issued >= 0)
);

CREATE TABLE shard_map (
    epoch       bigint      PRIMARY KEY,
    owner       smallint[]  NOT NULL CHECK (cardinality(owner) = 4096),
    created_at  timestamptz NOT NULL DEFAULT now()
);

-- Balances. They are only sums that follow the holds and entries. seq numbers
-- the entries of the account. status: 1 open, 2 banned, 3 closed.
CREATE TABLE accounts (
    user_id     uuid        NOT NULL,
    available   bigint      NOT NULL DEFAULT 0 CHECK (available >= 0),
    held        bigint      NOT NULL DEFAULT 0 CHECK (held >= 0),
    seq         bigint      NOT NULL DEFAULT 0,
    opened_at   timestamptz NOT NULL,
    status      smallint    NOT NULL DEFAULT 1 CHECK (status IN (1, 2, 3)),
    currency    text        NOT NULL,
    PRIMARY KEY (user_id, currency),
    CHECK (status <> 3 OR (held = 0))
) WITH (fillfactor = 60);

-- One row per hold: the transaction record of its TCC. The id carries unlock_at
-- and the sender's bucket, its order is the maturity order. No index but the
-- key: with one on status, no status change is HOT.
-- status: 1 PENDING 2 EXECUTING 3 EXECUTED 4 FAILED 5 CANCELLED; verdict: 1 paid 2 refused.
CREATE TABLE holds (
    id              uuid        NOT NULL PRIMARY KEY,
    sender          uuid        NOT NULL,
    recipient       uuid        NOT NULL CHECK (recipient <> sender),
    amount          bigint      NOT NULL CHECK (amount > 0),
    unlock_at       timestamptz NOT NULL,
    created_at      timestamptz NOT NULL,
    claimed_at      timestamptz,
    next_attempt_at timestamptz,
    decided_at      timestamptz,
    executed_at     timestamptz,
    cancelled_at    timestamptz,
    refunded_at     timestamptz,
    status          smallint    NOT NULL DEFAULT 1 CHECK (status BETWEEN 1 AND 5),
    verdict         smallint    CHECK (verdict IN (1, 2)),
    currency        text        NOT NULL,
    reference       text,
    payment_id      text,
    refusal_code    text,
    CHECK (CASE status
        WHEN 1 THEN verdict IS NULL AND claimed_at IS NULL
        WHEN 2 THEN claimed_at IS NOT NULL AND next_attempt_at IS NOT NULL
                    AND verdict IS DISTINCT FROM 2
        WHEN 3 THEN verdict IS NOT DISTINCT FROM 1
        WHEN 4 THEN verdict IS NOT DISTINCT FROM 2 AND decided_at IS NOT NULL
        ELSE verdict IS NULL AND claimed_at IS NULL
    END),
    CHECK ((status = 3) = (executed_at IS NOT NULL) AND (status = 5) = (cancelled_at IS NOT NULL)
        AND (refunded_at IS NULL OR status = 4))
) PARTITION BY RANGE (id);

-- One row per branch step that was done. branch: 1 sender, 2 recipient; op: 1
-- try, 2 confirm, 3 cancel. owner_bucket is the bucket of the user whose money
-- moved. A row (1, try) with is_null marks a Cancel that came before its Try.
CREATE TABLE barrier (
    gid          uuid        NOT NULL,
    created_at   timestamptz NOT NULL,
    branch       smallint    NOT NULL CHECK (branch IN (1, 2)),
    op           smallint    NOT NULL CHECK (op IN (1, 2, 3)),
    owner_bucket smallint    NOT NULL,
    PRIMARY KEY (gid, branch, op)
) PARTITION BY RANGE (gid);

-- What became of a create, by (sender, key): a hold or a remembered refusal.
CREATE TABLE idempotency (
    sender       uuid        NOT NULL,
    expires_at   timestamptz NOT NULL,
    hold_id      uuid,
    key          text        NOT NULL,
    request_hash bytea       NOT NULL,
    refusal      text,
    PRIMARY KEY (sender, key),
    CHECK ((hold_id IS NULL) <> (refusal IS NULL))
) PARTITION BY HASH (sender);
CREATE TABLE idempotency_0 PARTITION OF idempotency FOR VALUES WITH (MODULUS 4, REMAINDER 0);
CREATE TABLE idempotency_1 PARTITION OF idempotency FOR VALUES WITH (MODULUS 4, REMAINDER 1);
CREATE TABLE idempotency_2 PARTITION OF idempotency FOR VALUES WITH (MODULUS 4, REMAINDER 2);
CREATE TABLE idempotency_3 PARTITION OF idempotency FOR VALUES WITH (MODULUS 4, REMAINDER 3);

-- Deposits and withdrawals by (user, kind, key); kind: 6 deposit, 7 withdraw.
CREATE TABLE cash (
    user_id      uuid        NOT NULL,
    ref          uuid        NOT NULL,
    at           timestamptz NOT NULL,
    amount       bigint      NOT NULL CHECK (amount > 0),
    kind         smallint    NOT NULL CHECK (kind IN (6, 7)),
    currency     text        NOT NULL,
    key          text        NOT NULL,
    request_hash bytea       NOT NULL,
    refusal      text,
    PRIMARY KEY (user_id, kind, key)
);

-- The double-entry ledger: two immutable rows per movement that sum to zero.
-- book: 1 available 2 held 3 transit 4 issuer; movement: 1 reserve 2 settle
-- 3 credit 4 refund 5 cancel 6 deposit 7 withdraw. ref is the hold, or the
-- deposit or withdrawal. user_id names whose money it is in every row; seq and
-- balance_after are null for transit and issuer, which have no balance row.
CREATE TABLE entries (
    posted_at     timestamptz NOT NULL,
    ref           uuid        NOT NULL,
    user_id       uuid        NOT NULL,
    amount        bigint      NOT NULL CHECK (amount <> 0),
    seq           bigint,
    balance_after bigint      CHECK (balance_after >= 0),
    movement      smallint    NOT NULL CHECK (movement BETWEEN 1 AND 7),
    book          smallint    NOT NULL CHECK (book BETWEEN 1 AND 4),
    currency      text        NOT NULL,
    CHECK ((book <= 2) = (seq IS NOT NULL) AND (book <= 2) = (balance_after IS NOT NULL))
) PARTITION BY RANGE (posted_at);
CREATE INDEX entries_account ON entries (user_id, seq) WHERE book <= 2;

-- Holds whose first drive did not end. The primary way to find work is the
-- range above the watermark; this table keeps the stragglers out of it.
-- unsure_at: when the last attempt was sent of which nothing is known. driving:
-- a driver has it; if its time runs out first, it may have sent until then.
CREATE TABLE attempts (
    hold_id    uuid        PRIMARY KEY,
    next_at    timestamptz NOT NULL,
    n          integer     NOT NULL,
    active_ms  bigint      NOT NULL,
    unsure_at  timestamptz,
    driving    boolean     NOT NULL DEFAULT false,
    last_error text        NOT NULL
) WITH (fillfactor = 60);
CREATE INDEX attempts_next ON attempts (next_at);

-- Every hold with an id below id has ended or has a row in attempts. No Try makes
-- a hold with an id below floor, whatever its clock says; id follows when every
-- Try that may not have seen the floor has ended.
CREATE TABLE watermark (
    one   boolean PRIMARY KEY DEFAULT true CHECK (one),
    id    uuid    NOT NULL,
    floor uuid    NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000'
);
INSERT INTO watermark (id) VALUES ('00000000-0000-0000-0000-000000000000');

-- What a person may have to look at. unrefunded: the refund worker's queue.
CREATE TABLE dead_letters (
    hold_id    uuid        NOT NULL,
    created_at timestamptz NOT NULL,
    closed_at  timestamptz,
    unrefunded boolean     NOT NULL,
    code       text        NOT NULL,
    detail     text        NOT NULL DEFAULT '',
    closed_by  text,
    resolution text,
    note       text,
    PRIMARY KEY (hold_id, code)
);
CREATE INDEX dead_letters_unrefunded ON dead_letters (created_at) WHERE unrefunded;
CREATE INDEX dead_letters_open ON dead_letters (created_at, hold_id) WHERE closed_at IS NULL;
CREATE INDEX dead_letters_all ON dead_letters (created_at, hold_id);

CREATE TABLE audit (
    id      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL,
    hold_id uuid,
    user_id uuid,
    actor   text        NOT NULL,
    action  text        NOT NULL,
    reason  text        NOT NULL
);
CREATE INDEX audit_hold ON audit (hold_id) WHERE hold_id IS NOT NULL;

-- Sums of an account's entries up to a day, so that the proof need not replay
-- from the beginning of time.
CREATE TABLE checkpoints (
    user_id    uuid   NOT NULL,
    currency   text   NOT NULL,
    before_day date   NOT NULL,
    available  bigint NOT NULL,
    held       bigint NOT NULL,
    seq        bigint NOT NULL,
    PRIMARY KEY (user_id, currency)
);
