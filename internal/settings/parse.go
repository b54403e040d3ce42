package settings

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

type parser = func(c *Config, v string) error

func addr(field func(*Config) *string) parser {
	return func(c *Config, v string) error {
		_, port, err := net.SplitHostPort(v)
		if err != nil {
			return fmt.Errorf("%q is not an address of the form host:port", v)
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil {
			return fmt.Errorf("%q has no port between 0 and 65535", v)
		} else if n == 0 {
			// Port 0 asks the system for a free one; the start prints which.
			*field(c) = v
			return nil
		}
		*field(c) = v
		return nil
	}
}

// text never repeats the value in its error: it may be a secret.
func text(field func(*Config) *string, least int) parser {
	return func(c *Config, v string) error {
		if len(v) < least {
			return fmt.Errorf("has %d characters, must have %d or more", len(v), least)
		}
		*field(c) = v
		return nil
	}
}

func duration(field func(*Config) *time.Duration, least, most time.Duration) parser {
	return func(c *Config, v string) error {
		d, err := ParseDuration(v)
		if err != nil {
			return err
		}
		if d < least || d > most {
			return fmt.Errorf("%s is not between %s and %s", v, least, most)
		}
		*field(c) = d
		return nil
	}
}

// orZero also takes a plain 0, which leaves the field at its zero value.
func orZero(other parser) parser {
	return func(c *Config, v string) error {
		if v == "0" {
			return nil
		}
		return other(c, v)
	}
}

// ParseDuration reads a duration with its unit. Unlike the standard library it
// refuses signs and a bare 0, and knows days ("30d").
func ParseDuration(v string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(v, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 31)
		if err == nil && n <= 36500 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 || strings.HasPrefix(v, "+") || v == "0" {
		return 0, fmt.Errorf("%q is not a duration: write a number with its unit, like 90s, 5m or 24h", v)
	}
	return d, nil
}

func number(field func(*Config) *float64, least, most float64) parser {
	return func(c *Config, v string) error {
		n, err := strconv.ParseFloat(v, 64)
		if err != nil || !(n >= least && n <= most) {
			return fmt.Errorf("%q is not a number between %g and %g", v, least, most)
		}
		*field(c) = n
		return nil
	}
}

func integer(field func(*Config) *int, least, most int) parser {
	return func(c *Config, v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n < least || n > most {
			return fmt.Errorf("%q is not a whole number between %d and %d", v, least, most)
		}
		*field(c) = n
		return nil
	}
}

func oneOf(field func(*Config) *string, names ...string) parser {
	return func(c *Config, v string) error {
		if !slices.Contains(names, v) {
			return fmt.Errorf("%q is none of %s", v, strings.Join(names, ", "))
		}
		*field(c) = v
		return nil
	}
}

// anyURL never repeats the value: a URL may carry a password.
func anyURL(field func(*Config) *string, schemes ...string) parser {
	return func(c *Config, v string) error {
		u, err := url.Parse(v)
		if err != nil || !slices.Contains(schemes, u.Scheme) || (u.Host == "" && u.Path == "") {
			return fmt.Errorf("is not a URL that starts with %s://", strings.Join(schemes, ":// or "))
		}
		*field(c) = strings.TrimSuffix(v, "/")
		return nil
	}
}

// paymentURL is the base of other addresses.
func paymentURL(c *Config, v string) error {
	if err := anyURL(func(c *Config) *string { return &c.PaymentURL }, "http", "https")(c, v); err != nil {
		return err
	}
	u, err := url.Parse(v)
	switch {
	case err != nil || u.Hostname() == "":
		return errors.New("has no host")
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return errors.New("may not carry credentials, a query or a fragment")
	}
	return nil
}

// redisURL knows that the path of redis:// is the number of a database.
func redisURL(c *Config, v string) error {
	if err := anyURL(func(c *Config) *string { return &c.RedisURL }, "redis", "rediss", "unix")(c, v); err != nil {
		return err
	}
	u, err := url.Parse(v)
	if err != nil || u.Scheme == "unix" || strings.Trim(u.Path, "/") == "" {
		return err
	}
	if _, err := strconv.ParseUint(strings.Trim(u.Path, "/"), 10, 16); err != nil {
		return errors.New("must end with the number of a database, like redis://host:6379/0, or with none")
	}
	return nil
}

func urls(field func(*Config) *[]string) parser {
	return func(c *Config, v string) error {
		var one string
		check := anyURL(func(*Config) *string { return &one }, "http", "https")
		var all []string
		for i, item := range list(v) {
			if err := check(c, item); err != nil {
				return fmt.Errorf("item %d %w", i+1, err)
			}
			all = append(all, one)
		}
		if len(all) == 0 {
			return errors.New("lists nothing")
		}
		*field(c) = all
		return nil
	}
}

// dsns splits at commas that start a new DSN, since a DSN may itself contain
// commas (several hosts). A DSN never appears in an error: it may carry a
// password.
func dsns(field func(*Config) *[]string) parser {
	start := regexp.MustCompile(`^\s*(postgres(ql)?://|[a-z_]+\s*=)`)
	return func(c *Config, v string) error {
		var all []string
		for _, item := range strings.Split(v, ",") {
			if !start.MatchString(item) {
				if len(all) == 0 {
					return errors.New("item 1 is not a DSN: write postgres://user@host:port/database or host=… dbname=…")
				}
				all[len(all)-1] += "," + item
				continue
			}
			all = append(all, strings.TrimSpace(item))
		}
		seen := map[string]int{}
		for i, d := range all {
			if _, err := url.Parse(d); err != nil && strings.HasPrefix(d, "postgres") {
				return fmt.Errorf("item %d is not a DSN: its URL cannot be read, look at the port and at characters that need %%-escapes", i+1)
			}
			if before, twice := seen[d]; twice {
				return fmt.Errorf("items %d and %d are the same DSN: two shards cannot share a database", before+1, i+1)
			}
			seen[d] = i
		}
		*field(c) = all
		return nil
	}
}

var codePattern = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)

// ownCodes are dead letters of ours that move no money; a refusal of that name
// would be taken for one.
var ownCodes = []string{"outcome_unknown", "impossible_state", "late_success"}

func codes(field func(*Config) *[]string) parser {
	return func(c *Config, v string) error {
		all := list(v)
		for _, code := range all {
			if !codePattern.MatchString(code) {
				return fmt.Errorf("%q is not a code: lower-case letters, digits and underscores", code)
			}
			if slices.Contains(ownCodes, code) {
				return fmt.Errorf("%q is no refusal: it is what we call a payment of which too little is known", code)
			}
		}
		*field(c) = all
		return nil
	}
}

var currencyPattern = regexp.MustCompile(`^([A-Z][A-Z0-9]{2,7}):([0-9])$`)

func currencies(c *Config, v string) error {
	all := map[string]int{}
	for _, item := range list(v) {
		m := currencyPattern.FindStringSubmatch(item)
		if m == nil {
			return fmt.Errorf("%q is not of the form CODE:exponent, like RBX:0", item)
		}
		if _, twice := all[m[1]]; twice {
			return fmt.Errorf("%s is named twice", m[1])
		}
		all[m[1]] = int(m[2][0] - '0')
	}
	if len(all) == 0 {
		return errors.New("lists nothing")
	}
	c.Currencies = all
	return nil
}

func list(v string) []string {
	var all []string
	for _, item := range strings.Split(v, ",") {
		if item = strings.TrimSpace(item); item != "" {
			all = append(all, item)
		}
	}
	return all
}
