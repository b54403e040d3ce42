package problem

import "net/http"

// Codes that are not also codes of a branch step. The contract's table of
// errors uses the same words.
const (
	Internal          = "internal_error"
	InvalidJSON       = "invalid_json"
	MissingField      = "missing_field"
	InvalidField      = "invalid_field"
	InvalidID         = "invalid_id"
	InvalidPageToken  = "invalid_page_token"
	AmountOutOfRange  = "amount_out_of_range"
	UnknownCurrency   = "unknown_currency"
	SelfPayment       = "self_payment"
	ReferenceTooLong  = "reference_too_long"
	UnlockOutOfRange  = "unlock_at_out_of_range"
	KeyMissing        = "idempotency_key_missing"
	KeyConflict       = "idempotency_key_conflict"
	KeyInvalid        = "idempotency_key_invalid"
	KeyInFlight       = "idempotency_in_flight"
	BodyTooLarge      = "body_too_large"
	BatchTooLarge     = "batch_too_large"
	MediaUnsupported  = "unsupported_media_type"
	RequestTimeout    = "request_timeout"
	Unauthenticated   = "unauthenticated"
	InsufficientScope = "insufficient_scope"
	ForbiddenSender   = "forbidden_sender"
	ForbiddenAccount  = "forbidden_account"
	RateLimited       = "rate_limited"
	Overloaded        = "overloaded"
	ShardUnavailable  = "shard_unavailable"
	OutcomeUnknown    = "outcome_unknown"
	HoldNotFound      = "hold_not_found"
	NotFound          = "not_found"
	MethodNotAllowed  = "method_not_allowed"
	ReasonMissing     = "reason_missing"
	EvidenceMissing   = "evidence_missing"
	NotServedHere     = "not_served_here"
)

type entry struct {
	status     int
	title      string
	retryable  bool
	retryAfter int // seconds
}

const (
	bad      = http.StatusBadRequest
	conflict = http.StatusConflict
	wrong    = http.StatusUnprocessableEntity
	absent   = http.StatusNotFound
	away     = http.StatusServiceUnavailable
)

// table is the one place that says what a code means to a client.
var table = map[string]entry{
	Internal: {status: http.StatusInternalServerError, title: "Internal error"},

	InvalidJSON:       {status: bad, title: "The body is not the JSON that is expected"},
	"unknown_field":   {status: bad, title: "A field is not known"},
	"duplicate_field": {status: bad, title: "A field appears twice"},
	MissingField:      {status: wrong, title: "A field is missing"},
	InvalidField:      {status: wrong, title: "A field has a value that is not allowed"},
	InvalidID:         {status: wrong, title: "An id is malformed"},
	InvalidPageToken:  {status: wrong, title: "The page token does not belong to this query"},
	AmountOutOfRange:  {status: wrong, title: "The amount is out of range"},
	UnknownCurrency:   {status: wrong, title: "The currency is not known"},
	SelfPayment:       {status: wrong, title: "Sender and recipient are the same"},
	ReferenceTooLong:  {status: wrong, title: "The reference is too long"},
	UnlockOutOfRange:  {status: wrong, title: "The unlock time is out of range"},
	BodyTooLarge:      {status: http.StatusRequestEntityTooLarge, title: "The body is too large"},
	BatchTooLarge:     {status: wrong, title: "The batch has too many items"},
	MediaUnsupported:  {status: http.StatusUnsupportedMediaType, title: "The body must be plain application/json"},
	RequestTimeout:    {status: http.StatusRequestTimeout, title: "The body did not arrive in time", retryable: true},

	KeyMissing:               {status: bad, title: "An idempotency key is needed"},
	KeyConflict:              {status: bad, title: "The idempotency keys of the request disagree"},
	KeyInvalid:               {status: bad, title: "The idempotency key is not allowed"},
	KeyInFlight:              {status: conflict, title: "A request with this key is still running", retryable: true, retryAfter: 1},
	"idempotency_key_reused": {status: wrong, title: "The key was used for another request"},

	"insufficient_funds":    {status: http.StatusPaymentRequired, title: "The balance is too small"},
	"unknown_sender":        {status: wrong, title: "The sender has no account"},
	"sender_not_active":     {status: wrong, title: "The sender's account cannot send"},
	"unknown_recipient":     {status: wrong, title: "The recipient has no account"},
	"recipient_not_payable": {status: wrong, title: "The recipient's account cannot be named"},

	HoldNotFound:            {status: absent, title: "There is no such hold"},
	"hold_matured":          {status: conflict, title: "The hold has matured"},
	"hold_not_matured":      {status: conflict, title: "The hold has not matured"},
	"hold_already_executed": {status: conflict, title: "The hold has been paid"},
	"hold_failed":           {status: conflict, title: "The hold has failed"},
	"forbidden_cancel":      {status: http.StatusForbidden, title: "Only the sender may cancel"},

	"account_not_found":    {status: absent, title: "There is no such account"},
	"account_not_empty":    {status: conflict, title: "The account still holds coins"},
	"account_closed":       {status: conflict, title: "The account is closed"},
	"issuance_cap_reached": {status: wrong, title: "No more coins can be issued"},

	Unauthenticated:   {status: http.StatusUnauthorized, title: "A valid bearer token is needed"},
	InsufficientScope: {status: http.StatusForbidden, title: "The token lacks a scope"},
	ForbiddenSender:   {status: http.StatusForbidden, title: "The token may not act for this sender"},
	ForbiddenAccount:  {status: http.StatusForbidden, title: "The token may not act for this account"},
	RateLimited:       {status: http.StatusTooManyRequests, title: "Too many requests", retryable: true, retryAfter: 1},

	Overloaded:       {status: away, title: "Too busy, nothing was done", retryable: true, retryAfter: 1},
	ShardUnavailable: {status: away, title: "A shard cannot be reached, nothing was done", retryable: true, retryAfter: 2},
	OutcomeUnknown: {status: http.StatusInternalServerError, retryable: true, retryAfter: 1,
		title: "It is not known whether this was done; repeat it with the same key"},

	NotFound:         {status: absent, title: "There is nothing here"},
	MethodNotAllowed: {status: http.StatusMethodNotAllowed, title: "The method is not allowed here"},

	ReasonMissing:           {status: wrong, title: "A reason is needed"},
	EvidenceMissing:         {status: wrong, title: "Evidence is needed"},
	NotServedHere:           {status: absent, title: "This process does not run that role"},
	"busy":                  {status: conflict, title: "The hold is being driven right now", retryable: true, retryAfter: 5},
	"not_retryable":         {status: conflict, title: "Only an executing hold can be driven again"},
	"not_refundable":        {status: conflict, title: "Only a failed hold can be refunded"},
	"not_resolvable":        {status: conflict, title: "The hold has no open outcome_unknown"},
	"dead_letter_not_found": {status: absent, title: "The hold has no open dead letter"},
	"hold_still_executing":  {status: conflict, title: "The hold has no verdict yet; resolve it first"},
	"verdict_is_other":      {status: conflict, title: "The hold already has the other verdict"},
}
