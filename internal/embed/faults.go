package embed

import (
	"context"
	"slices"
	"syscall"
)

// What follows is for those who try how the product bears a server that is not
// well: nothing of it is needed to run one.

// DataDir is where the server keeps its data, owned by the servers' user. It
// may be put on another file system while the server is stopped.
func (p *Postgres) DataDir() string { return p.data }

// Log is the path of the server's log.
func (p *Postgres) Log() string { return p.log }

// Owner is the user and the group whom the server's files belong to.
func (p *Postgres) Owner() (uid, gid int) {
	if u := p.env.user; u != nil {
		return int(u.uid), int(u.gid)
	}
	return syscall.Geteuid(), syscall.Getegid()
}

// SetEnv gives variables ("NAME=value") to the server at its next starts, in
// place of those of the last call. A running server does not change.
func (p *Postgres) SetEnv(env ...string) {
	p.op.Lock()
	defer p.op.Unlock()
	p.extra = slices.Clone(env)
}

// Env is what SetEnv set.
func (p *Postgres) Env() []string {
	p.op.Lock()
	defer p.op.Unlock()
	return slices.Clone(p.extra)
}

// StopImmediate ends the server as "pg_ctl stop -m immediate" does: every
// connection is dropped, nothing is written, and the next start recovers from
// the log. One that does not obey is killed.
func (p *Postgres) StopImmediate(ctx context.Context) error {
	p.op.Lock()
	defer p.op.Unlock()
	proc := p.current()
	if proc == nil || !proc.running() {
		return nil
	}
	p.expectEnd()
	if err := thaw(proc); err != nil {
		return err
	}
	if err := p.stopSteps(ctx, proc, syscall.SIGQUIT); err != nil {
		return err
	}
	return p.killAll(proc)
}
