//go:build planted

package planted

// Bugs at the edge and in what surrounds the ledger.
var edgeBugs = []Bug{
	{
		Name:    "gateway_clock_create",
		About:   "The coordinator turns unlock_in_seconds into a time by its own clock. A retry with the same key is then another request, and a clock that is wrong makes holds mature early.",
		Catches: "die-at-try-committed: I4, I9 (the retry is refused, 422); coordinator-clock-off: I8",
		Edits: []Edit{{"coordinator/holds.go", `	t.Amount, t.Reference, t.UnlockAtMS, t.DelayMS = amount,`, `	if delayMS > 0 {
		atMS, delayMS = c.cfg.Now().UnixMilli()+delayMS, 0
	}
	t.Amount, t.Reference, t.UnlockAtMS, t.DelayMS = amount,`}},
	},
	{
		Name:    "plain_encoding_json",
		About:   "Documents are read with encoding/json into a map: the last of two equal fields wins, unknown ones pass, numbers are floating point.",
		Catches: "hostile input: a field twice, an amount of 1.5, names in another case must be refused (I14, I15)",
		Edits: []Edit{
			{"internal/strictjson/strictjson.go", `import (
`, `import (
	"encoding/json"
	"strconv"
	"strings"
`},
			{"internal/strictjson/strictjson.go", `func Fields(data []byte, names []string, values []Value) error {
`, `func Fields(data []byte, names []string, values []Value) error {
	clear(values)
	var doc map[string]any
	if err := json.Unmarshal(data, &doc); err != nil {
		return &Error{Code: InvalidJSON, Reason: "the document must be one JSON object"}
	}
	for name, v := range doc {
		for i, n := range names {
			if strings.EqualFold(name, n) {
				values[i] = plain(v)
			}
		}
	}
	return nil
}

func plain(v any) Value {
	raw, _ := json.Marshal(v)
	switch v := v.(type) {
	case string:
		return Value{Kind: String, raw: raw[1 : len(raw)-1], escaped: true}
	case float64:
		return Value{Kind: Number, raw: strconv.AppendInt(nil, int64(v), 10)}
	case bool:
		return Value{Kind: Bool, raw: raw}
	case nil:
		return Value{Kind: Null, raw: raw}
	case []any:
		return Value{Kind: Array, raw: raw}
	}
	return Value{Kind: Object, raw: raw}
}

func strictFields(data []byte, names []string, values []Value) error {
`},
		},
	},
	{
		Name:    "synchronous_commit_off",
		About:   "The money pool commits without waiting for the disk, which doubles the figures of a benchmark.",
		Catches: "postgres-kill: I4 (an acknowledged hold is gone); kill-everything.",
		Edits: []Edit{{"shards/connect.go", `	"synchronous_commit": "on",
`, `	"synchronous_commit": "off",
`}},
	},
	{
		Name:    "proof_ignores_transit",
		About:   "The ledger proof adds up every shard by itself and leaves out what is on its way between two.",
		Catches: "tampered-ledger: the product's proof says ok to a credit without a verdict (I2)",
		Edits: []Edit{{"coordinator/proof.go", `		found = append(found, t.offenders()...)
`, ``}},
	},
}
