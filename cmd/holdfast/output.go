package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"
)

// show prints an answer of the API: as it came with -o json, otherwise with
// table.
func (a *app) show(raw json.RawMessage, table func(t *tabwriter.Writer)) error {
	if a.output == "json" {
		return a.showJSON(raw)
	}
	t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	table(t)
	return t.Flush()
}

func (a *app) showJSON(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.stdout, out.String())
	return err
}

func cells(t *tabwriter.Writer, values ...any) {
	for i, v := range values {
		if i > 0 {
			fmt.Fprint(t, "\t")
		}
		fmt.Fprint(t, v)
	}
	fmt.Fprintln(t)
}

// clock writes a time in full, and a dash for "not yet".
func clock(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return at.UTC().Format("2006-01-02T15:04:05.000Z")
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
