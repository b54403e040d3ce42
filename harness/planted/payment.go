//go:build planted

package planted

// Bugs on the way of a payment.
var paymentBugs = []Bug{
	{
		Name:    "refund_on_timeout",
		About:   "A payment without an answer is taken for a refusal: a timeout reads like a failure in most client libraries.",
		Catches: "payment done but answered 500, or hanging: I7 (an effect of a refunded hold)",
		Edits: []Edit{{"coordinator/execute.go", `		d.refuse(ctx, answer.Code, false)
	default:
		d.later(ctx, describe(answer), !answer.SureNotSent)
`, `		d.refuse(ctx, answer.Code, false)
	default:
		d.refuse(ctx, "payment_timeout", false)
`}},
	},
	{
		Name:    "any_4xx_refuses",
		About:   "Every 4xx of the payment API is final. A rotated API key answers 401 and refunds the world.",
		Catches: "401 to everything: a hold FAILED that nobody refused (liveness after the fault, refunds counted)",
		Edits: []Edit{{"coordinator/payment/answer.go", `	case status >= 400 && status < 500:
`, `	case status >= 400 && status < 500:
		if op == opPay {
			code := "payment_refused"
			if err == nil && doc.Code != nil {
				code = *doc.Code
			}
			return Answer{Outcome: Refused, Code: code, Echoed: true}
		}
`}},
	},
	{
		Name:    "no_lookup_before_repeat",
		About:   "A payment of unknown outcome is sent again at once, with its key, and never looked up: right until the other side forgets keys.",
		Catches: "key-forgotten: I7 paid_twice (a second effect of a key forgotten after its lifetime)",
		Edits: []Edit{{"coordinator/execute.go", `	answer := d.c.cfg.Payment.Lookup(ctx, d.hold)
	d.permit.Done(answer)
`, `	answer := d.c.cfg.Payment.Pay(ctx, d.hold)
	d.permit.Done(answer)
`}},
	},
	{
		Name:    "key_from_attempt",
		About:   "The idempotency key of a payment carries the number of the attempt, which makes every attempt a payment of its own.",
		Catches: "payment done but answered 500: I7 (two effects)",
		Edits: []Edit{
			{"coordinator/drive.go", `			next(work)
`, `			next(context.WithValue(work, payment.Attempt{}, r.Attempts))
`},
			{"coordinator/payment/client.go", `	req := c.request(op, h, &way).WithContext(`, `	req := c.request(op, h, caller.Value(Attempt{}), &way).WithContext(`},
			{"coordinator/payment/client.go", `func (c *Client) request(op operation, h holdfast.Hold, way *sending) *http.Request {
	key := Key(h.ID)
`, `// Attempt is the key of the attempt's number in a context.
type Attempt struct{}

func (c *Client) request(op operation, h holdfast.Hold, attempt any, way *sending) *http.Request {
	key := fmt.Sprintf("%s:%v", Key(h.ID), attempt)
`},
		},
	},
	{
		Name:    "breaker_counts_refusals",
		About:   "A refusal is an error to the breaker, so that a wave of banned recipients stops everybody's payments.",
		Catches: "banned-recipient: the breaker must stay closed; else nobody is paid (I12)",
		Edits: []Edit{{"coordinator/payment/breaker.go", `	case a.Outcome != Unknown:
`, `	case a.Outcome == Succeeded || a.Outcome == NeverSeen:
`}},
	},
	{
		Name:    "trusts_any_200",
		About:   "A 200 is a success; what its body says about status, hold, amount and recipient is not looked at.",
		Catches: "payment-accepted: I7 paid_without_effect (EXECUTED on a 200 that did nothing). The wrong echoes do pay, they show nothing",
		Edits: []Edit{{"coordinator/payment/answer.go", `		return c.judgeDone(op, h, status, doc)
`, `		if op == opPay {
			id := Key(h.ID)
			if doc.PaymentID != nil {
				id = *doc.PaymentID
			}
			return Answer{Outcome: Succeeded, PaymentID: id}
		}
		return c.judgeDone(op, h, status, doc)
`}},
	},
}
