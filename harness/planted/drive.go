//go:build planted

package planted

// Bugs in how a hold is driven from its claim to its end.
var driveBugs = []Bug{
	{
		Name:    "recipient_check_after_claim",
		About:   "The recipient is checked when the coins are about to arrive, after claim and payment, and the hold refused then.",
		Catches: "recipient banned between create and maturity: I7 (an effect of a refunded hold)",
		Edits: []Edit{
			{"coordinator/drive.go", `	c.checkRecipients(ctx, b)
	if ctx.Err()`, `	if ctx.Err()`},
			{"coordinator/execute.go", `func (d *drive) settle(ctx context.Context, paymentID string) {
`, `func (d *drive) settle(ctx context.Context, paymentID string) {
	check := d.c.shards.Check(ctx, d.c.cfg.Map.OfUser(d.hold.Recipient),
		[]branch.CheckItem{{User: d.hold.Recipient, Currency: d.hold.Currency}})[0].Code
	if check == branch.CodeUnknownRecipient || check == branch.CodeRecipientNotPayable {
		d.refuse(ctx, string(check), false)
		return
	}
`},
		},
	},
	{
		Name:    "credit_before_verdict",
		About:   "The recipient on another shard is credited as soon as the payment is known, the verdict is written after it.",
		Catches: "success-after-refund: I2 credit_without_verdict (the sender has it back, the recipient too); die-at-recipient-credited: the same in a cut",
		Edits: []Edit{{"coordinator/execute.go", `func (d *drive) settle(ctx context.Context, paymentID string) {
`, `func (d *drive) settle(ctx context.Context, paymentID string) {
	if to := d.c.cfg.Map.OfUser(d.hold.Recipient); to != d.shard {
		d.c.shards.Credit(ctx, to, []branch.CreditItem{{ID: d.hold.ID, Recipient: d.hold.Recipient, Currency: d.hold.Currency, Amount: d.hold.Amount}})
	}
`}},
	},
	{
		Name:    "refund_lost_with_process",
		About:   "Refunds are done by whoever wrote the verdict; nobody looks for those that a dead process left behind.",
		Catches: "die-at-verdict-refused-committed: I11 refund_open (FAILED and never refunded)",
		Edits: []Edit{
			{"coordinator/refund.go", `			c.refundLeftovers(ctx)
`, ``},
			{"coordinator/drive.go", `		case branch.CodeToRefund:
			c.wantRefund(r.Hold.ID)
`, ``},
		},
	},
	{
		Name:    "rows_taken_for_a_commit",
		About:   "What a statement returns is believed as it arrives, before the server says that it has committed.",
		Catches: "gone-in-commit: I7 (paid, and the claim was rolled back)",
		Edits: []Edit{{"participants/ledger_drive.go", `				told[hold.ID] = ok(hold, h.lease())
`, `				told[hold.ID] = ok(hold, h.lease())
				done[hold.ID] = told[hold.ID]
`}},
	},
}
