package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/debvisor/debvisor/shared/auditlog"
)

// Files lists the files of the log at path, oldest first: those that it was
// moved to, whatever they are called behind path (.1, .2.gz, -20260131), and
// itself, if it is there. Files that do not begin with a line are not the log's.
func Files(path string) ([]string, error) {
	type dated struct {
		name string
		at   time.Time
		seq  uint64
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("looking for the files of the audit log: %w", err)
	}
	var older []dated
	var own []string
	base := filepath.Base(path)
	for _, entry := range entries {
		name := filepath.Join(filepath.Dir(path), entry.Name())
		rest, ours := strings.CutPrefix(entry.Name(), base)
		switch {
		case !ours:
		case rest == "":
			own = append(own, name)
		case (rest[0] == '.' || rest[0] == '-') && rest != torn && !strings.Contains(rest, unchained) && entry.Type().IsRegular():
			if first, err := firstOf(name); err == nil {
				older = append(older, dated{name, first.Time, first.Seq})
			}
		}
	}
	slices.SortFunc(older, func(a, b dated) int {
		if order := a.at.Compare(b.at); order != 0 {
			return order
		}
		return int(min(max(int64(a.seq-b.seq), -1), 1))
	})
	names := make([]string, 0, len(older)+1)
	for _, o := range older {
		names = append(names, o.name)
	}
	return append(names, own...), nil
}

// firstOf reads the first line of a file.
func firstOf(name string) (auditlog.Line, error) {
	f, err := auditlog.Open(name)
	if err != nil {
		return auditlog.Line{}, err
	}
	defer func() { _ = f.Close() }() // it is only read
	line, err := bufio.NewReaderSize(f, auditlog.MaxLine).ReadSlice('\n')
	if err != nil {
		return auditlog.Line{}, fmt.Errorf("reading %s: %w", name, err)
	}
	return auditlog.Parse(line[:len(line)-1])
}

// headOf reads the last line of a file, of which it reads all.
func headOf(name string) (auditlog.Head, error) {
	f, err := auditlog.Open(name)
	if err != nil {
		return auditlog.Head{}, err
	}
	defer func() { _ = f.Close() }() // it is only read
	var head auditlog.Head
	r := bufio.NewReaderSize(f, auditlog.MaxLine+1)
	for {
		line, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF):
			return head, nil
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil:
			return auditlog.Head{}, fmt.Errorf("reading %s: %w", name, err)
		}
		if parsed, err := auditlog.Parse(line[:len(line)-1]); err == nil {
			head = auditlog.Head{Sequence: parsed.Seq, Hash: auditlog.HashOf(line[:len(line)-1])}
		}
	}
}
