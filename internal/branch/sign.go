package branch

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strconv"
	"time"
)

// Headers of a signed request and of its answer.
const (
	HeaderTime      = "X-Holdfast-Time"      // Unix seconds
	HeaderSignature = "X-Holdfast-Signature" // hex HMAC-SHA256
	// HeaderAnswer tells an answer of Holdfast from one that a proxy on the way
	// made up: only the first may say that nothing was done.
	HeaderAnswer = "X-Holdfast-Answer"
)

const (
	// maxSkew bounds how old a signed request may be. Every step is idempotent,
	// so that a replay within it changes nothing.
	maxSkew = 60 * time.Second
	// maxBody bounds a batch: 500 items of the largest kind.
	maxBody = 4 << 20
)

func signature(secret []byte, method, uri, unix string, body []byte) string {
	mac := hmac.New(sha256.New, secret)
	fmt.Fprintf(mac, "%s\n%s\n%s\n%d\n", method, uri, unix, len(body))
	mac.Write(body)
	return hex.EncodeToString(mac.Sum(nil))
}

// Sign adds the time and the signature over method, path, time and body.
func Sign(r *http.Request, secret, body []byte, now time.Time) {
	unix := strconv.FormatInt(now.Unix(), 10)
	r.Header.Set(HeaderTime, unix)
	r.Header.Set(HeaderSignature, signature(secret, r.Method, r.URL.RequestURI(), unix, body))
}

// Verify reads the body of a request and checks its signature. The error says
// what is wrong and never what would be right.
func Verify(r *http.Request, secret []byte, now time.Time) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, fmt.Errorf("read the body: %w", err)
	}
	if len(body) > maxBody {
		return nil, fmt.Errorf("the body is over %d bytes", maxBody)
	}
	unix, err := strconv.ParseInt(r.Header.Get(HeaderTime), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("%s is missing or not Unix seconds", HeaderTime)
	}
	if d := now.Sub(time.Unix(unix, 0)); d > maxSkew || d < -maxSkew {
		return nil, fmt.Errorf("%s is %s away from this server's clock", HeaderTime, d.Round(time.Second))
	}
	want := signature(secret, r.Method, r.URL.RequestURI(), r.Header.Get(HeaderTime), body)
	if !hmac.Equal([]byte(want), []byte(r.Header.Get(HeaderSignature))) {
		return nil, fmt.Errorf("%s does not match: do both sides have the same HOLDFAST_BRANCH_SECRET?", HeaderSignature)
	}
	return body, nil
}

// Signed lets only requests through that are signed at about this clock's time
// and hands their body on.
func Signed(secret []byte, now func() time.Time, next func(w http.ResponseWriter, r *http.Request, body []byte)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(HeaderAnswer, "1")
		body, err := Verify(r, secret, now())
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		if slices.Contains(proofOps, path.Base(r.URL.Path)) {
			// The server's timeouts are made for the steps of a hold. The one for
			// reading ends the request's context too: the connection is watched
			// while the answer is made. A writer without a connection behind it has
			// no deadlines to move either.
			rc, until := http.NewResponseController(w), time.Now().Add(proofTime)
			_, _ = rc.SetReadDeadline(until), rc.SetWriteDeadline(until)
		}
		next(w, r, body)
	})
}
