package embed

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"syscall"
)

// Ports are taken from below the range that systems use for outgoing
// connections: a client that keeps dialling a dead port inside that range can
// by chance connect to itself and so keep the server from coming back.
const (
	firstPort = 20000
	lastPort  = 31999
)

// FreePort finds a loopback port for a server of the caller's that is to come
// back on it after it died. It is free now; nothing keeps it.
func FreePort() (int, error) { return freePort() }

func freePort() (int, error) {
	for range 1000 {
		if port := firstPort + rand.IntN(lastPort-firstPort+1); portFree(port) {
			return port, nil
		}
	}
	return 0, errors.New("no free port on 127.0.0.1")
}

// portFree tries the port. No process may be forked meanwhile: until it runs
// its program it would hold a copy of the socket, and the port would look taken
// to the next who tries, maybe the server itself.
func portFree(port int) bool {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return false
	}
	l.Close()
	return true
}
