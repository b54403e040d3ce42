package bench

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// conn is one keep-alive HTTP/1.1 connection that speaks only what the API of
// Holdfast answers. The load generator shares the machine with what it
// measures; net/http would cost it several times as much CPU per request.
type conn struct {
	addr    string
	headers string // Host and Authorization, each with its line end
	timeout time.Duration

	nc       net.Conn
	r        *bufio.Reader
	out      []byte
	answer   []byte
	deadline time.Time
}

// maxAnswer bounds one answer: a batch of 100 holds stays far below it.
const maxAnswer = 4 << 20

// newConn prepares a connection to a base URL; it dials at the first request.
func newConn(base, token string, timeout time.Duration) (*conn, error) {
	addr, ok := strings.CutPrefix(base, "http://")
	if !ok {
		return nil, fmt.Errorf("the load generator speaks plain http only, not %s", base)
	}
	addr = strings.TrimRight(addr, "/")
	if _, _, err := net.SplitHostPort(addr); err != nil {
		addr = net.JoinHostPort(addr, "80")
	}
	headers := "Host: " + addr + "\r\n"
	if token != "" {
		headers += "Authorization: Bearer " + token + "\r\n"
	}
	return &conn{addr: addr, headers: headers, timeout: timeout}, nil
}

func (c *conn) close() {
	if c.nc != nil {
		c.nc.Close()
		c.nc = nil
	}
}

// do sends one request and reads its answer, which is valid until the next
// call. After an error the next call dials again.
func (c *conn) do(method, path string, body []byte) (status int, answer []byte, err error) {
	now := time.Now()
	if c.nc == nil {
		if err := c.dial(); err != nil {
			return 0, nil, err
		}
	} else if now.Sub(c.deadline) > -c.timeout+time.Second {
		// Moving the deadline once a second instead of at each request saves
		// a timer update per request.
		c.deadline = now.Add(c.timeout)
		c.nc.SetDeadline(c.deadline)
	}
	c.out = append(c.out[:0], method...)
	c.out = append(c.out, ' ')
	c.out = append(c.out, path...)
	c.out = append(c.out, " HTTP/1.1\r\n"...)
	c.out = append(c.out, c.headers...)
	if body != nil {
		c.out = append(c.out, "Content-Type: application/json\r\nContent-Length: "...)
		c.out = strconv.AppendInt(c.out, int64(len(body)), 10)
		c.out = append(c.out, "\r\n"...)
	}
	c.out = append(c.out, "\r\n"...)
	c.out = append(c.out, body...)
	if _, err = c.nc.Write(c.out); err != nil {
		c.close()
		return 0, nil, err
	}
	status, keep, err := c.read()
	if err != nil || !keep {
		c.close()
	}
	return status, c.answer, err
}

func (c *conn) dial() error {
	nc, err := net.DialTimeout("tcp", c.addr, 5*time.Second)
	if err != nil {
		return err
	}
	c.nc = nc
	c.deadline = time.Now().Add(c.timeout)
	nc.SetDeadline(c.deadline)
	if c.r == nil {
		c.r = bufio.NewReaderSize(nc, 8<<10)
	} else {
		c.r.Reset(nc)
	}
	return nil
}

var errGarbled = errors.New("garbled HTTP answer")

func (c *conn) read() (status int, keep bool, err error) {
	line, err := c.line()
	if err != nil {
		return 0, false, err
	}
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return 0, false, errGarbled
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, false, errGarbled
	}
	keep = true
	length, chunked := -1, false
	for {
		if line, err = c.line(); err != nil {
			return 0, false, err
		}
		if len(line) == 0 {
			break
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			return 0, false, errGarbled
		}
		value = bytes.TrimSpace(value)
		switch {
		case asciiEqual(name, "content-length"):
			if length, err = strconv.Atoi(string(value)); err != nil || length < 0 || length > maxAnswer {
				return 0, false, errGarbled
			}
		case asciiEqual(name, "transfer-encoding"):
			chunked = asciiEqual(value, "chunked")
		case asciiEqual(name, "connection"):
			keep = !asciiEqual(value, "close")
		}
	}
	c.answer = c.answer[:0]
	switch {
	case chunked:
		err = c.readChunks()
	case length > 0:
		err = c.readN(length)
	case length < 0 && status != 204 && status != 304:
		return 0, false, errGarbled
	}
	return status, keep, err
}

func (c *conn) readChunks() error {
	for {
		line, err := c.line()
		if err != nil {
			return err
		}
		size, _, _ := bytes.Cut(line, []byte(";"))
		n, err := strconv.ParseUint(string(bytes.TrimSpace(size)), 16, 31)
		if err != nil || len(c.answer)+int(n) > maxAnswer {
			return errGarbled
		}
		if n > 0 {
			if err := c.readN(int(n)); err != nil {
				return err
			}
		}
		if line, err = c.line(); err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		if len(line) != 0 {
			return errGarbled
		}
	}
}

func (c *conn) readN(n int) error {
	at := len(c.answer)
	if cap(c.answer) < at+n {
		c.answer = append(make([]byte, 0, 2*(at+n)), c.answer...)
	}
	c.answer = c.answer[:at+n]
	_, err := io.ReadFull(c.r, c.answer[at:])
	return err
}

func (c *conn) line() ([]byte, error) {
	line, err := c.r.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	return bytes.TrimRight(line, "\r\n"), nil
}

// asciiEqual compares a header's bytes with a lower-case word.
func asciiEqual(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// errorCode names a failed exchange in the way of the API's codes.
func errorCode(err error) string {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection_refused"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "connection_lost"
	case errors.Is(err, errGarbled):
		return "garbled_answer"
	}
	return "network_error"
}

// field cuts the string value of a JSON field out of an answer without
// parsing it; "" when it is not there. It serves ids and codes, which need no
// unescaping.
func field(answer []byte, name string) string {
	at := bytes.Index(answer, []byte(`"`+name+`":`))
	if at < 0 {
		return ""
	}
	rest := bytes.TrimLeft(answer[at+len(name)+3:], " ")
	if len(rest) == 0 || rest[0] != '"' {
		return ""
	}
	end := bytes.IndexByte(rest[1:], '"')
	if end < 0 {
		return ""
	}
	return string(rest[1 : 1+end])
}
