// Package workload uses Holdfast the way its customers do and writes down what
// they saw. Seeded clients send creates, cancels, reads, deposits and
// withdrawals to the public API over HTTP, repeat what was not answered with
// the same key at another address, and give up after a bounded time. Every
// operation ends as ok, refused or unknown; unknown is never taken for failed.
// It knows nothing of shards beyond the map that spreads the accounts, and
// nothing of how the product does its work.
package workload
