package auth

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/holdfast-escrow/holdfast"
)

var (
	secret = []byte(strings.Repeat("s", MinSecret))
	epoch  = time.Unix(1_900_000_000, 0)
)

const (
	alice = "0190c1d2-1111-7000-8000-00000000000a"
	bob   = "0190c1d2-1111-7000-8000-00000000000b"
)

func verifier(t testing.TB, now func() time.Time) *Verifier {
	t.Helper()
	v, err := NewHS256At(secret, "iss", "aud", 0, now)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func still() time.Time { return epoch }

func good() jwt.MapClaims {
	return jwt.MapClaims{"iss": "iss", "aud": "aud", "sub": alice, "scope": "holds:create holds:read",
		"iat": epoch.Unix(), "exp": epoch.Add(time.Hour).Unix()}
}

func sign(t testing.TB, m jwt.SigningMethod, key any, header map[string]any, c jwt.Claims) string {
	t.Helper()
	tok := jwt.NewWithClaims(m, c)
	for k, v := range header {
		tok.Header[k] = v
	}
	s, err := tok.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func with(changes ...any) jwt.MapClaims {
	c := good()
	for i := 0; i < len(changes); i += 2 {
		if changes[i+1] == nil {
			delete(c, changes[i].(string))
		} else {
			c[changes[i].(string)] = changes[i+1]
		}
	}
	return c
}

func TestVerifyClaims(t *testing.T) {
	t.Parallel()
	at := func(d time.Duration) int64 { return epoch.Add(d).Unix() }
	for name, c := range map[string]struct {
		claims jwt.MapClaims
		ok     bool
	}{
		"good":                           {good(), true},
		"audience in a list":             {with("aud", []string{"x", "aud"}), true},
		"no iat but a short rest":        {with("iat", nil), true},
		"expired within the leeway":      {with("iat", at(-time.Hour), "exp", at(-29*time.Second)), true},
		"issued a little in the future":  {with("iat", at(29*time.Second), "exp", at(time.Hour)), true},
		"subject is not a user":          {with("sub", "ops@example.org"), true},
		"expired":                        {with("iat", at(-time.Hour), "exp", at(-31*time.Second)), false},
		"no exp":                         {with("exp", nil), false},
		"no aud":                         {with("aud", nil), false},
		"other aud":                      {with("aud", "else"), false},
		"no iss":                         {with("iss", nil), false},
		"other iss":                      {with("iss", "else"), false},
		"no sub":                         {with("sub", nil), false},
		"long sub":                       {with("sub", strings.Repeat("x", 129)), false},
		"lives longer than an hour":      {with("exp", at(time.Hour+time.Second)), false},
		"old and lives longer":           {with("iat", at(-2*time.Hour), "exp", at(time.Minute)), false},
		"no iat and a long rest":         {with("iat", nil, "exp", at(time.Hour+31*time.Second)), false},
		"issued in the future":           {with("iat", at(time.Minute), "exp", at(time.Hour)), false},
		"not yet valid":                  {with("nbf", at(time.Minute)), false},
		"acts as something else":         {with("act", "admin"), false},
		"exp is not a number":            {with("exp", "soon"), false},
		"exp is far beyond every number": {with("exp", 1e300), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := verifier(t, still).Verify(sign(t, jwt.SigningMethodHS256, secret, nil, c.claims))
			if (err == nil) != c.ok {
				t.Errorf("err = %v, want ok %v", err, c.ok)
			}
			if err != nil && !errors.Is(err, ErrUnauthenticated) {
				t.Errorf("err = %v is not of the kind", err)
			}
		})
	}
}

func TestVerifySignature(t *testing.T) {
	t.Parallel()
	v := verifier(t, still)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	ok := sign(t, jwt.SigningMethodHS256, secret, nil, good())
	part := strings.Split(ok, ".")
	for name, token := range map[string]string{
		"alg none":             sign(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil, good()),
		"alg None, no sig":     b64([]byte(`{"alg":"None","typ":"JWT"}`)) + "." + part[1] + ".",
		"alg missing":          b64([]byte(`{"typ":"JWT"}`)) + "." + part[1] + "." + part[2],
		"alg HS512":            sign(t, jwt.SigningMethodHS512, secret, nil, good()),
		"alg RS256":            sign(t, jwt.SigningMethodRS256, rsaKey, nil, good()),
		"wrong secret":         sign(t, jwt.SigningMethodHS256, []byte(strings.Repeat("x", MinSecret)), nil, good()),
		"crit":                 sign(t, jwt.SigningMethodHS256, secret, map[string]any{"crit": []string{"b64"}, "b64": false}, good()),
		"signature cut":        ok[:len(ok)-2],
		"claims exchanged":     part[0] + "." + b64([]byte(`{"sub":"`+bob+`"}`)) + "." + part[2],
		"two parts":            part[0] + "." + part[1],
		"four parts":           ok + ".x",
		"empty":                "",
		"text after the token": ok + " ",
		"longer than allowed":  ok + strings.Repeat("A", maxToken),
	} {
		if who, err := v.Verify(token); !errors.Is(err, ErrUnauthenticated) || who != nil {
			t.Errorf("%s: %v, %v", name, who, err)
		}
	}
	if _, err := v.Verify(sign(t, jwt.SigningMethodHS256, secret, map[string]any{"kid": "../../etc/passwd"}, good())); err != nil {
		t.Errorf("a kid must be ignored: %v", err)
	}
}

func TestRememberedTokenExpires(t *testing.T) {
	t.Parallel()
	now := epoch
	v := verifier(t, func() time.Time { return now })
	token := sign(t, jwt.SigningMethodHS256, secret, nil, good())
	first, err := v.Verify(token)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := v.Verify(token); again != first {
		t.Error("the second look did not come from memory")
	}
	now = epoch.Add(time.Hour + DefaultLeeway)
	if _, err := v.Verify(token); !errors.Is(err, ErrUnauthenticated) {
		t.Errorf("an expired token was remembered: %v", err)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	v := verifier(t, still)
	for i := range 3 * maxCached {
		v.remember(strings.Repeat("x", i%64)+string(rune(i)), verified{})
	}
	if n := len(v.young) + len(v.old); n > 2*maxCached {
		t.Errorf("%d tokens remembered", n)
	}
}

func TestPrincipal(t *testing.T) {
	t.Parallel()
	a, _ := holdfast.ParseUserID(alice)
	b, _ := holdfast.ParseUserID(bob)
	v := verifier(t, still)
	mint := func(o MintOptions) *Principal {
		t.Helper()
		o.Issuer, o.Audience, o.Now = "iss", "aud", epoch
		token, err := Mint(secret, o)
		if err != nil {
			t.Fatal(err)
		}
		who, err := v.Verify(token)
		if err != nil {
			t.Fatal(err)
		}
		return who
	}
	user := mint(MintOptions{Sub: strings.ToUpper(alice), Scopes: []string{HoldsCreate}})
	if user.User != a || user.Service || !user.MaySpendFor(a) || user.MaySpendFor(b) || user.MaySpendFor(holdfast.UserID{}) {
		t.Errorf("user: %+v", user)
	}
	if !user.Has(HoldsCreate) || user.Has(HoldsRead) || user.Has("") || user.Has("holds") {
		t.Errorf("scopes: %q", user.Scopes)
	}
	// A service whose name looks like a user is still a service and no user.
	svc := mint(MintOptions{Service: alice, Scopes: AllScopes()})
	if !svc.Service || !svc.User.IsZero() || !svc.MaySpendFor(a) || !svc.MaySpendFor(b) {
		t.Errorf("service: %+v", svc)
	}
}

func TestMintRefuses(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]MintOptions{
		"neither":       {},
		"both":          {Sub: alice, Service: "x"},
		"no user":       {Sub: "alice"},
		"unknown scope": {Sub: alice, Scopes: []string{"holds:steal"}},
		"too long":      {Sub: alice, TTL: time.Hour + 1},
		"too short":     {Sub: alice, TTL: -1},
	} {
		if token, err := Mint(secret, o); err == nil || token != "" {
			t.Errorf("%s: %q, %v", name, token, err)
		}
	}
	if _, err := Mint(secret[1:], MintOptions{Sub: alice}); err == nil {
		t.Error("a short secret was taken")
	}
	if _, err := NewHS256(secret[1:], "i", "a", 0); err == nil {
		t.Error("a short secret was taken")
	}
	if _, err := NewHS256(secret, "", "a", 0); err == nil {
		t.Error("an empty issuer was taken")
	}
}

func BenchmarkVerify(b *testing.B) {
	v := verifier(b, still)
	token := sign(b, jwt.SigningMethodHS256, secret, nil, good())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(token); err != nil {
			b.Fatal(err)
		}
	}
}
