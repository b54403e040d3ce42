package participants

// proofChecks are the comparisons that one shard makes. Each takes the time
// from which entries are replayed and answers (kind, how many, the first one).
//
// Legs and barrier rows are compared as bit masks. A leg is bit
// 4·(movement−1) + book−1, so that reserve is 3, settle 96, credit 1280, refund
// 12288, cancel 196608, deposit 9437184 and withdraw 150994944; 135336258 has
// the legs that put. A barrier row is bit 3·(branch−1) + op−1: try 1, confirm 2,
// cancel 4, the credit (02, confirm) 16.
var proofChecks = []struct{ name, sql string }{
	{"replay accounts", proofReplaySQL},
	{"compare entries with holds", proofEntriesSQL},
	{"compare barrier with holds", proofBarrierSQL},
	{"compare credits with barrier", proofCreditsSQL},
	{"compare escrow with holds", proofEscrowSQL},
	{"look for forgotten holds", proofForgottenSQL},
	{"compare deposits with entries", proofCashSQL},
}

// proofReplaySQL replays every account from its checkpoint in one sort: the
// n-th entry must have the number n, its balance must be the running sum of its
// book, and the last sums must be the balance row. The day of grace is for an
// account whose checkpoint ends before the day does.
const proofReplaySQL = `
WITH run AS (
    SELECT e.user_id, e.currency, e.seq, e.book, e.amount, e.balance_after,
           row_number() OVER w + coalesce(c.seq, 0) AS nth,
           coalesce(c.available, 0) + coalesce(sum(e.amount) FILTER (WHERE e.book = 1) OVER w, 0) AS available,
           coalesce(c.held, 0) + coalesce(sum(e.amount) FILTER (WHERE e.book = 2) OVER w, 0) AS held
    FROM entries e LEFT JOIN checkpoints c ON c.user_id = e.user_id AND c.currency = e.currency
    WHERE e.book <= 2 AND e.posted_at >= $1::timestamptz - interval '1 day' AND e.seq > coalesce(c.seq, 0)
    WINDOW w AS (PARTITION BY e.user_id, e.currency ORDER BY e.seq ROWS UNBOUNDED PRECEDING)
), replay AS (
    SELECT user_id, currency, max(nth) AS last,
           min(seq) FILTER (WHERE seq <> nth) AS gap,
           min(seq) FILTER (WHERE balance_after <> CASE book WHEN 1 THEN available ELSE held END) AS wrong,
           coalesce(sum(amount) FILTER (WHERE book = 1), 0) AS available,
           coalesce(sum(amount) FILTER (WHERE book = 2), 0) AS held
    FROM run GROUP BY user_id, currency
), both_sides AS (
    SELECT coalesce(a.user_id, r.user_id, c.user_id) AS user_id, coalesce(a.currency, r.currency, c.currency) AS currency,
           a.user_id IS NOT NULL AS known, a.available, a.held, a.seq, r.gap, r.wrong,
           coalesce(c.available, 0) + coalesce(r.available, 0) AS should_available,
           coalesce(c.held, 0) + coalesce(r.held, 0) AS should_held,
           coalesce(r.last, c.seq, 0) AS should_seq
    FROM accounts a FULL JOIN replay r ON r.user_id = a.user_id AND r.currency = a.currency
    FULL JOIN checkpoints c ON c.user_id = coalesce(a.user_id, r.user_id) AND c.currency = coalesce(a.currency, r.currency)
), bad AS (
    SELECT user_id, currency, known, available, held, seq, gap, wrong, should_available, should_held, should_seq FROM both_sides
    WHERE NOT known OR gap IS NOT NULL OR wrong IS NOT NULL OR available < 0 OR held < 0
       OR available <> should_available OR held <> should_held OR seq <> should_seq
)
SELECT kind, count(*), min(format('account %s %s: %s', user_id, currency, detail) COLLATE "C") FROM (
    SELECT user_id, currency, 'account_missing' AS kind, 'entries without an account' AS detail FROM bad WHERE NOT known
    UNION ALL
    SELECT user_id, currency, 'balance_mismatch', format('available %s and held %s, the entries say %s and %s',
           available, held, should_available, should_held)
    FROM bad WHERE known AND (available <> should_available OR held <> should_held)
    UNION ALL
    SELECT user_id, currency, 'sequence_gap', format('%s entries are counted, %s are there; the numbers break at %s',
           seq, should_seq, coalesce(gap::text, 'the end'))
    FROM bad WHERE known AND (gap IS NOT NULL OR seq <> should_seq)
    UNION ALL
    SELECT user_id, currency, 'balance_after_wrong', format('the balance after entry %s is not the sum up to it', wrong)
    FROM bad WHERE wrong IS NOT NULL
    UNION ALL
    SELECT user_id, currency, 'negative_balance', format('available %s, held %s', available, held)
    FROM bad WHERE available < 0 OR held < 0
) x GROUP BY kind ORDER BY kind`

// proofHolds is what each hold's state demands and allows of this shard's legs
// and barrier rows. The recipient is local when it has its account here: then
// verdict, credit and EXECUTED are one transaction, otherwise the credit is on
// another shard and is proved between the two. What was posted before the
// checkpoint is allowed and not demanded.
const proofHolds = `
SELECT h.id, h.sender, h.recipient, h.amount, h.currency, h.status, h.verdict,
       CASE WHEN h.created_at >= $1 THEN 3 ELSE 0 END
       | CASE WHEN h.verdict = 1 AND coalesce(h.decided_at, 'infinity') >= $1 THEN 96 ELSE 0 END
       | CASE WHEN h.status = 3 AND r.user_id IS NOT NULL AND h.executed_at >= $1 THEN 1280 ELSE 0 END
       | CASE WHEN h.refunded_at >= $1 THEN 12288 ELSE 0 END
       | CASE WHEN h.status = 5 AND h.cancelled_at >= $1 THEN 196608 ELSE 0 END AS demanded,
       3 | CASE WHEN h.verdict = 1 THEN 96 ELSE 0 END
       | CASE WHEN h.verdict = 1 AND r.user_id IS NOT NULL THEN 1280 ELSE 0 END
       | CASE WHEN h.refunded_at IS NOT NULL THEN 12288 ELSE 0 END
       | CASE WHEN h.status = 5 THEN 196608 ELSE 0 END AS allowed,
       1 | CASE WHEN h.verdict = 1 THEN 2 ELSE 0 END
       | CASE WHEN h.status = 5 OR h.refunded_at IS NOT NULL THEN 4 ELSE 0 END
       | CASE WHEN h.status = 3 AND r.user_id IS NOT NULL THEN 16 ELSE 0 END AS demanded_rows,
       CASE WHEN h.verdict = 1 AND r.user_id IS NOT NULL THEN 16 ELSE 0 END AS allowed_rows
FROM holds h LEFT JOIN accounts r ON r.user_id = h.recipient AND r.currency = h.currency`

// proofEntriesSQL checks every posting by itself (I1) and against its hold: the
// legs of a hold are exactly those that its state demands, each once, of its
// amount and on the books of its users.
const proofEntriesSQL = `
WITH legs AS (
    SELECT ref, count(*) AS n, bit_or(bit) AS mask, sum(amount) AS total,
           min(abs(amount)) AS least, max(abs(amount)) AS most,
           bool_and((amount > 0) = (bit & 135336258 <> 0)) AS right_way,
           min(currency COLLATE "C") AS currency, min(currency COLLATE "C") = max(currency COLLATE "C") AS one_currency,
           min(who) FILTER (WHERE movement <> 3) AS sender_low, max(who) FILTER (WHERE movement <> 3) AS sender_high,
           min(who) FILTER (WHERE movement = 3) AS recipient_low, max(who) FILTER (WHERE movement = 3) AS recipient_high
    FROM (SELECT ref, amount, currency, movement, 1 << (4 * (movement - 1) + book - 1) AS bit, uuid_hash_extended(user_id, 7) AS who
          FROM entries WHERE posted_at >= $1) e
    GROUP BY ref
), both_sides AS (
    SELECT coalesce(h.id, l.ref) AS id, h.id IS NOT NULL AS known, h.status, h.verdict, h.amount, l.least, l.most,
           coalesce(l.mask, 0) AS mask, coalesce(h.demanded, 0) AS demanded,
           coalesce(h.allowed, CASE WHEN l.mask IN (1280, 9437184, 150994944) THEN l.mask ELSE 0 END) AS allowed,
           coalesce(l.n, 0) <> bit_count(coalesce(l.mask, 0)::bit(32)) AS doubled,
           coalesce(l.total, 0) AS total, coalesce(l.right_way, true) AS right_way,
           coalesce(l.least <> l.most OR l.least <> h.amount OR NOT l.one_currency OR l.currency <> h.currency, false) AS other_amount,
           coalesce(l.sender_low <> uuid_hash_extended(h.sender, 7), false) OR coalesce(l.sender_high <> uuid_hash_extended(h.sender, 7), false)
           OR coalesce(l.recipient_low <> uuid_hash_extended(h.recipient, 7), false)
           OR coalesce(l.recipient_high <> uuid_hash_extended(h.recipient, 7), false)
           OR coalesce(l.sender_low <> l.sender_high, false) OR coalesce(l.recipient_low <> l.recipient_high, false) AS other_user
    FROM (` + proofHolds + `) h FULL JOIN legs l ON l.ref = h.id
)
SELECT kind, count(*), min(format('%s %s (status %s, verdict %s): legs %s, demanded %s, allowed %s, sum %s',
    CASE WHEN known THEN 'hold' ELSE 'no hold' END, id, coalesce(status::text, 'none'), coalesce(verdict::text, 'none'),
    mask, demanded, allowed, total) COLLATE "C")
FROM (
    SELECT id, known, status, verdict, mask, demanded, allowed, total, CASE
        WHEN doubled THEN 'posting_doubled'
        WHEN total <> 0 THEN 'posting_unbalanced'
        WHEN NOT right_way THEN 'posting_malformed'
        WHEN mask & ~allowed <> 0 THEN 'entry_unexpected'
        WHEN demanded & ~mask <> 0 THEN 'entry_missing'
        WHEN other_amount THEN 'amount_mismatch'
        ELSE 'wrong_account' END AS kind
    FROM both_sides
    WHERE doubled OR total <> 0 OR NOT right_way OR mask & ~allowed <> 0 OR demanded & ~mask <> 0 OR other_amount OR other_user
) bad GROUP BY kind ORDER BY kind`

// proofBarrierSQL: each step that a hold's state tells of has its barrier row
// and no other has one. Without a hold there are the credits of other shards'
// holds (16) and Cancels that came before their Try (5).
const proofBarrierSQL = `
WITH marks AS (
    SELECT gid, bit_or(1 << (3 * (branch - 1) + op - 1)) AS mask FROM barrier GROUP BY gid
), both_sides AS (
    SELECT coalesce(h.id, m.gid) AS id, h.status, h.verdict, coalesce(m.mask, 0) AS mask, coalesce(h.demanded_rows, 0) AS demanded,
           coalesce(h.demanded_rows | h.allowed_rows, CASE WHEN m.mask IN (16, 5) THEN m.mask ELSE 0 END) AS allowed
    FROM (` + proofHolds + `) h FULL JOIN marks m ON m.gid = h.id
)
SELECT kind, count(*), min(format('hold %s (status %s, verdict %s): barrier rows %s, demanded %s, allowed %s',
    id, coalesce(status::text, 'none'), coalesce(verdict::text, 'none'), mask, demanded, allowed) COLLATE "C")
FROM (
    SELECT id, status, verdict, mask, demanded, allowed,
           CASE WHEN demanded & ~mask <> 0 THEN 'barrier_missing' ELSE 'barrier_unexpected' END AS kind
    FROM both_sides WHERE demanded & ~mask <> 0 OR mask & ~allowed <> 0
) bad GROUP BY kind ORDER BY kind`

// proofCreditsSQL: a credit and its barrier row are one transaction, whoever
// owns the hold.
const proofCreditsSQL = `
SELECT kind, count(*), min(format('hold %s: credit %s', id, detail) COLLATE "C")
FROM (
    SELECT coalesce(e.ref, b.gid) AS id,
           CASE WHEN e.ref IS NULL THEN 'entry_missing' ELSE 'barrier_missing' END AS kind,
           CASE WHEN e.ref IS NULL THEN 'has its barrier row and no entries' ELSE 'has entries and no barrier row' END AS detail
    FROM (SELECT ref FROM entries WHERE movement = 3 AND book = 1 AND posted_at >= $1) e
    FULL JOIN (SELECT gid, created_at FROM barrier WHERE branch = 2 AND op = 2) b ON b.gid = e.ref
    WHERE b.gid IS NULL OR (e.ref IS NULL AND b.created_at >= $1)
) bad GROUP BY kind ORDER BY kind`

// proofEscrowSQL: what a user has in escrow is the sum of its holds there (I2).
const proofEscrowSQL = `
WITH escrow AS (
    SELECT sender, currency, sum(amount) AS held FROM holds
    WHERE status = 1 OR (status = 2 AND verdict IS NULL) OR (status = 4 AND refunded_at IS NULL)
    GROUP BY sender, currency
)
SELECT CASE WHEN a.user_id IS NULL THEN 'account_missing' ELSE 'escrow_mismatch' END AS kind, count(*),
       min(format('account %s %s: held %s, its holds in escrow are %s', coalesce(a.user_id, x.sender),
           coalesce(a.currency, x.currency), coalesce(a.held, 0), coalesce(x.held, 0)) COLLATE "C")
FROM accounts a FULL JOIN escrow x ON x.sender = a.user_id AND x.currency = a.currency
WHERE $1::timestamptz IS NOT NULL AND coalesce(a.held, 0) <> coalesce(x.held, 0)
GROUP BY 1 ORDER BY 1`

// proofForgottenSQL: below the watermark an unended hold is found only through
// its row in attempts, and one that waits for its refund only through its dead
// letter; without them the money would stay in escrow or in transit for ever.
const proofForgottenSQL = `
SELECT 'hold_forgotten', count(*), min(format('hold %s (status %s) %s', h.id, h.status, CASE h.status
    WHEN 4 THEN 'waits for its refund and is not in the queue' ELSE 'is below the watermark and has no attempt' END) COLLATE "C")
FROM holds h
WHERE $1::timestamptz IS NOT NULL AND CASE
    WHEN h.status <= 2 THEN h.id < (SELECT w.id FROM watermark w) AND NOT EXISTS (SELECT FROM attempts t WHERE t.hold_id = h.id)
    WHEN h.status = 4 THEN h.refunded_at IS NULL AND NOT EXISTS (SELECT FROM dead_letters d WHERE d.hold_id = h.id AND d.unrefunded) END
HAVING count(*) > 0`

// proofCashSQL: a deposit or withdrawal that was accepted has its movement, one
// that was refused has none, and no coins come or go without one.
const proofCashSQL = `
SELECT 'cash_mismatch', count(*), min(format('%s %s of %s %s %s', CASE coalesce(c.kind, e.movement) WHEN 6 THEN 'deposit' ELSE 'withdrawal' END,
           coalesce(c.ref, e.ref), coalesce(c.amount, abs(e.amount)), coalesce(c.currency, e.currency),
           CASE WHEN e.ref IS NULL THEN 'has no entry' WHEN c.ref IS NULL THEN 'was asked for by nobody' ELSE 'has another entry' END) COLLATE "C")
FROM cash c
FULL JOIN (SELECT ref, user_id, currency, amount, movement FROM entries
           WHERE movement >= 6 AND book = 1 AND posted_at >= $1) e ON e.ref = c.ref
WHERE CASE WHEN c.ref IS NULL THEN true
           WHEN c.refusal IS NOT NULL THEN e.ref IS NOT NULL
           WHEN e.ref IS NULL THEN c.at >= $1
           ELSE abs(e.amount) <> c.amount OR e.user_id <> c.user_id OR e.currency <> c.currency OR e.movement <> c.kind END
HAVING count(*) > 0`
