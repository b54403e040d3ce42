//go:build planted

// Package planted tests the tester: it knows bugs that must never be in the
// product, each one small, real in kind and dangerous, and builds binaries that
// have one of them. The harness runs against such a binary and must turn red.
//
// A bug is a change of text in some files, given to the compiler as an overlay,
// so that no line of it ever stands in the product. The old text of an edit must
// occur exactly once: when the product moves on, the edit fails loudly instead
// of quietly building a healthy binary.
package planted

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Bug is one planted bug.
type Bug struct {
	Name    string // lower case with underscores
	About   string // what is wrong and how somebody comes to write it
	Edits   []Edit
	Catches string // which fault and check should turn red first
}

// Edit changes one place of one file.
type Edit struct {
	File string // slash path from the module's root
	Old  string // occurs exactly once
	New  string
}

// All lists every bug, the Go ones first.
func All() []Bug { return slices.Concat(paymentBugs, driveBugs, edgeBugs, triggerBugs, ledgerBugs) }

// Named finds a bug.
func Named(name string) (Bug, bool) {
	all := All()
	if i := slices.IndexFunc(all, func(b Bug) bool { return b.Name == name }); i >= 0 {
		return all[i], true
	}
	return Bug{}, false
}

// Files are the changed files of a bug, by their slash paths from root.
func (b Bug) Files(root string) (map[string]string, error) {
	changed := map[string]string{}
	for i, e := range b.Edits {
		text, seen := changed[e.File]
		if !seen {
			raw, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(e.File)))
			if err != nil {
				return nil, fmt.Errorf("bug %s: edit %d: %w", b.Name, i+1, err)
			}
			text = string(raw)
		}
		if n := strings.Count(text, e.Old); n != 1 {
			return nil, fmt.Errorf("bug %s: edit %d: its old text occurs %d times in %s, must be once:\n%s", b.Name, i+1, n, e.File, e.Old)
		}
		changed[e.File] = strings.Replace(text, e.Old, e.New, 1)
	}
	return changed, nil
}

// Build compiles the command of the module at repoRoot with one bug in it, and
// with the crash points, to the file out.
func Build(ctx context.Context, repoRoot string, bug Bug, out string) error {
	root, err := filepath.Abs(repoRoot)
	if err != nil {
		return err
	}
	if out, err = filepath.Abs(out); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "holdfast-planted-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	overlay, err := bug.overlay(root, dir)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-overlay", overlay, "-tags", "failpoints", "-buildvcs=false", "-o", out, "./cmd/holdfast")
	cmd.Dir = root
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build with the bug %s: %w\n%s", bug.Name, err, text)
	}
	return nil
}

// overlay writes the changed files to dir and the list of replacements that the
// go command reads. It serves embedded files as well as Go files.
func (b Bug) overlay(root, dir string) (string, error) {
	changed, err := b.Files(root)
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	for name, text := range changed {
		copied := filepath.Join(dir, strconv.Itoa(len(replace))+filepath.Ext(name))
		if err := os.WriteFile(copied, []byte(text), 0o644); err != nil {
			return "", err
		}
		replace[filepath.Join(root, filepath.FromSlash(name))] = copied
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, list, 0o644)
}
