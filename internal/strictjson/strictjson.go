// Package strictjson reads JSON objects whose fields are known in advance, and
// refuses what encoding/json lets pass: repeated fields, fields whose name
// differs only in case, unknown fields, invalid UTF-8, lone surrogates, text
// after the document. Money moves on what these documents say, so a document
// that two readers could understand differently must not be understood at all.
// It allocates nothing for a document without escapes. It knows nothing of the
// meaning of fields.
package strictjson

import (
	"errors"
	"fmt"
)

// MaxDepth is how deep objects and arrays may be nested.
const MaxDepth = 16

// Codes of Error, as they stand in the outside contract.
const (
	InvalidJSON    = "invalid_json"
	UnknownField   = "unknown_field"
	DuplicateField = "duplicate_field"
)

// Error says what is wrong with a document. Field is the name as it was sent,
// decoded, and must be treated as hostile.
type Error struct {
	Code   string
	Field  string
	Offset int // byte in the text that was scanned
	Reason string
}

func (e *Error) Error() string {
	if e.Reason == "" {
		return fmt.Sprintf("%s at byte %d", e.Code, e.Offset)
	}
	return fmt.Sprintf("%s at byte %d", e.Reason, e.Offset)
}

// Kind is the type of a JSON value.
type Kind uint8

// None is the kind of a field that is not in the document.
const (
	None Kind = iota
	String
	Number
	Bool
	Null
	Object
	Array
)

var kindNames = [...]string{"nothing", "a string", "a number", "a boolean", "null", "an object", "an array"}

func (k Kind) String() string { return kindNames[k] }

// Errors of Value.Int.
var (
	ErrNotInteger = errors.New("not an integer")
	ErrRange      = errors.New("out of range")
)

// Value is one value of a document that was read to its end without error. It
// points into the caller's buffer.
type Value struct {
	Kind    Kind
	raw     []byte // strings without their quotes
	escaped bool   // a string with a backslash in it
}

// Text is the decoded string; empty for every other kind.
func (v Value) Text() string {
	if v.Kind != String {
		return ""
	}
	if !v.escaped {
		return string(v.raw)
	}
	return string(unescape(nil, v.raw))
}

// Int reads an integer literal: digits with an optional minus. A number with a
// fraction or an exponent is ErrNotInteger even when its value is whole, and an
// integer that int64 cannot hold is ErrRange, however long it is.
func (v Value) Int() (int64, error) {
	if v.Kind != Number {
		return 0, ErrNotInteger
	}
	digits, minus := v.raw, false
	if digits[0] == '-' {
		digits, minus = digits[1:], true
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, ErrNotInteger
		}
	}
	// The grammar forbids leading zeros, so 19 digits or more are the only ones
	// that may not fit; none of them is a legal amount or delay.
	if len(digits) > 18 {
		return 0, ErrRange
	}
	var n int64
	for _, c := range digits {
		n = n*10 + int64(c-'0')
	}
	if minus {
		n = -n
	}
	return n, nil
}

// Repeats reports whether an object anywhere in the value has a field twice.
func (v Value) Repeats() bool {
	if v.Kind != Object && v.Kind != Array {
		return false
	}
	s := scanner{data: v.raw, unique: true}
	_, err := s.value(0)
	return err == nil && s.repeated
}

// Fields reads the object in the value; see the function Fields.
func (v Value) Fields(names []string, values []Value) error {
	if v.Kind != Object {
		return &Error{Code: InvalidJSON, Reason: "expected an object, found " + v.Kind.String()}
	}
	return Fields(v.raw, names, values)
}

// Elements calls f for each element of the array in the value.
func (v Value) Elements(f func(e Value) error) error {
	if v.Kind != Array {
		return &Error{Code: InvalidJSON, Reason: "expected an array, found " + v.Kind.String()}
	}
	s := scanner{data: v.raw}
	return s.array(0, f)
}

// Fields reads a document that is one object and puts the value of the field
// names[i] into values[i]; fields that are missing keep the kind None. Errors
// are *Error. A document that is not JSON is invalid_json even when an unknown
// or repeated field comes before the fault.
func Fields(data []byte, names []string, values []Value) error {
	clear(values)
	s := scanner{data: data}
	s.space()
	if s.peek() != '{' {
		return s.syntax("the document must be one JSON object")
	}
	var first *Error
	err := s.object(0, func(name Value, v Value, at int) {
		if e := take(names, values, name, v, at); e != nil && first == nil {
			first = e
		}
	})
	if err != nil {
		return err
	}
	s.space()
	if s.pos != len(data) {
		return s.syntax("text after the end of the object")
	}
	if first != nil {
		return first
	}
	return nil
}

func take(names []string, values []Value, name, v Value, at int) *Error {
	raw := name.raw
	if name.escaped {
		raw = unescape(nil, raw)
	}
	for i, n := range names {
		if string(raw) != n {
			continue
		}
		if values[i].Kind != None {
			return &Error{Code: DuplicateField, Field: n, Offset: at, Reason: "a field appears twice"}
		}
		values[i] = v
		return nil
	}
	return &Error{Code: UnknownField, Field: string(raw), Offset: at, Reason: "a field is not known"}
}
