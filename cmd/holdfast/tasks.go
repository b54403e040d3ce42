package main

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/holdfast-escrow/holdfast/internal/auth"
	"github.com/holdfast-escrow/holdfast/internal/settings"
	"github.com/holdfast-escrow/holdfast/shards"
	"github.com/spf13/cobra"
)

func (a *app) migrateCommand() *cobra.Command {
	upgrade := &cobra.Command{Use: "up", Short: "Bring every shard to the schema of this binary", Args: exactly(),
		Long: `Applies what is missing on every shard, in order, under a lock: any number of
processes may call it at once. It goes forward only, and the previous binary
keeps running on the new schema. On first use it also writes which database is
which shard.`,
		Example: `  holdfast migrate up --shards postgres://owner@db0/holdfast,postgres://owner@db1/holdfast`}
	upFlags := settingFlags(upgrade)
	upgrade.RunE = func(cmd *cobra.Command, _ []string) error {
		dsns, err := a.shardDSNs(upFlags())
		if err != nil {
			return err
		}
		a.warnUnarmed(slog.New(slog.NewTextHandler(a.stderr, nil)))
		if err := shards.Migrate(cmd.Context(), dsns, nil, nil); err != nil {
			return err
		}
		fmt.Fprintf(a.stderr, "%d shards are at the schema of this binary\n", len(dsns))
		return a.migrationStatus(cmd, dsns)
	}
	status := &cobra.Command{Use: "status", Short: "Show which migrations each shard has", Args: exactly(),
		Example: "  holdfast migrate status"}
	statusFlags := settingFlags(status)
	status.RunE = func(cmd *cobra.Command, _ []string) error {
		dsns, err := a.shardDSNs(statusFlags())
		if err != nil {
			return err
		}
		return a.migrationStatus(cmd, dsns)
	}
	for _, c := range []*cobra.Command{upgrade, status} {
		// Only the shards matter here; the rest would be noise in the help.
		for _, s := range settings.Table() {
			if f := c.Flags().Lookup(s.Flag()); f != nil && s.Name != "HOLDFAST_SHARDS" && s.Name != "HOLDFAST_DATA" {
				f.Hidden = true
			}
		}
	}
	return group("migrate", "Bring the shards' schema up to date, or show it", upgrade, status)
}

// shardDSNs takes the shards of the settings, or those of a running up.
func (a *app) shardDSNs(flags map[string]string) ([]string, error) {
	cfg, err := a.settings(flags)
	if err != nil {
		return nil, err
	}
	if len(cfg.Shards) > 0 {
		return cfg.Shards, nil
	}
	if run, ok := readRunFile(cfg.Data); ok && len(run.Shards) > 0 {
		return run.Shards, nil
	}
	return nil, &usageError{err: errors.New("HOLDFAST_SHARDS is not set and no holdfast up runs in this folder")}
}

// migrationStatus exits 4 when a shard is not at the schema of this binary.
func (a *app) migrationStatus(cmd *cobra.Command, dsns []string) error {
	rows, err := shards.Status(cmd.Context(), dsns)
	if err != nil {
		return err
	}
	if a.output == "json" {
		err = a.showJSON(rows)
	} else {
		t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
		cells(t, "SHARD", "VERSION", "NAME", "STATE", "APPLIED AT")
		for _, r := range rows {
			cells(t, r.Shard, r.Version, dash(r.Name), r.State+suffix(r.Error), clock(r.AppliedAt))
		}
		err = t.Flush()
	}
	if err != nil {
		return err
	}
	for _, r := range rows {
		if r.State != shards.MigrationApplied {
			return fmt.Errorf("%w: shard %d is not at the schema of this binary", errCheckFailed, r.Shard)
		}
	}
	return nil
}

func suffix(s string) string {
	if s == "" {
		return ""
	}
	return ": " + s
}

func (a *app) tokenCommand() *cobra.Command {
	var o auth.MintOptions
	var scopes, ttl, data string
	mint := &cobra.Command{Use: "mint", Short: "Make a bearer token and print it", Args: exactly(),
		Long: `Makes a token signed with HOLDFAST_JWT_SECRET or the development secret of
holdfast up. It prints the token and nothing else. Without --sub and --service
the token is one of a service, which may act for every user.`,
		Example: `  holdfast token mint
  holdfast token mint --sub 7d8f1c9e-7a39-4d7c-9a52-3c9b1c1f0a11 --scopes holds:create,holds:read
  export HOLDFAST_TOKEN=$(holdfast token mint --service billing --ttl 15m)`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Sub != "" && o.Service != "" {
				return usagef(cmd, "give --sub or --service, not both")
			}
			if o.Sub == "" && o.Service == "" {
				o.Service = "holdfast-cli"
			}
			flags := map[string]string{}
			if data != "" {
				flags["HOLDFAST_DATA"] = data
			}
			cfg, err := a.settings(flags)
			if err != nil {
				return err
			}
			if o.TTL, err = settings.ParseDuration(ttl); err != nil {
				return usagef(cmd, "--ttl: %w", err)
			}
			o.Scopes = auth.AllScopes()
			if scopes != "all" {
				o.Scopes = strings.FieldsFunc(scopes, func(r rune) bool { return r == ',' || r == ' ' })
			}
			secret, err := readSecret(cfg)
			if err != nil {
				return err
			}
			o.Issuer, o.Audience = cfg.JWTIssuer, cfg.JWTAudience
			token, err := auth.Mint(secret, o)
			if err != nil {
				return usagef(cmd, "%w", err)
			}
			_, err = fmt.Fprintln(a.stdout, token)
			return err
		}}
	f := mint.Flags()
	f.StringVar(&o.Sub, "sub", "", "user id: the token may spend and read for this user only")
	f.StringVar(&o.Service, "service", "", "name of a service: the token may act for every user")
	f.StringVar(&scopes, "scopes", "all", "comma list of scopes, or all")
	f.StringVar(&ttl, "ttl", "1h", "lifetime, up to 1h")
	f.StringVar(&data, "data", "", "data directory with the development secret [HOLDFAST_DATA]")
	return group("token", "Make bearer tokens", mint)
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: exactly(), Example: "  holdfast version",
		RunE: func(*cobra.Command, []string) error {
			v := versionOf()
			if a.output == "json" {
				return a.showJSON(v)
			}
			fmt.Fprintf(a.stdout, "holdfast %s (%s, %s)\n", v["version"], v["go"], v["platform"])
			return nil
		}}
}

// versionOf is what the build knows of itself.
func versionOf() (v map[string]string) {
	v = map[string]string{"version": "development", "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		if info.Main.Version != "" && info.Main.Version != "(devel)" {
			v["version"] = info.Main.Version
		}
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				v["commit"] = s.Value
			case "vcs.time":
				if t, err := time.Parse(time.RFC3339, s.Value); err == nil {
					v["commit_time"] = t.UTC().Format(time.RFC3339)
				}
			}
		}
	}
	return v
}
