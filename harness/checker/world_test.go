package checker

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/harness"
	"github.com/holdfast-escrow/holdfast/harness/workload"
	"github.com/holdfast-escrow/holdfast/internal/apiclient"
	"github.com/holdfast-escrow/holdfast/internal/paysim"
	"github.com/holdfast-escrow/holdfast/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// scene is a small world that the real product has made, with the history of
// the client that asked for it: one hold of every fate. Its databases are the
// templates of the subtests', each of which breaks one thing.
type scene struct {
	t       *testing.T
	dsns    []string
	users   *holdfast.ShardMap
	history *workload.History
	journal []byte
	names   *strings.Replacer

	api                              *apiclient.Client
	sender, near, far, banned        holdfast.UserID
	paidNear, paidFar, refused, gone holdfast.HoldID // EXECUTED twice, FAILED and refunded, CANCELLED
	waiting                          holdfast.HoldID // PENDING for an hour
}

// play makes the scene, stops the product and takes the guards off the tables.
func play(t *testing.T) *scene {
	t.Helper()
	s := act(t)
	for _, dsn := range s.dsns {
		sql(t, dsn, openSQL)
	}
	return s
}

func act(t *testing.T) *scene {
	t.Helper()
	s := &scene{t: t, dsns: testkit.Databases(t, 2), users: holdfast.EvenShardMap(2), history: workload.NewHistory(1)}
	ctx := context.Background()
	stack, err := harness.Start(ctx, harness.Options{DSNs: s.dsns, RedisURL: testkit.Redis(t), Log: testkit.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer stack.Stop(ctx)
	s.api = stack.API
	s.sender, s.near, s.far, s.banned = s.user(0, 1000), s.user(0, 0), s.user(1, 7), s.user(1, 0)
	if err := stack.Sim.SetFaults(paysim.Faults{Mode: paysim.ModeOK, Banned: []holdfast.UserID{s.banned}}); err != nil {
		t.Fatal(err)
	}
	soon := 1200 * time.Millisecond
	s.paidNear = s.create("near", s.near, 100, soon)
	s.paidFar = s.create("far", s.far, 200, soon)
	s.refused = s.create("banned", s.banned, 50, soon)
	s.gone = s.create("gone", s.far, 30, time.Hour)
	s.waiting = s.create("waiting", s.far, 40, time.Hour)
	s.create("poor", s.far, 1e6, time.Hour)
	s.on(workload.KindCancel, s.gone)
	s.withdraw("some", 5)
	s.withdraw("too much", 1e6)
	c := New(Config{Target: Target{DSNs: s.dsns, Map: s.users}})
	defer c.Close()
	testkit.Eventually(t, 20*time.Second, func() (bool, string) {
		n, _, open, err := c.pending(ctx)
		return err == nil && n == 0 && open == 1, fmt.Sprintf("%d overdue, %d open, %v", n, open, err)
	})
	s.create("near", s.near, 100, soon)
	for _, id := range []holdfast.HoldID{s.paidNear, s.paidFar, s.refused, s.gone, s.waiting} {
		s.on(workload.KindGet, id)
	}
	s.on(workload.KindCancel, s.paidFar)
	ok, text, err := stack.API.Prove(ctx)
	if err != nil || !ok.OK {
		t.Fatalf("the product's own proof: %s, %v", text, err)
	}
	s.journal = get(t, stack.Sim.URL+"/sim/journal")
	s.names = strings.NewReplacer(":sender", q(s.sender), ":near", q(s.near), ":far", q(s.far), ":banned", q(s.banned),
		":paidnear", q(s.paidNear), ":paidfar", q(s.paidFar), ":refused", q(s.refused), ":gone", q(s.gone), ":waiting", q(s.waiting))
	return s
}

func q(v fmt.Stringer) string { return "'" + v.String() + "'::uuid" }

func get(t *testing.T, url string) []byte {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%s: %s %s, %v", url, res.Status, b, err)
	}
	return b
}

func (s *scene) user(shard int, balance int64) holdfast.UserID {
	s.t.Helper()
	var u holdfast.UserID
	for u.IsZero() || s.users.OfUser(u) != shard {
		_, _ = rand.Read(u[:])
	}
	if _, err := s.api.OpenAccount(context.Background(), u.String()); err != nil {
		s.t.Fatal(err)
	}
	if balance > 0 {
		op := workload.Op{Kind: workload.KindDeposit, Key: "first", Recipient: u, Amount: balance}
		op.ID = s.history.Begin(op)
		raw, err := s.api.Deposit(context.Background(), u.String(), apiclient.Cash{Amount: balance, Key: "first"})
		s.end(op, err, raw)
	}
	return u
}

// end records the answer to an operation as the workload does.
func (s *scene) end(op workload.Op, err error, answer json.RawMessage) workload.Op {
	s.t.Helper()
	op.Attempts, op.HTTP, op.Outcome = 1, 200, workload.OK
	var p *apiclient.Problem
	var told struct {
		holdfast.Hold
		Movement holdfast.HoldID `json:"movement_id"`
	}
	switch {
	case errors.As(err, &p):
		op.HTTP, op.Code, op.Outcome = p.Status, p.Code, workload.Refused
	case err != nil:
		s.t.Fatalf("%s: %v", op.Kind, err)
	case json.Unmarshal(answer, &told) != nil:
		s.t.Fatalf("%s: %s", op.Kind, answer)
	}
	switch {
	case !told.Movement.IsZero():
		op.Hold = told.Movement
	case !told.ID.IsZero():
		op.Hold, op.UnlockAt, op.Status, op.Verdict, op.Refunded = told.ID, told.UnlockAt, told.Hold.Status, told.Verdict, !told.RefundedAt.IsZero()
	}
	return s.history.End(op)
}

func (s *scene) create(key string, to holdfast.UserID, amount int64, delay time.Duration) holdfast.HoldID {
	s.t.Helper()
	op := workload.Op{Kind: workload.KindCreate, Key: key, Sender: s.sender, Recipient: to, Amount: amount}
	in := apiclient.CreateHold{Sender: s.sender.String(), Recipient: to.String(), Amount: amount, Key: key, UnlockInSeconds: max(1, int64(delay/time.Second))}
	for _, o := range s.history.Ops() {
		op.Replayed = op.Replayed || o.Kind == op.Kind && o.Key == key
	}
	op.ID = s.history.Begin(op)
	h, err := s.api.Create(context.Background(), in)
	raw, _ := json.Marshal(h)
	return s.end(op, err, raw).Hold
}

func (s *scene) on(kind string, id holdfast.HoldID) {
	s.t.Helper()
	var op workload.Op
	for _, o := range s.history.Ops() {
		if o.Kind == workload.KindCreate && o.Hold == id {
			op = workload.Op{Kind: kind, Key: o.Key, Hold: id, Sender: o.Sender, Recipient: o.Recipient, Amount: o.Amount}
		}
	}
	call := s.api.Hold
	if kind == workload.KindCancel {
		call = s.api.Cancel
	}
	op.ID = s.history.Begin(op)
	h, err := call(context.Background(), id.String())
	raw, _ := json.Marshal(h)
	s.end(op, err, raw)
}

func (s *scene) withdraw(key string, amount int64) {
	s.t.Helper()
	op := workload.Op{Kind: workload.KindWithdraw, Key: key, Sender: s.sender, Amount: amount}
	op.ID = s.history.Begin(op)
	raw, err := s.api.Public(context.Background(), "POST", "/v1/accounts/"+s.sender.String()+"/withdrawals", apiclient.Cash{Amount: amount, Key: key}, nil)
	s.end(op, err, raw)
}

// edited is the history with its operations changed.
func (s *scene) edited(t *testing.T, change func([]workload.Op) []workload.Op) *workload.History {
	t.Helper()
	var out bytes.Buffer
	if err := s.history.Export(&out); err != nil {
		t.Fatal(err)
	}
	head, _, _ := bytes.Cut(out.Bytes(), []byte("\n"))
	text := append(slices.Clone(head), '\n')
	for i, o := range change(s.history.Ops()) {
		o.ID = i
		line, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		text = append(append(text, line...), '\n')
	}
	h, err := workload.Import(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// stage is a copy of the scene for one subtest, with a simulator of its own.
type stage struct {
	*scene
	t       *testing.T
	dsns    []string
	url     string
	dir     string
	checker *Checker
}

var stages atomic.Int64

func (s *scene) stage(t *testing.T, cfg Config) *stage {
	t.Helper()
	st := &stage{scene: s, t: t, dir: t.TempDir()}
	for _, dsn := range s.dsns {
		st.dsns = append(st.dsns, st.clone(dsn))
	}
	st.write(string(s.journal))
	st.serve()
	cfg.Target = Target{DSNs: st.dsns, Map: s.users, PaymentURL: st.url, Prove: cfg.Prove}
	cfg.History = s.history
	st.checker = New(cfg)
	t.Cleanup(st.checker.Close)
	return st
}

func (st *stage) write(journal string) {
	st.t.Helper()
	if err := os.WriteFile(filepath.Join(st.dir, "payments.journal"), []byte(journal), 0o600); err != nil {
		st.t.Fatal(err)
	}
}

// serve answers for the payment simulator from its journal.
func (st *stage) serve() {
	sim, err := paysim.New(paysim.Config{Dir: st.dir, Log: testkit.Logger(st.t)})
	if err != nil {
		st.t.Fatal(err)
	}
	server := httptest.NewServer(sim)
	st.url = server.URL
	st.t.Cleanup(func() { _ = sim.Close(); server.Close() })
}

// effect adds what the payment API would write when it pays, or refuses.
func (st *stage) effect(word string, id holdfast.HoldID, to holdfast.UserID, amount int64, at time.Time) {
	st.t.Helper()
	f, err := os.OpenFile(filepath.Join(st.dir, "payments.journal"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		st.t.Fatal(err)
	}
	defer f.Close()
	_, err = fmt.Fprintf(f, "%s %032x %016x %s %s %d %d -\n", word, stages.Add(1), 7, id, to, amount, at.UnixMilli())
	if err != nil {
		st.t.Fatal(err)
	}
}

func (st *stage) clone(dsn string) string {
	st.t.Helper()
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		st.t.Fatal(err)
	}
	name := fmt.Sprintf("stage_%d", stages.Add(1))
	admin := strings.Replace(dsn, cfg.Database, "postgres", 1)
	sql(st.t, admin, "CREATE DATABASE "+name+" TEMPLATE "+cfg.Database)
	st.t.Cleanup(func() { sql(st.t, admin, "DROP DATABASE "+name+" WITH (FORCE)") })
	return strings.Replace(dsn, cfg.Database, name, 1)
}

func sql(t *testing.T, dsn, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, text); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

// openSQL takes away what protects the tables, so that a corruption is found by
// the checker and not by the server; and the partitions of other days, since an
// empty database is copied faster.
const openSQL = `
DO $$ DECLARE r record; BEGIN
    FOR r IN SELECT i.inhrelid::regclass AS name FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
             WHERE c.relkind = 'r' AND c.relname ~ '_[0-9]{8}$'
               AND abs(right(c.relname, 8)::date - (clock_timestamp() AT TIME ZONE 'UTC')::date) > 1 LOOP
        EXECUTE format('DROP TABLE %s', r.name);
    END LOOP;
    FOR r IN SELECT DISTINCT tgrelid::regclass AS name FROM pg_trigger WHERE NOT tgisinternal LOOP
        EXECUTE format('ALTER TABLE %s DISABLE TRIGGER USER', r.name);
    END LOOP;
    FOR r IN SELECT conrelid::regclass AS name, conname FROM pg_constraint WHERE contype = 'c' AND conislocal AND conrelid <> 0
             AND connamespace = 'public'::regnamespace LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT IF EXISTS %I', r.name, r.conname);
    END LOOP;
END $$`

// corrupt breaks something on a shard, as a superuser who knows no rules.
func (st *stage) corrupt(shard int, text string) {
	st.t.Helper()
	sql(st.t, st.dsns[shard], st.names.Replace(text))
}

// unknown is an id like the given one that no hold has.
func (s *scene) unknown(id holdfast.HoldID) holdfast.HoldID {
	id[15] ^= 1
	return id
}

// checks are the violations found, as "I1 posting_unbalanced".
func checks(list []Violation) []string {
	var names []string
	for _, v := range list {
		names = append(names, v.Invariant+" "+v.Check)
	}
	slices.Sort(names)
	return slices.Compact(names)
}
