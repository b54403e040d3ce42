//go:build planted

package planted

// Bugs in the ledger's SQL.
var ledgerBugs = []Bug{}
