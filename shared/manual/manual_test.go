package manual

import (
	"bytes"
	"compress/gzip"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func program() *cobra.Command {
	root := &cobra.Command{Use: "prog", Short: "Does things"}
	sub := &cobra.Command{Use: "act NAME", Short: "Act", Run: func(*cobra.Command, []string) {}}
	sub.Flags().String("how", "well", "in which way")
	hidden := &cobra.Command{Use: "child", Hidden: true, Run: func(*cobra.Command, []string) {}}
	root.AddCommand(sub, hidden, Command("8"))
	return root
}

func write(t *testing.T, epoch string) (string, error) {
	t.Helper()
	t.Setenv("SOURCE_DATE_EPOCH", epoch)
	dir := t.TempDir()
	root := program()
	root.SetArgs([]string{"manual", dir})
	root.SetErr(io.Discard)
	root.SetOut(io.Discard)
	return dir, root.Execute()
}

// contents are all files of a directory, by their paths in it.
func contents(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		all[name], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestManual(t *testing.T) {
	dir, err := write(t, "1700000000")
	if err != nil {
		t.Fatal(err)
	}
	files := contents(t, dir)
	for _, want := range []string{
		"usr/share/man/man8/prog.8.gz", "usr/share/man/man8/prog-act.8.gz", "usr/share/bash-completion/completions/prog",
		"usr/share/zsh/vendor-completions/_prog", "usr/share/fish/vendor_completions.d/prog.fish",
	} {
		if len(files[want]) == 0 {
			t.Errorf("no %s", want)
		}
	}
	for name := range files {
		if strings.Contains(name, "child") || strings.Contains(name, "manual") {
			t.Errorf("a page of a hidden command: %s", name)
		}
	}
	r, err := gzip.NewReader(bytes.NewReader(files["usr/share/man/man8/prog-act.8.gz"]))
	if err != nil {
		t.Fatal(err)
	}
	page, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"prog act NAME", "in which way", "Nov 2023", "prog(8)"} {
		if !strings.Contains(strings.ReplaceAll(string(page), `\fB`, ""), want) && !bytes.Contains(page, []byte(want)) {
			t.Errorf("the page does not say %q:\n%s", want, page)
		}
	}
	again, err := write(t, "1700000000")
	if err != nil {
		t.Fatal(err)
	}
	other := contents(t, again)
	for name, data := range files {
		if !bytes.Equal(data, other[name]) {
			t.Errorf("%s is another one the second time", name)
		}
	}
}

func TestManualNeedsItsDate(t *testing.T) {
	for _, epoch := range []string{"", "yesterday", "-1"} {
		dir, err := write(t, epoch)
		if err == nil || !strings.Contains(err.Error(), "SOURCE_DATE_EPOCH") {
			t.Errorf("%q: %v", epoch, err)
		}
		if files := contents(t, dir); len(files) > 0 {
			t.Errorf("%q: files all the same: %d", epoch, len(files))
		}
	}
}
