// Package auth decides who speaks: it verifies bearer tokens and says what
// their scopes allow. It knows nothing of HTTP. A token is worth nothing unless
// its algorithm is the one the verifier was made for, whatever its header asks.
package auth

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/holdfast-escrow/holdfast"
)

// Scopes of the public and the admin API.
const (
	HoldsCreate   = "holds:create"
	HoldsRead     = "holds:read"
	HoldsCancel   = "holds:cancel"
	AccountsRead  = "accounts:read"
	AccountsWrite = "accounts:write"
	AccountsAdmin = "accounts:admin"
	AdminRead     = "admin:read"
	AdminWrite    = "admin:write"
)

// AllScopes lists every scope there is.
func AllScopes() []string {
	return []string{HoldsCreate, HoldsRead, HoldsCancel, AccountsRead, AccountsWrite, AccountsAdmin, AdminRead, AdminWrite}
}

// Limits of tokens.
const (
	MaxLifetime   = time.Hour
	DefaultLeeway = 30 * time.Second
	MinSecret     = 32 // bytes of an HS256 secret
	maxToken      = 8 << 10
	maxSubject    = 128
	maxCached     = 16384 // verified tokens remembered per generation
)

// ErrUnauthenticated is the kind of every refusal of Verify.
var ErrUnauthenticated = errors.New("unauthenticated")

// service is the value of the claim act that marks a client that may act for
// every user.
const service = "service"

// Principal is who a token speaks for. It must not be changed.
type Principal struct {
	Subject string
	User    holdfast.UserID // zero for services and for subjects that are not users
	Service bool
	Scopes  []string
}

// Has reports whether the token carries a scope.
func (p *Principal) Has(scope string) bool { return slices.Contains(p.Scopes, scope) }

// MaySpendFor reports whether the token may act for a user: a service for
// anyone, a user for themselves.
func (p *Principal) MaySpendFor(user holdfast.UserID) bool {
	return p.Service || !user.IsZero() && p.User == user
}

type claims struct {
	jwt.RegisteredClaims
	Scope string `json:"scope"`
	Act   string `json:"act"`
}

// Verifier checks tokens. It is safe for concurrent use.
type Verifier struct {
	parser *jwt.Parser
	secret []byte
	leeway time.Duration
	now    func() time.Time

	// Verified tokens by their full text, so that a busy client's signature is
	// checked once and not for each request. Two generations bound the memory:
	// when the young one is full it becomes the old one.
	mu         sync.RWMutex
	young, old map[string]verified
}

type verified struct {
	who   *Principal
	until time.Time
}

// NewHS256 makes a verifier of tokens signed with one shared secret of at least
// MinSecret bytes. A leeway of zero means DefaultLeeway.
func NewHS256(secret []byte, issuer, audience string, leeway time.Duration) (*Verifier, error) {
	return NewHS256At(secret, issuer, audience, leeway, time.Now)
}

// NewHS256At is NewHS256 with a clock of the caller's.
func NewHS256At(secret []byte, issuer, audience string, leeway time.Duration, now func() time.Time) (*Verifier, error) {
	if len(secret) < MinSecret {
		return nil, fmt.Errorf("HS256 secret has %d bytes, at least %d are needed", len(secret), MinSecret)
	}
	if issuer == "" || audience == "" {
		return nil, errors.New("token issuer and audience must not be empty")
	}
	if leeway == 0 {
		leeway = DefaultLeeway
	}
	return &Verifier{
		secret: slices.Clone(secret),
		leeway: leeway,
		now:    now,
		young:  map[string]verified{},
		parser: jwt.NewParser(
			jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}),
			jwt.WithIssuer(issuer), jwt.WithAudience(audience),
			jwt.WithExpirationRequired(), jwt.WithIssuedAt(),
			jwt.WithLeeway(leeway), jwt.WithTimeFunc(now), jwt.WithStrictDecoding()),
	}, nil
}

// Verify says who a token speaks for. Its errors are ErrUnauthenticated and
// carry a reason for the log, which is not for the client.
func (v *Verifier) Verify(token string) (*Principal, error) {
	if len(token) > maxToken {
		return nil, fmt.Errorf("%w: token longer than %d bytes", ErrUnauthenticated, maxToken)
	}
	if who := v.remembered(token); who != nil {
		return who, nil
	}
	var c claims
	if _, err := v.parser.ParseWithClaims(token, &c, v.key); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrUnauthenticated, err)
	}
	if err := v.lifetime(&c); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrUnauthenticated, err)
	}
	who, err := principal(&c)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrUnauthenticated, err)
	}
	v.remember(strings.Clone(token), verified{who, c.ExpiresAt.Add(v.leeway)})
	return who, nil
}

// key ignores kid: there is one secret. A crit header lists extensions that the
// reader must understand (RFC 7515, 4.1.11), and we understand none.
func (v *Verifier) key(t *jwt.Token) (any, error) {
	if _, there := t.Header["crit"]; there {
		return nil, errors.New("critical header extensions are not supported")
	}
	return v.secret, nil
}

// lifetime refuses long-lived tokens. Without iat the time left counts, which
// is never longer than the lifetime.
func (v *Verifier) lifetime(c *claims) error {
	left := c.ExpiresAt.Sub(v.now())
	if c.IssuedAt != nil && c.ExpiresAt.Sub(c.IssuedAt.Time) > MaxLifetime || left > MaxLifetime+v.leeway {
		return fmt.Errorf("lifetime is longer than %v", MaxLifetime)
	}
	return nil
}

func principal(c *claims) (*Principal, error) {
	if c.Subject == "" || len(c.Subject) > maxSubject {
		return nil, fmt.Errorf("subject has %d bytes, 1 to %d are allowed", len(c.Subject), maxSubject)
	}
	p := &Principal{Subject: c.Subject, Scopes: strings.Fields(c.Scope)}
	switch c.Act {
	case service:
		p.Service = true
	case "":
		// Subjects that are not users are people of the operator; they can have
		// admin scopes but spend for nobody.
		if id, err := holdfast.ParseUserID(c.Subject); err == nil {
			p.User = id
		}
	default:
		return nil, fmt.Errorf("claim act is %q, only %q is known", c.Act, service)
	}
	return p, nil
}

func (v *Verifier) remembered(token string) *Principal {
	v.mu.RLock()
	e, ok := v.young[token]
	if !ok {
		e, ok = v.old[token]
	}
	v.mu.RUnlock()
	if ok && v.now().Before(e.until) {
		return e.who
	}
	return nil
}

func (v *Verifier) remember(token string, e verified) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.young) >= maxCached {
		v.old, v.young = v.young, map[string]verified{}
	}
	v.young[token] = e
}
