package coordinator

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/branch"
	"github.com/holdfast-escrow/holdfast/internal/problem"
	"github.com/holdfast-escrow/holdfast/internal/strictjson"
)

const (
	defaultPage  = 50
	maxPage      = 200
	maxPageToken = 2048
	tokenSum     = 12 // bytes of the sum in a page token
)

// params reads the query. A parameter that is unknown or given twice is refused
// as a field of a body would be: a filter that is silently ignored shows more
// than was asked for.
func params(q *call, known ...string) (url.Values, error) {
	values, err := url.ParseQuery(q.URL.RawQuery)
	if err != nil {
		return nil, problem.New(problem.InvalidField, "the query of the URL is malformed")
	}
	for name, v := range values {
		switch {
		case !slices.Contains(known, name):
			p := problem.New(strictjson.UnknownField, "a parameter is not known")
			if name = problem.Printable(name); name != "" {
				p = p.At(name)
			}
			return nil, p
		case len(v) != 1:
			return nil, problem.New(strictjson.DuplicateField, "a parameter appears twice").At(name)
		case !utf8.ValidString(v[0]):
			return nil, problem.New(problem.InvalidField, "a parameter is not UTF-8").At(name)
		}
	}
	return values, nil
}

// page is where a list begins and how much of it is wanted. query names the
// list, so that a token cannot be carried over to another one.
type page struct {
	size   int
	before string
	query  string
}

func pageOf(values url.Values, query string) (page, error) {
	p := page{size: defaultPage, query: query}
	if values.Has("page_size") {
		n, err := strconv.Atoi(values.Get("page_size"))
		if err != nil || n < 1 || n > maxPage {
			return p, problem.New(problem.InvalidField, "page_size must be 1 to 200").At("page_size")
		}
		p.size = n
	}
	if values.Has("page_token") {
		before, ok := p.open(values.Get("page_token"))
		if !ok {
			return p, problem.New(problem.InvalidPageToken, "").At("page_token")
		}
		p.before = before
	}
	return p, nil
}

// token is opaque to clients: a sum over list and position, then the position.
// The sum finds mistakes, not attacks; a position tells nothing and opens
// nothing, because every page is checked like the first.
func (p page) token(next string) string {
	if next == "" {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(append(p.sum(next), next...))
}

func (p page) sum(position string) []byte {
	s := sha256.Sum256([]byte(p.query + "\x00" + position))
	return s[:tokenSum]
}

func (p page) open(token string) (string, bool) {
	if len(token) > maxPageToken {
		return "", false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) <= tokenSum {
		return "", false
	}
	position := string(b[tokenSum:])
	return position, string(p.sum(position)) == string(b[:tokenSum])
}

func statusOf(values url.Values) (holdfast.Status, error) {
	if !values.Has("status") {
		return holdfast.StatusUnknown, nil
	}
	s, err := holdfast.ParseStatus(values.Get("status"))
	if err != nil {
		return s, problem.New(problem.InvalidField,
			"status must be PENDING, EXECUTING, EXECUTED, FAILED or CANCELLED").At("status")
	}
	return s, nil
}

// readError is the answer for a read whose transport failed. Nothing can have
// been done, so an unknown outcome is the same as no answer.
func (c *Coordinator) readError(op string, shard int, err error) error {
	if errors.Is(err, holdfast.ErrInvalid) && (op == branch.OpList || op == branch.OpStatement) {
		return problem.New(problem.InvalidPageToken, "")
	}
	if !errors.Is(err, holdfast.ErrShardUnavailable) && !errors.Is(err, holdfast.ErrOverloaded) {
		c.log.Warn("read from a shard did not end", "op", op, "shard", shard, "error", err.Error())
		return problem.New(problem.ShardUnavailable, "")
	}
	return err
}

type holdPage struct {
	Holds       []holdfast.Hold `json:"holds"`
	Next        string          `json:"next_page_token,omitempty"`
	Unavailable []int           `json:"shards_unavailable,omitempty"`
}

func (c *Coordinator) listHolds(w http.ResponseWriter, q *call) error {
	values, err := params(q, "sender_id", "idempotency_key", "status", "page_size", "page_token")
	if err != nil {
		return err
	}
	if !values.Has("sender_id") {
		return missing("sender_id")
	}
	var r branch.ListRequest
	if r.Sender, err = parseUser("sender_id", values.Get("sender_id")); err != nil {
		return err
	}
	if !q.who.MaySpendFor(r.Sender) {
		return problem.New(problem.ForbiddenSender, "").At("sender_id")
	}
	if r.Key = values.Get("idempotency_key"); values.Has("idempotency_key") {
		if err := checkKey(r.Key); err != nil {
			return err
		}
	}
	if r.Status, err = statusOf(values); err != nil {
		return err
	}
	p, err := pageOf(values, "holds "+r.Sender.String()+" "+r.Status.String()+" "+r.Key)
	if err != nil {
		return err
	}
	r.Before, r.Limit = p.before, p.size
	ctx, cancel := c.reading(q.Context())
	defer cancel()
	shard := c.cfg.Map.OfUser(r.Sender)
	a, err := c.shards.List(ctx, shard, r)
	if err != nil {
		return c.readError(branch.OpList, shard, err)
	}
	problem.JSON(w, http.StatusOK, holdPage{Holds: shownAll(a.Holds), Next: p.token(a.Next)})
	return nil
}
