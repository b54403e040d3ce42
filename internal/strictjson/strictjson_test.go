package strictjson

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

var names = []string{"a", "b", "list"}

func codeOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func TestFields(t *testing.T) {
	t.Parallel()
	deep := func(n int) string {
		return `{"a":` + strings.Repeat("[", n) + strings.Repeat("]", n) + `}`
	}
	for _, c := range []struct{ doc, code string }{
		{`{}`, ""},
		{" \t\r\n{ \"a\" : 1 , \"b\" : \"x\" } \n", ""},
		{`{"a":true,"b":null}`, ""},
		{`{"a":{"x":[1,2,{"y":false}]}}`, ""},
		{deep(MaxDepth - 1), ""},
		{deep(MaxDepth), InvalidJSON},
		{``, InvalidJSON},
		{`  `, InvalidJSON},
		{`null`, InvalidJSON},
		{`[]`, InvalidJSON},
		{`"a"`, InvalidJSON},
		{`{`, InvalidJSON},
		{`{"a"`, InvalidJSON},
		{`{"a":`, InvalidJSON},
		{`{"a":1`, InvalidJSON},
		{`{"a":1,}`, InvalidJSON},
		{`{,"a":1}`, InvalidJSON},
		{`{"a" 1}`, InvalidJSON},
		{`{a:1}`, InvalidJSON},
		{`{'a':1}`, InvalidJSON},
		{`{"a":1} x`, InvalidJSON},
		{`{"a":1}{}`, InvalidJSON},
		{`{"a":1}` + "\x00", InvalidJSON},
		{"\ufeff{}", InvalidJSON},
		{`{"a":01}`, InvalidJSON},
		{`{"a":-}`, InvalidJSON},
		{`{"a":+1}`, InvalidJSON},
		{`{"a":.5}`, InvalidJSON},
		{`{"a":1.}`, InvalidJSON},
		{`{"a":1e}`, InvalidJSON},
		{`{"a":0x10}`, InvalidJSON},
		{`{"a":NaN}`, InvalidJSON},
		{`{"a":tru}`, InvalidJSON},
		{`{"a":[1,]}`, InvalidJSON},
		{`{"a":[1}`, InvalidJSON},
		{`{"a":"` + "\xff" + `"}`, InvalidJSON},
		{`{"a":"` + "\xed\xa0\x80" + `"}`, InvalidJSON}, // a surrogate as UTF-8
		{`{"a":"` + "\n" + `"}`, InvalidJSON},
		{`{"a":"\ud800"}`, InvalidJSON},
		{`{"a":"\udc00"}`, InvalidJSON},
		{`{"a":"\ud800\ud800"}`, InvalidJSON},
		{`{"a":"\ud800x"}`, InvalidJSON},
		{`{"\ud800":1}`, InvalidJSON},
		{`{"a":"\x"}`, InvalidJSON},
		{`{"a":"\u12"}`, InvalidJSON},
		{`{"a":"\`, InvalidJSON},
		{`{"a":"\ud83d\ude00"}`, ""},
		{`{"a":1,"a":1}`, DuplicateField},
		{`{"a":null,"a":1}`, DuplicateField},
		{`{"a":1,"\u0061":1}`, DuplicateField},
		{`{"A":1}`, UnknownField},
		{`{"a":1,"A":1}`, UnknownField},
		{`{"a ":1}`, UnknownField},
		{`{"":1}`, UnknownField},
		{`{"zzz":1,"a":}`, InvalidJSON},
		{`{"a":1,"a":1} x`, InvalidJSON},
	} {
		var values [3]Value
		if got := codeOf(Fields([]byte(c.doc), names, values[:])); got != c.code {
			t.Errorf("%q: code %q, want %q", c.doc, got, c.code)
		}
	}
}

func TestText(t *testing.T) {
	t.Parallel()
	for doc, want := range map[string]string{
		`"plain"`:                     "plain",
		`"\"\\\/\b\f\n\r\t\u0041é"`:   "\"\\/\b\f\n\r\tAé",
		`"\ud83d\ude00\u0000"`:        "😀\x00",
		`""`:                          "",
		`17`:                          "",
		`"\uFFFD is a rune like any"`: "\ufffd is a rune like any",
	} {
		var values [3]Value
		if err := Fields([]byte(`{"a":`+doc+`}`), names, values[:]); err != nil {
			t.Fatalf("%s: %v", doc, err)
		}
		if got := values[0].Text(); got != want {
			t.Errorf("%s = %q, want %q", doc, got, want)
		}
	}
}

func TestInt(t *testing.T) {
	t.Parallel()
	for doc, want := range map[string]struct {
		n   int64
		err error
	}{
		`0`: {0, nil}, `-0`: {0, nil}, `-7`: {-7, nil}, `9007199254740991`: {9007199254740991, nil},
		`1.0`: {0, ErrNotInteger}, `1e3`: {0, ErrNotInteger}, `"5"`: {0, ErrNotInteger},
		`null`: {0, ErrNotInteger}, `true`: {0, ErrNotInteger}, `[1]`: {0, ErrNotInteger},
		`9223372036854775808`:                {0, ErrRange},
		`-9223372036854775809`:               {0, ErrRange},
		strings.Repeat("9", 4000):            {0, ErrRange},
		strings.Repeat("9", 4000) + ".0":     {0, ErrNotInteger},
		"1" + strings.Repeat("0", 30) + "e1": {0, ErrNotInteger},
	} {
		var values [3]Value
		if err := Fields([]byte(`{"a":`+doc+`}`), names, values[:]); err != nil {
			t.Fatalf("%s: %v", doc, err)
		}
		if n, err := values[0].Int(); n != want.n || !errors.Is(err, want.err) {
			t.Errorf("%.40s = %d, %v, want %d, %v", doc, n, err, want.n, want.err)
		}
	}
}

func TestNested(t *testing.T) {
	t.Parallel()
	var values [3]Value
	if err := Fields([]byte(`{"list":[{"a":1},{"a":1,"a":2},3],"b":{"x":{"k":1,"k":2}}}`), names, values[:]); err != nil {
		t.Fatal(err)
	}
	var codes []string
	err := values[2].Elements(func(e Value) error {
		var inner [3]Value
		codes = append(codes, codeOf(e.Fields(names, inner[:])))
		return nil
	})
	if err != nil || strings.Join(codes, ",") != ",duplicate_field,invalid_json" {
		t.Errorf("elements: %q, %v", codes, err)
	}
	if !values[1].Repeats() || !values[2].Repeats() || (Value{Kind: Number, raw: []byte("1")}).Repeats() {
		t.Error("repeated fields in nested objects were not seen")
	}
	if codeOf(values[1].Elements(nil)) != InvalidJSON {
		t.Error("an object passed for an array")
	}
}

// FuzzFields holds the scanner against encoding/json: whatever it accepts,
// encoding/json accepts and reads alike.
func FuzzFields(f *testing.F) {
	for _, s := range []string{`{"a":"\ud83d\ude00","b":-12}`, `{"a":[{"a":1}],"list":null}`, `{"a":1e5}`, `{`, "{\"a\":\"\xff\"}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		var values [3]Value
		err := Fields(doc, names, values[:])
		var ref map[string]json.RawMessage
		refErr := json.Unmarshal(doc, &ref)
		if codeOf(err) != InvalidJSON && refErr != nil {
			t.Fatalf("%q was accepted (%v), encoding/json says %v", doc, err, refErr)
		}
		if err != nil {
			return
		}
		if !utf8.Valid(doc) {
			t.Fatalf("%q is not UTF-8", doc)
		}
		for i, v := range values {
			raw, there := ref[names[i]]
			if there != (v.Kind != None) {
				t.Fatalf("%q: field %s: kind %v, there %v", doc, names[i], v.Kind, there)
			}
			var text string
			if v.Kind == String && (json.Unmarshal(raw, &text) != nil || text != v.Text()) {
				t.Fatalf("%q: field %s is %q, want %q", doc, names[i], v.Text(), text)
			}
			var n int64
			if got, err := v.Int(); err == nil && (json.Unmarshal(raw, &n) != nil || n != got) {
				t.Fatalf("%q: field %s is %d, want %d", doc, names[i], got, n)
			}
			v.Repeats()
		}
	})
}

func BenchmarkFields(b *testing.B) {
	fields := []string{"sender_id", "recipient_id", "amount", "unlock_at", "unlock_in_seconds", "idempotency_key", "currency", "reference"}
	doc := []byte(`{"sender_id":"0190c1d2-1111-7000-8000-000000000001","recipient_id":"0190c1d2-1111-7000-8000-000000000002",` +
		`"amount":1500,"unlock_in_seconds":60,"idempotency_key":"order-118-attempt-1","currency":"RBX"}`)
	b.SetBytes(int64(len(doc)))
	b.ReportAllocs()
	for b.Loop() {
		var values [8]Value
		if err := Fields(doc, fields, values[:]); err != nil {
			b.Fatal(err)
		}
	}
}
