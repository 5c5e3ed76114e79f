// Package manual writes a program's man pages and shell completions from its own commands, for packages. What it writes depends on
// the program, its version and SOURCE_DATE_EPOCH alone: not on the host, its clock or its environment, but for what defaults of flags
// say of those, which therefore have none that do.
package manual

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/obs"
)

// Command is the hidden command "manual DIR" of a program whose man pages belong to a section, "1" or "8". It fills DIR, which is a
// package's root directory, with a page for the program and one for each of its commands, compressed, and with completions for
// bash, zsh and fish, each where Debian has its own.
func Command(section string) *cobra.Command {
	return &cobra.Command{
		Use:    "manual DIR",
		Short:  "Write man pages and completions to a directory, for packages",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			date, err := sourceDate(os.Getenv("SOURCE_DATE_EPOCH"))
			if err != nil {
				return err
			}
			return errors.Join(pages(cmd.Root(), section, date, args[0]), completions(cmd.Root(), args[0]))
		},
	}
}

// sourceDate reads the moment that what is built comes from, as
// reproducible-builds.org specifies it.
func sourceDate(epoch string) (time.Time, error) {
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil || seconds < 0 {
		return time.Time{}, errdefs.Field("SOURCE_DATE_EPOCH in the environment", epoch, "seconds since 1970, such as git log -1 --format=%ct says")
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// pages writes the man pages.
func pages(root *cobra.Command, section string, date time.Time, dir string) error {
	raw, err := os.MkdirTemp("", "debvisor-manual-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(raw) }()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	noTags(root)
	header := &doc.GenManHeader{Section: section, Date: &date, Source: "DebVisor " + obs.Version, Manual: "DebVisor"}
	if err := doc.GenManTree(root, header, raw); err != nil {
		return fmt.Errorf("man pages: %w", err)
	}
	entries, err := os.ReadDir(raw)
	if err != nil {
		return err
	}
	to := filepath.Join(dir, "usr/share/man/man"+section)
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, e := range entries {
		page, err := os.ReadFile(filepath.Join(raw, e.Name()))
		if err != nil {
			return err
		}
		if err := compress(filepath.Join(to, e.Name()+".gz"), page); err != nil {
			return err
		}
	}
	return nil
}

// noTags leaves the line out that says when a page was made.
func noTags(cmd *cobra.Command) {
	cmd.DisableAutoGenTag = true
	for _, sub := range cmd.Commands() {
		noTags(sub)
	}
}

// compress writes a file as gzip -9n does: without a name and a time.
func compress(path string, data []byte) error {
	var packed bytes.Buffer
	w, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(path, packed.Bytes(), 0o644) //nolint:gosec // everybody reads man pages
}

// completions writes what completes the program's command line in shells.
func completions(root *cobra.Command, dir string) error {
	name := root.Name()
	for path, write := range map[string]func(*bytes.Buffer) error{
		"usr/share/bash-completion/completions/" + name:         func(b *bytes.Buffer) error { return root.GenBashCompletionV2(b, true) },
		"usr/share/zsh/vendor-completions/_" + name:             func(b *bytes.Buffer) error { return root.GenZshCompletion(b) },
		"usr/share/fish/vendor_completions.d/" + name + ".fish": func(b *bytes.Buffer) error { return root.GenFishCompletion(b, true) },
	} {
		var script bytes.Buffer
		if err := write(&script); err != nil {
			return fmt.Errorf("completion %s: %w", path, err)
		}
		to := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		text := strings.TrimRight(script.String(), "\n") + "\n"
		if err := os.WriteFile(to, []byte(text), 0o644); err != nil { //nolint:gosec // shells of everybody read it
			return err
		}
	}
	return nil
}
