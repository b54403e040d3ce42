package payment

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http/httptrace"
	"sync"
)

var (
	errSealed = errors.New("connection given up before the request was written")
	errSent   = errors.New("connection broke after the payment was sent: it is not sent again without a look-up")
)

// watchedConn knows whether anything was written to it, which is the only proof
// that a request never left: the standard library reports headers as written
// when they are still in its buffer.
type watchedConn struct {
	net.Conn
	mu      sync.Mutex
	written int64 // bytes handed to the kernel, counted before the attempt
	sealed  bool
}

func (c *watchedConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	if c.sealed {
		c.mu.Unlock()
		return 0, errSealed
	}
	c.written += int64(len(b))
	c.mu.Unlock()
	n, err := c.Conn.Write(b)
	return sentOn(c, b, n, err)
}

func (c *watchedConn) mark() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.written
}

// seal reports whether nothing was written since the mark, and if so makes sure
// that nothing ever will be: the transport's writer may still be on its way.
func (c *watchedConn) seal(mark int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.written != mark {
		return false
	}
	c.sealed = true
	return true
}

// watchDial dials connections that can be asked whether they were written to.
func watchDial(dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &watchedConn{Conn: c}, nil
	}
}

// sending follows one request over the connections that it is given. It is used
// by the goroutine of the call only.
type sending struct {
	conn *watchedConn
	mark int64
	sent bool // something was or may have been written
}

func (s *sending) hooks() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{GotConn: s.gotConn}
}

func (s *sending) gotConn(info httptrace.GotConnInfo) {
	s.settle()
	c := info.Conn
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	w, ok := c.(*watchedConn)
	if !ok {
		s.sent = true // a connection that we cannot ask proves nothing
		return
	}
	s.conn, s.mark = w, w.mark()
}

// settle closes the account of the connection that the request had so far.
func (s *sending) settle() {
	if s.conn != nil && !s.conn.seal(s.mark) {
		s.sent = true
	}
	s.conn = nil
}

// sure reports, after the call has failed, that no byte left and none will.
func (s *sending) sure() bool {
	s.settle()
	return !s.sent
}
