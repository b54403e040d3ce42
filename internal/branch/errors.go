package branch

import (
	"errors"
	"fmt"

	"github.com/holdfast-escrow/holdfast"
)

// CodeOf turns an error of a transport into the code of its items.
func CodeOf(err error) Code {
	switch {
	case errors.Is(err, holdfast.ErrShardUnavailable):
		return CodeShardUnavailable
	case errors.Is(err, holdfast.ErrOverloaded):
		return CodeOverloaded
	}
	return CodeOutcomeUnknown
}

// Err is the error behind a code that is not a decision of a shard, nil for
// every other code.
func (c Code) Err() error {
	switch c {
	case CodeShardUnavailable:
		return holdfast.ErrShardUnavailable
	case CodeOverloaded:
		return holdfast.ErrOverloaded
	case CodeOutcomeUnknown:
		return holdfast.ErrOutcomeUnknown
	case "":
		return fmt.Errorf("%w: empty answer", holdfast.ErrOutcomeUnknown)
	}
	return nil
}
