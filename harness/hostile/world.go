package hostile

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/holdfast-escrow/holdfast"
	"github.com/holdfast-escrow/holdfast/internal/auth"
)

// world is who lives in the attacked system.
type world struct {
	sender, recipient, stranger string // users; only the sender has coins
	hold                        string // PENDING for a day
	mark                        string // makes the keys of this run its own

	service  string // token of a client, all scopes of the public API
	user     string // token of the sender
	other    string // token of the stranger
	operator string // token with the admin scopes
}

const purse = 1000

func (s *suite) setUp() (err error) {
	for _, base := range []string{s.API, s.Admin} {
		if _, err := hostOf(base); err != nil {
			return err
		}
	}
	if s.sums, err = openSums(s.ctx, s.DSNs); err != nil {
		return err
	}
	s.mark = newUser()[:8]
	s.sender, s.recipient, s.stranger = newUser(), newUser(), newUser()
	var public []string
	for _, scope := range auth.AllScopes() {
		if !strings.HasPrefix(scope, "admin:") {
			public = append(public, scope)
		}
	}
	s.service = s.sign(claims{"sub": "hostile", "act": "service", "scope": strings.Join(public, " ")})
	s.user = s.sign(claims{"sub": s.sender, "scope": strings.Join(public, " ")})
	s.other = s.sign(claims{"sub": s.stranger, "scope": strings.Join(public, " ")})
	s.operator = s.sign(claims{"sub": "hostile-operator", "scope": auth.AdminRead + " " + auth.AdminWrite})
	for _, u := range []string{s.sender, s.recipient, s.stranger} {
		if err := s.must(probe{method: "PUT", path: "/v1/accounts/" + u, token: s.service}, 201, nil); err != nil {
			return err
		}
	}
	if err := s.must(probe{method: "POST", path: "/v1/accounts/" + s.sender + "/deposits", token: s.service,
		body: fmt.Sprintf(`{"amount":%d,"idempotency_key":"hostile"}`, purse)}, 201, nil); err != nil {
		return err
	}
	var h struct {
		ID string `json:"hold_id"`
	}
	err = s.must(probe{method: "POST", path: "/v1/holds", token: s.service, body: s.doc("unlock_in_seconds", "86400")}, 201, &h)
	s.hold = h.ID
	return err
}

// tearDown leaves nothing that is still open.
func (s *suite) tearDown() {
	if err := s.must(probe{method: "DELETE", path: "/v1/holds/" + s.hold, token: s.user}, 200, nil); err != nil {
		s.found("tear down", "%v", err)
	}
	s.purse(purse, 0)
}

func (s *suite) must(p probe, status int, out any) error {
	a, err := s.send(p)
	if err != nil {
		return fmt.Errorf("%s %s: %w", p.method, p.path, err)
	}
	if a.status != status {
		return fmt.Errorf("%s %s: %d %s", p.method, p.path, a.status, short(a.body))
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(a.body, out)
}

// purse checks what the sender has.
func (s *suite) purse(available, held int64) {
	var got struct{ Available, Held int64 }
	err := s.must(probe{method: "GET", path: "/v1/accounts/" + s.sender, token: s.user}, 200, &got)
	if err != nil || got.Available != available || got.Held != held {
		s.found("balance of the sender", "%d available and %d held, want %d and %d; %v", got.Available, got.Held, available, held, err)
	}
}

func newUser() string {
	var u holdfast.UserID
	_, _ = rand.Read(u[:])
	return u.String()
}

func (s *suite) key() string {
	s.keys++
	return fmt.Sprintf("%s-%d", s.mark, s.keys)
}

// doc is a good create with a key of its own and with changes: name and raw
// JSON in turn, omit leaves the field out.
func (s *suite) doc(changes ...string) string {
	order := []string{"sender_id", "recipient_id", "amount", "unlock_in_seconds", "idempotency_key"}
	raw := map[string]string{"sender_id": quote(s.sender), "recipient_id": quote(s.recipient), "amount": "5",
		"unlock_in_seconds": "3600", "idempotency_key": quote(s.key())}
	for i := 0; i+1 < len(changes); i += 2 {
		if _, there := raw[changes[i]]; !there {
			order = append(order, changes[i])
		}
		raw[changes[i]] = changes[i+1]
	}
	var parts []string
	for _, name := range order {
		if raw[name] != omit {
			parts = append(parts, quote(name)+":"+raw[name])
		}
	}
	return "{" + strings.Join(parts, ",") + "}"
}

func quote(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// create is a probe of POST /v1/holds.
func (s *suite) create(name, body string, status int, code string, headers ...string) probe {
	return probe{name: name, method: "POST", path: "/v1/holds", token: s.service, body: body, status: status, code: code, headers: headers}
}

type claims map[string]any

// sign makes a token that is right except for the changes; a nil value takes
// a claim away.
func (s *suite) sign(changes claims) string {
	return s.signAs(claims{"alg": "HS256", "typ": "JWT"}, changes)
}

func (s *suite) signAs(header, changes claims) string {
	now := time.Now().Unix()
	c := claims{"iss": s.Issuer, "aud": s.Audience, "iat": now, "exp": now + 3600, "sub": s.sender, "scope": strings.Join(auth.AllScopes(), " ")}
	maps.Copy(c, changes)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return s.seal(part(header)+"."+part(c), s.Secret)
}

func (s *suite) seal(text string, secret []byte) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func part(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("hostile: marshal %v: %v", v, err)) // maps of plain values always marshal
	}
	return base64.RawURLEncoding.EncodeToString(b)
}
