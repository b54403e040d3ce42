package auth

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/holdfast-escrow/holdfast"
)

// MintOptions says what a token shall carry. Exactly one of Sub, a user's UUID,
// and Service, a client's name, is set.
type MintOptions struct {
	Sub      string
	Service  string
	Scopes   []string
	TTL      time.Duration // MaxLifetime when zero
	Issuer   string
	Audience string
	Now      time.Time // time.Now when zero
}

// Mint signs a token with HS256.
func Mint(secret []byte, o MintOptions) (string, error) {
	if len(secret) < MinSecret {
		return "", fmt.Errorf("HS256 secret has %d bytes, at least %d are needed", len(secret), MinSecret)
	}
	if o.TTL == 0 {
		o.TTL = MaxLifetime
	}
	if o.TTL < time.Second || o.TTL > MaxLifetime {
		return "", fmt.Errorf("lifetime %v is not between 1s and %v", o.TTL, MaxLifetime)
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	all := AllScopes()
	for _, s := range o.Scopes {
		if !slices.Contains(all, s) {
			return "", fmt.Errorf("unknown scope %q, known are %s", s, strings.Join(all, " "))
		}
	}
	// NumericDate is cut to whole seconds; both ends are cut alike.
	now := o.Now.Truncate(time.Second)
	c := claims{Scope: strings.Join(o.Scopes, " "), RegisteredClaims: jwt.RegisteredClaims{
		Issuer: o.Issuer, Audience: jwt.ClaimStrings{o.Audience},
		IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(o.TTL)),
	}}
	switch {
	case (o.Sub == "") == (o.Service == ""):
		return "", errors.New("a token is either for a user (sub) or for a service, exactly one must be given")
	case o.Sub != "":
		id, err := holdfast.ParseUserID(o.Sub)
		if err != nil {
			return "", fmt.Errorf("sub %q: %w", o.Sub, err)
		}
		c.Subject = id.String()
	default:
		if len(o.Service) > maxSubject {
			return "", fmt.Errorf("service name has %d bytes, at most %d are allowed", len(o.Service), maxSubject)
		}
		c.Subject, c.Act = o.Service, service
	}
	return jwt.NewWithClaims(jwt.SigningMethodHS256, c).SignedString(secret)
}
