package coordinator

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"mime"
	"net"
	"net/http"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/problem"
	"github.com/holdfast-escrow/holdfast/internal/strictjson"
)

// keepBody is the largest buffer that is kept for the next request.
const keepBody = 32 << 10

// withBody reads the body and gives it to f, which must not keep it.
func (c *Coordinator) withBody(w http.ResponseWriter, q *call, limit int64, f func(body []byte) error) error {
	if err := jsonOnly(q.Header); err != nil {
		return err
	}
	tooLarge := problem.New(problem.BodyTooLarge, fmt.Sprintf("at most %d bytes are read", limit))
	if q.ContentLength > limit {
		w.Header().Set("Connection", "close")
		return tooLarge
	}
	if rec, ok := w.(*recorder); ok {
		w = rec.ResponseWriter // the server's own writer closes the connection of a body that is too large
	}
	buf := c.edge.bodies.Get().(*bytes.Buffer)
	defer func() {
		if buf.Cap() <= keepBody {
			c.edge.bodies.Put(buf)
		}
	}()
	buf.Reset()
	_, err := buf.ReadFrom(http.MaxBytesReader(w, q.Body, limit))
	var large *http.MaxBytesError
	var late net.Error
	switch {
	case err == nil:
		return f(buf.Bytes())
	case errors.As(err, &large):
		return tooLarge
	case errors.As(err, &late) && late.Timeout():
		return problem.New(problem.RequestTimeout, "")
	}
	return problem.New(problem.InvalidJSON, "the body broke off")
}

// jsonOnly refuses what could be read in two ways: other media types, other
// character sets, and any coding of the content.
func jsonOnly(h http.Header) error {
	if len(h["Content-Encoding"]) > 0 {
		return problem.New(problem.MediaUnsupported, "a Content-Encoding is not supported")
	}
	types := h["Content-Type"]
	if len(types) == 1 && types[0] == problem.JSONType {
		return nil
	}
	if len(types) == 1 {
		t, params, err := mime.ParseMediaType(types[0])
		charset, there := params["charset"]
		plain := len(params) == 0 || len(params) == 1 && there && strings.EqualFold(charset, "utf-8")
		if err == nil && t == problem.JSONType && plain {
			return nil
		}
	}
	return problem.New(problem.MediaUnsupported, "send Content-Type: application/json")
}

// fieldsOf reads a document into values.
func fieldsOf(body []byte, names []string, values []strictjson.Value) error {
	return jsonProblem(strictjson.Fields(body, names, values))
}

// jsonProblem turns an error of strictjson into a problem. Its reasons are our
// words; the name of the field is the client's and only repeated when plain.
func jsonProblem(err error) error {
	var e *strictjson.Error
	if !errors.As(err, &e) {
		return err
	}
	p := problem.New(e.Code, e.Error())
	if name := problem.Printable(e.Field); name != "" {
		return p.At(name)
	}
	return p
}

// text reads a string field; a missing one is empty.
func text(names []string, values []strictjson.Value, i int) (string, error) {
	if k := values[i].Kind; k != strictjson.String && k != strictjson.None {
		return "", wrongKind(names[i], values[i], "a string")
	}
	return values[i].Text(), nil
}

func wrongKind(name string, v strictjson.Value, want string) error {
	if v.Repeats() {
		return problem.New(strictjson.DuplicateField, "an object in this field has a field twice").At(name)
	}
	return problem.New(problem.InvalidJSON, name+" must be "+want+", found "+v.Kind.String()).At(name)
}

// integer reads a required integer field. Values that int64 cannot hold come
// back as far out of every range, so that the caller's range check refuses them.
func integer(names []string, values []strictjson.Value, i int) (int64, error) {
	n, err := values[i].Int()
	switch {
	case values[i].Kind == strictjson.None:
		return 0, missing(names[i])
	case errors.Is(err, strictjson.ErrRange):
		return -1, nil
	case err != nil && values[i].Kind == strictjson.Number:
		return 0, problem.New(problem.InvalidJSON, names[i]+" must be an integer, without fraction or exponent").At(names[i])
	case err != nil:
		return 0, wrongKind(names[i], values[i], "an integer")
	}
	return n, nil
}

func missing(name string) error {
	return problem.New(problem.MissingField, name+" is missing").At(name)
}

func parseUser(name, s string) (holdfast.UserID, error) {
	id, err := holdfast.ParseUserID(s)
	if err != nil {
		return id, problem.New(problem.InvalidID, name+" is not a UUID of the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx").At(name)
	}
	return id, nil
}

// parseHold reads the id of a path. An id that no hold can have is not
// malformed, it is nobody's.
func parseHold(s string) (holdfast.HoldID, error) {
	id, err := holdfast.ParseHoldID(s)
	if err != nil {
		return id, problem.New(problem.InvalidID, "the id is not a UUID").At("id")
	}
	if !id.Valid() {
		return id, problem.New(problem.HoldNotFound, "")
	}
	return id, nil
}

// amountOf reads the field amount at index i.
func amountOf(names []string, values []strictjson.Value, i int) (int64, error) {
	n, err := integer(names, values, i)
	if err == nil && (n < 1 || n > holdfast.MaxAmount) {
		err = problem.New(problem.AmountOutOfRange, fmt.Sprintf("amount must be 1 to %d", int64(holdfast.MaxAmount))).At(names[i])
	}
	return n, err
}

// currencyOf fills in the currency when there is only one to mean.
func (c *Coordinator) currencyOf(s string, sent bool) (string, error) {
	if !sent {
		if len(c.cfg.Currencies) == 1 {
			for only := range c.cfg.Currencies {
				return only, nil
			}
		}
		s = "RBX"
	}
	if _, ok := c.cfg.Currencies[s]; ok {
		return s, nil
	}
	if !sent {
		return "", missing("currency")
	}
	return "", problem.New(problem.UnknownCurrency, "").At("currency")
}

// keyOf is the idempotency key of a request: body and headers may all carry it
// and must agree.
func keyOf(h http.Header, body string, inBody bool) (string, error) {
	key, there := body, inBody
	for _, name := range [...]string{"X-Idempotency-Key", "Idempotency-Key"} {
		for _, v := range h[name] {
			if there && v != key {
				return "", problem.New(problem.KeyConflict, "body and headers carry different keys").At("idempotency_key")
			}
			key, there = v, true
		}
	}
	return key, checkKey(key)
}

func checkKey(key string) error {
	if key == "" {
		return problem.New(problem.KeyMissing, "send idempotency_key or the header Idempotency-Key").At("idempotency_key")
	}
	if !utf8.ValidString(key) || utf8.RuneCountInString(key) > holdfast.MaxKey || strings.ContainsFunc(key, unicode.IsControl) {
		return problem.New(problem.KeyInvalid,
			fmt.Sprintf("a key has 1 to %d characters and no control characters", holdfast.MaxKey)).At("idempotency_key")
	}
	return nil
}

// earliestUnlock is before any hold there can be: an unlock_at below it is
// refused without asking the shard, because no replay can hide behind it.
var earliestUnlock = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()

// timeShape is RFC 3339 to the letter; time.Parse also takes a comma for the
// point and hours of one digit.
var timeShape = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$`)

// unlockOf reads unlock_at or unlock_in_seconds. Only the sender's shard knows
// what time it is, so everything that depends on the clock is left to it.
func unlockOf(names []string, values []strictjson.Value, at, in int) (atMS, delayMS int64, err error) {
	when, err := text(names, values, at)
	if err != nil {
		return 0, 0, err
	}
	hasAt, hasIn := values[at].Kind != strictjson.None, values[in].Kind != strictjson.None
	switch {
	case hasAt && hasIn:
		return 0, 0, problem.New(problem.InvalidField, "unlock_at and unlock_in_seconds exclude one another").At(names[at]).At(names[in])
	case hasIn:
		n, err := integer(names, values, in)
		if err == nil && (n < 1 || n > int64(holdfast.MaxDelay/time.Second)) {
			err = problem.New(problem.UnlockOutOfRange, "unlock_in_seconds must be 1 to 7776000 (90 days)").At(names[in])
		}
		return 0, n * 1000, err
	case !hasAt:
		return 0, 0, problem.New(problem.MissingField, "unlock_at or unlock_in_seconds is missing").At(names[at])
	}
	when = strings.ToUpper(when) // RFC 3339 allows t and z
	t, parseErr := time.Parse(time.RFC3339, when)
	if parseErr != nil || !timeShape.MatchString(when) {
		return 0, 0, problem.New(problem.InvalidField, "unlock_at is not a time of RFC 3339").At(names[at])
	}
	atMS = t.UnixMilli()
	if t.Nanosecond()%int(time.Millisecond) != 0 {
		atMS++ // never earlier than asked for
	}
	if atMS < earliestUnlock {
		return 0, 0, problem.New(problem.UnlockOutOfRange, "").At(names[at])
	}
	return atMS, 0, nil
}

// hashOf is the fingerprint of a request: what was asked for, with the key left
// out. Every part has a fixed or a leading length, so that no two requests
// write the same bytes.
func hashOf(kind byte, a, b holdfast.UserID, numbers [3]int64, texts ...string) [32]byte {
	buf := make([]byte, 0, 256)
	buf = append(buf, 1, kind) // version of this form
	buf = append(append(buf, a[:]...), b[:]...)
	for _, n := range numbers {
		buf = binary.BigEndian.AppendUint64(buf, uint64(n))
	}
	for _, t := range texts {
		buf = append(binary.BigEndian.AppendUint32(buf, uint32(len(t))), t...)
	}
	return sha256.Sum256(buf)
}
