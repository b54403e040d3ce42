package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/apiclient"
	"github.com/holdfast-escrow/holdfast/internal/auth"
	"github.com/holdfast-escrow/holdfast/internal/settings"
	"github.com/spf13/cobra"
)

// connection is how a client command reaches a running Holdfast.
type connection struct {
	api, admin, token string
}

// addConnection gives a client command its flags.
func (a *app) addConnection(cmds ...*cobra.Command) {
	for _, c := range cmds {
		c.Flags().StringVar(&a.conn.api, "api", "", "address of the public API (default: HOLDFAST_API_ADDR, or the one that up runs on)")
		c.Flags().StringVar(&a.conn.admin, "admin", "", "address of the admin API (default: HOLDFAST_ADMIN_ADDR, or the one that up runs on)")
		c.Flags().StringVar(&a.conn.token, "token", "", "bearer token (default: HOLDFAST_TOKEN, or one made from the development secret)")
	}
}

// client builds the API client of a command from its flags, the environment and
// what `holdfast up` left in the data directory, in this order.
func (a *app) client() (*apiclient.Client, error) {
	cfg, err := a.settings(nil)
	if err != nil {
		return nil, err
	}
	run, _ := readRunFile(cfg.Data)
	pick := func(flag, name, configured, running string) string {
		switch {
		case flag != "":
			return flag
		case cfg.Given(name) || running == "":
			return configured
		}
		return running
	}
	c := &apiclient.Client{
		API:   apiclient.BaseURL(pick(a.conn.api, "HOLDFAST_API_ADDR", cfg.APIAddr, run.API)),
		Admin: apiclient.BaseURL(pick(a.conn.admin, "HOLDFAST_ADMIN_ADDR", cfg.AdminAddr, run.Admin)),
		Token: a.conn.token,
	}
	if c.Token == "" {
		c.Token = cfg.Token
	}
	if c.Token == "" {
		if c.Token, err = serviceToken(cfg); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// settings checks the environment and the flags; what is wrong is a usage error.
func (a *app) settings(flags map[string]string) (*settings.Config, error) {
	environ, now, err := processClock(a.environ)
	if err != nil {
		return nil, &usageError{err: err}
	}
	cfg, err := settings.Load(environ, flags)
	if err != nil {
		return nil, &usageError{err: err}
	}
	cfg.Now = now
	return cfg, nil
}

// serviceToken makes a token of the command line for any user, with every scope.
func serviceToken(cfg *settings.Config) (string, error) {
	secret, err := readSecret(cfg)
	if err != nil {
		return "", err
	}
	return auth.Mint(secret, auth.MintOptions{Service: "holdfast-cli", Scopes: auth.AllScopes(),
		TTL: time.Hour, Issuer: cfg.JWTIssuer, Audience: cfg.JWTAudience})
}

const secretFile = "jwt-secret"

// readSecret finds the secret that tokens are signed with: the setting, or the
// development secret that `holdfast up` made.
func readSecret(cfg *settings.Config) ([]byte, error) {
	if cfg.JWTSecret != "" {
		return []byte(cfg.JWTSecret), nil
	}
	path := filepath.Join(cfg.Data, secretFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no token: set HOLDFAST_TOKEN or HOLDFAST_JWT_SECRET, or run in the folder of holdfast up (there is no %s)", path)
	}
	if err != nil {
		return nil, fmt.Errorf("no token: %w", err)
	}
	return []byte(strings.TrimSpace(string(b))), nil
}

// runFile tells commands in the same folder where a running `holdfast up`
// listens. It holds the shards' passwords and is for its owner only.
type runFile struct {
	PID       int       `json:"pid"`
	API       string    `json:"api"`
	Admin     string    `json:"admin"`
	Branch    string    `json:"branch,omitempty"`
	Sim       string    `json:"sim,omitempty"`
	Shards    []string  `json:"shards"`
	RedisURL  string    `json:"redis_url,omitempty"`
	StartedAt time.Time `json:"started_at"`
}

const runFileName = "run.json"

func (r *runFile) write(dir string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, runFileName)
	// Written aside and renamed: a reader never sees half of it.
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(path+".new", path)
}

// readRunFile reads the file of a process that is still alive; the file of a
// killed one says nothing.
func readRunFile(dir string) (r runFile, ok bool) {
	b, err := os.ReadFile(filepath.Join(dir, runFileName))
	if err != nil || json.Unmarshal(b, &r) != nil || r.PID <= 0 {
		return runFile{}, false
	}
	if err := syscall.Kill(r.PID, 0); err != nil && !errors.Is(err, syscall.EPERM) {
		return runFile{}, false
	}
	return r, true
}

// slowHTTP is for requests that read a whole ledger.
var slowHTTP = &http.Client{Timeout: 15 * time.Minute}
