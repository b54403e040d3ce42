package embed

import (
	"errors"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("shows what root may do; the other tests run as this user already")
	}
}

func TestStart_as_an_ordinary_user(t *testing.T) {
	t.Parallel()
	needRoot(t)
	nobody, err := user.Lookup("nobody")
	check(t, err)
	uid, _ := strconv.Atoi(nobody.Uid)
	gid, _ := strconv.Atoi(nobody.Gid)
	place := tempDir(t)
	// The test binary lies where only root can go.
	program := filepath.Join(place, "embed.test")
	binary, err := os.ReadFile(os.Args[0])
	check(t, err)
	writeProgram(t, program, binary)
	dir := filepath.Join(place, "servers")
	check(t, os.Mkdir(dir, 0o700))
	check(t, os.Chown(dir, uid, gid))

	runHelper(t, program, dir, &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)})
	st, err := readState(dir)
	check(t, err)
	info, err := os.Stat(filepath.Join(st.Home, "shard0", "postmaster.pid"))
	check(t, err)
	if got := int(info.Sys().(*syscall.Stat_t).Uid); got != uid {
		t.Errorf("PostgreSQL runs as user %d, want %d", got, uid)
	}
}

func TestStart_as_root_in_a_closed_place(t *testing.T) {
	t.Parallel()
	needRoot(t)
	outside := tempDir(t)
	dir := filepath.Join(t.TempDir(), "servers") // below a directory of mode 0700
	check(t, os.Mkdir(dir, 0o700))
	check(t, os.Chmod(filepath.Dir(dir), 0o700))
	var progress syncBuffer
	cfg := Config{Dir: dir, Shards: 1, FastTests: true, Progress: &progress, outside: outside}
	s := start(t, cfg)
	home := s.env.home
	if filepath.Dir(home) != outside {
		t.Fatalf("the data is in %s, want it below %s", home, outside)
	}
	if !strings.Contains(progress.String(), "the data is in "+home) {
		t.Errorf("nobody was told where the data is: %s", progress.String())
	}
	exec1(t, s.DSNs[0], "CREATE TABLE kept (n int)")
	check(t, s.Stop(t.Context()))

	// Once there it stays there, also when the place opens.
	check(t, os.Chmod(filepath.Dir(dir), 0o755))
	s = start(t, cfg)
	if got := query(t, s.DSNs[0], "SELECT count(*) FROM kept"); got != "0" {
		t.Errorf("count %s", got)
	}
	check(t, s.Stop(t.Context()))
	check(t, Remove(dir))
	if _, err := os.Stat(home); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Remove left %s: %v", home, err)
	}
}

func TestStart_as_root_with_nowhere_to_go(t *testing.T) {
	t.Parallel()
	needRoot(t)
	closed := filepath.Join(t.TempDir(), "closed")
	check(t, os.Mkdir(closed, 0o700))
	_, err := Start(t.Context(), Config{Dir: filepath.Join(closed, "dir"), Shards: 1, outside: filepath.Join(closed, "outside")})
	wantLine(t, err, "user postgres cannot enter")
}

func TestState(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	st, err := loadState(dir, 0)
	check(t, err)
	if st.Shards != DefaultShards || len(st.Ports) != DefaultShards {
		t.Errorf("a new directory has %d shards, %d ports", st.Shards, len(st.Ports))
	}
	st.Ports[2] = 20123
	check(t, st.save(dir))
	again, err := loadState(dir, 0)
	check(t, err)
	if again.Password != st.Password || again.Ports[2] != 20123 {
		t.Errorf("read %+v, wrote %+v", again, st)
	}
	for _, damaged := range []string{"", "{", "{}", `{"id":"x","shards":2,"password":"p","ports":[1]}`} {
		check(t, os.WriteFile(filepath.Join(dir, stateFile), []byte(damaged), 0o600))
		_, err = loadState(dir, 0)
		wantLine(t, err, "is damaged")
	}
	check(t, os.Remove(filepath.Join(dir, stateFile)))
	check(t, os.MkdirAll(filepath.Join(dir, "pg", "shard0"), 0o700))
	_, err = loadState(dir, 0)
	wantLine(t, err, "the passwords with it")
	_, err = Start(t.Context(), Config{Dir: dir, Shards: maxShards + 1})
	wantLine(t, err, "1 to 64 are possible")
	_, err = Start(t.Context(), Config{})
	wantLine(t, err, "no directory named")
}

func TestTrimLog(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a.log")
	check(t, os.WriteFile(path, []byte("0123456789"), 0o600))
	check(t, trimLog(path, 10))
	if _, err := os.Stat(path + ".1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a log within its limit was moved: %v", err)
	}
	writer, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	check(t, err)
	defer writer.Close()
	check(t, trimLog(path, 4))
	_, err = writer.WriteString("next\n")
	check(t, err)
	for name, want := range map[string]string{path: "next\n", path + ".1": "6789"} {
		if got, err := os.ReadFile(name); err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v; want %q", name, got, err, want)
		}
	}
	check(t, os.WriteFile(path, []byte("one\nFATAL: two\nthree\n"), 0o600))
	for offset, want := range map[int64]string{0: "FATAL: two", 15: "three", 100: "nothing in its log"} {
		if got := lastLine(path, offset); got != want {
			t.Errorf("last line behind %d is %q, want %q", offset, got, want)
		}
	}
}
