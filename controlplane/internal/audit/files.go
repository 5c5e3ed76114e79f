package audit

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/shared/auditlog"
)

// Files lists the files of the log at path, oldest first: those that it was
// moved to, whatever they are called behind path (.1, .2.gz, -20260131), and
// itself, if it is there. Files without lines are not the log's. Their order is
// that of the chain, whatever the clock was; of copies, such as the one that
// gzip is about to make, the whole one counts.
func Files(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("looking for the files of the audit log: %w", err)
	}
	var older []former
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
			if f, err := formerOf(name); err == nil {
				older = append(older, f)
			}
		}
	}
	slices.SortFunc(older, former.compare)
	older = slices.CompactFunc(older, former.same)
	if len(own) > 0 {
		if f, err := formerOf(path); err == nil {
			older = slices.DeleteFunc(older, f.same)
		}
	}
	names := make([]string, 0, len(older)+1)
	for _, o := range older {
		names = append(names, o.name)
	}
	return append(names, own...), nil
}

// former is a file that the log was moved to, by the first line that it has.
type former struct {
	name  string
	first auditlog.Line
	size  int64
}

func formerOf(name string) (former, error) {
	first, err := firstOf(name)
	if err != nil {
		return former{}, err
	}
	info, err := os.Stat(name)
	if err != nil {
		return former{}, err
	}
	return former{name: name, first: first, size: info.Size()}, nil
}

// compare orders files: of copies the whole one comes first.
func (f former) compare(other former) int {
	packed := func(f former) int {
		if strings.HasSuffix(f.name, ".gz") {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(f.first.Seq, other.first.Seq), f.first.Time.Compare(other.first.Time), cmp.Compare(f.first.Prev, other.first.Prev),
		cmp.Compare(packed(f), packed(other)), cmp.Compare(other.size, f.size))
}

// same tells whether one of the files is a copy of the other.
func (f former) same(other former) bool {
	return f.first.Seq == other.first.Seq && f.first.Prev == other.first.Prev && f.first.Time.Equal(other.first.Time)
}

// maxFirst is how much of a file is read to find its first line, bytes.
const maxFirst = 4 * auditlog.MaxLine

// firstOf reads the first line of a file. One that was changed is passed over:
// the file is the log's all the same. What has zeros before is of another kind,
// such as tar's.
func firstOf(name string) (auditlog.Line, error) {
	f, err := auditlog.Open(name)
	if err != nil {
		return auditlog.Line{}, err
	}
	defer func() { _ = f.Close() }() // it is only read
	r := bufio.NewReaderSize(io.LimitReader(f, maxFirst), auditlog.MaxLine+1)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return auditlog.Line{}, fmt.Errorf("reading %s: %w", name, err)
		}
		first, err := auditlog.Parse(line[:len(line)-1])
		if err == nil {
			return first, nil
		}
		if bytes.Contains(line, []byte{0, 0}) {
			return auditlog.Line{}, fmt.Errorf("reading %s: %w", name, err)
		}
	}
}

// headOf reads the last line of a file, of which it reads all. With an error it
// is the last one that can be read.
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
			return head, fmt.Errorf("reading %s: %w", name, err)
		}
		if parsed, err := auditlog.Parse(line[:len(line)-1]); err == nil {
			head = auditlog.Head{Sequence: parsed.Seq, Hash: auditlog.HashOf(line[:len(line)-1])}
		}
	}
}
