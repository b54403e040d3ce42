package strictjson

import (
	"unicode/utf16"
	"unicode/utf8"
)

// scanner walks a text once and checks all of it.
type scanner struct {
	data     []byte
	pos      int
	unique   bool // look for repeated fields in every object
	repeated bool
}

func (s *scanner) syntax(reason string) error {
	return &Error{Code: InvalidJSON, Offset: s.pos, Reason: reason}
}

// peek is the next byte, 0 at the end; a 0 in the text is a fault everywhere.
func (s *scanner) peek() byte {
	if s.pos < len(s.data) {
		return s.data[s.pos]
	}
	return 0
}

func (s *scanner) space() {
	for s.pos < len(s.data) {
		switch s.data[s.pos] {
		case ' ', '\t', '\n', '\r':
			s.pos++
		default:
			return
		}
	}
}

// value reads one value; leading space has been skipped.
func (s *scanner) value(depth int) (Value, error) {
	start := s.pos
	switch c := s.peek(); {
	case c == '"':
		return s.str()
	case c == '-' || c >= '0' && c <= '9':
		return s.number()
	case c == '{':
		err := s.object(depth, nil)
		return Value{Kind: Object, raw: s.data[start:s.pos]}, err
	case c == '[':
		err := s.array(depth, nil)
		return Value{Kind: Array, raw: s.data[start:s.pos]}, err
	case c == 't':
		return s.literal("true", Bool)
	case c == 'f':
		return s.literal("false", Bool)
	case c == 'n':
		return s.literal("null", Null)
	}
	return Value{}, s.syntax("expected a value")
}

func (s *scanner) literal(word string, k Kind) (Value, error) {
	end := s.pos + len(word)
	if end > len(s.data) || string(s.data[s.pos:end]) != word {
		return Value{}, s.syntax("expected a value")
	}
	v := Value{Kind: k, raw: s.data[s.pos:end]}
	s.pos = end
	return v, nil
}

// object reads an object and calls visit, when given, for each field.
func (s *scanner) object(depth int, visit func(name, v Value, at int)) error {
	if depth >= MaxDepth {
		return s.syntax("nested too deep")
	}
	var seen map[string]bool
	if s.unique {
		seen = map[string]bool{}
	}
	s.pos++
	s.space()
	if s.peek() == '}' {
		s.pos++
		return nil
	}
	for {
		at := s.pos
		if s.peek() != '"' {
			return s.syntax("expected the name of a field")
		}
		name, err := s.str()
		if err != nil {
			return err
		}
		s.space()
		if s.peek() != ':' {
			return s.syntax("expected a colon")
		}
		s.pos++
		s.space()
		v, err := s.value(depth + 1)
		if err != nil {
			return err
		}
		if seen != nil {
			text := name.Text()
			s.repeated = s.repeated || seen[text]
			seen[text] = true
		}
		if visit != nil {
			visit(name, v, at)
		}
		if done, err := s.next('}'); done || err != nil {
			return err
		}
	}
}

// array reads an array and calls visit, when given, for each element.
func (s *scanner) array(depth int, visit func(Value) error) error {
	if depth >= MaxDepth {
		return s.syntax("nested too deep")
	}
	s.pos++
	s.space()
	if s.peek() == ']' {
		s.pos++
		return nil
	}
	for {
		v, err := s.value(depth + 1)
		if err != nil {
			return err
		}
		if visit != nil {
			if err := visit(v); err != nil {
				return err
			}
		}
		if done, err := s.next(']'); done || err != nil {
			return err
		}
	}
}

// next reads a comma, or the closing byte, which is done.
func (s *scanner) next(closing byte) (done bool, err error) {
	s.space()
	switch s.peek() {
	case closing:
		s.pos++
		return true, nil
	case ',':
		s.pos++
		s.space()
		return false, nil
	}
	return false, s.syntax("expected a comma or the end")
}

func (s *scanner) digits() bool {
	start := s.pos
	for c := s.peek(); c >= '0' && c <= '9'; c = s.peek() {
		s.pos++
	}
	return s.pos > start
}

func (s *scanner) number() (Value, error) {
	start := s.pos
	if s.peek() == '-' {
		s.pos++
	}
	if s.peek() == '0' {
		s.pos++
		if c := s.peek(); c >= '0' && c <= '9' {
			return Value{}, s.syntax("a number with a leading zero")
		}
	} else if !s.digits() {
		return Value{}, s.syntax("expected a digit")
	}
	if s.peek() == '.' {
		s.pos++
		if !s.digits() {
			return Value{}, s.syntax("expected a digit")
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.pos++
		if c := s.peek(); c == '+' || c == '-' {
			s.pos++
		}
		if !s.digits() {
			return Value{}, s.syntax("expected a digit")
		}
	}
	return Value{Kind: Number, raw: s.data[start:s.pos]}, nil
}

func (s *scanner) str() (Value, error) {
	s.pos++
	start, escaped := s.pos, false
	for s.pos < len(s.data) {
		switch c := s.data[s.pos]; {
		case c == '"':
			v := Value{Kind: String, raw: s.data[start:s.pos], escaped: escaped}
			s.pos++
			return v, nil
		case c == '\\':
			escaped = true
			_, n := escape(s.data[s.pos:])
			if n == 0 {
				return Value{}, s.syntax("a bad escape in a string")
			}
			s.pos += n
		case c < 0x20:
			return Value{}, s.syntax("a control character in a string")
		case c < utf8.RuneSelf:
			s.pos++
		default:
			r, n := utf8.DecodeRune(s.data[s.pos:])
			if r == utf8.RuneError && n == 1 {
				return Value{}, s.syntax("text that is not UTF-8")
			}
			s.pos += n
		}
	}
	return Value{}, s.syntax("a string without an end")
}

// escape reads the escape sequence at the start of b; n = 0 means a bad one. A
// surrogate counts only as the half of a pair, and the pair is one sequence.
func escape(b []byte) (r rune, n int) {
	if len(b) < 2 {
		return 0, 0
	}
	switch b[1] {
	case '"', '\\', '/':
		return rune(b[1]), 2
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	case 'u':
	default:
		return 0, 0
	}
	r = hex4(b)
	if r < 0 || !utf16.IsSurrogate(r) {
		if r < 0 {
			return 0, 0
		}
		return r, 6
	}
	if pair := utf16.DecodeRune(r, hex4(b[6:])); pair != utf8.RuneError {
		return pair, 12
	}
	return 0, 0
}

// hex4 reads \uXXXX at the start of b, -1 when it is not there.
func hex4(b []byte) rune {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return -1
	}
	var r rune
	for _, c := range b[2:6] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

// unescape appends the decoded text of a string that was scanned.
func unescape(dst, raw []byte) []byte {
	for i := 0; i < len(raw); {
		if raw[i] != '\\' {
			dst = append(dst, raw[i])
			i++
			continue
		}
		r, n := escape(raw[i:])
		dst = utf8.AppendRune(dst, r)
		i += n
	}
	return dst
}
