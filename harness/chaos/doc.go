// Package chaos breaks a running Holdfast on purpose and proves that no coin is
// lost. Each fault is a small declared scenario: it strikes a cluster of real
// processes under load, counts how often it really struck, and is healed; then
// the cluster must come to rest in the promised time with every invariant
// whole. A fault that did not strike has not passed. Everything random comes
// from one seed, and every result names the command that runs it again.
package chaos
