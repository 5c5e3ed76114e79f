package auditlog

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
)

// Verifier checks a log, file by file from the oldest. Its zero value is ready.
type Verifier struct {
	expected map[uint64]expectation
	report   Report
	// last is the end of what was read; the zero value before the first line.
	last    Head
	replica string
	// lost says that what came last could not be read: the next line's number
	// is taken as it is.
	lost bool
}

// expectation is a line that is known from elsewhere.
type expectation struct {
	hash Hash
	who  string
	met  bool
}

// Report is what was found.
type Report struct {
	// Finding is what is wrong first, for people; empty: the log is whole.
	Finding string
	// File and Line, from 1, are where; 0: it is not about a line.
	File string
	Line uint64
	// Findings is how many things are wrong.
	Findings int
	// Lines is how many were read, First the number of the first one.
	Lines, First uint64
	// Head is the end of the chain; Replica is whose it is.
	Head    Head
	Replica string
}

// Whole tells whether nothing is wrong.
func (r Report) Whole() bool { return r.Findings == 0 }

// Expect says that a line is known: who, such as "etcd", knows its hash. It is
// to be called before the files are read.
func (v *Verifier) Expect(head Head, who string) {
	if head.Sequence == 0 {
		return
	}
	if v.expected == nil {
		v.expected = map[uint64]expectation{}
	}
	if other, ok := v.expected[head.Sequence]; ok && other.hash != head.Hash {
		v.find("", 0, "%s and %s know different lines %d", other.who, who, head.Sequence)
		return
	}
	v.expected[head.Sequence] = expectation{hash: head.Hash, who: who}
}

// File reads the next file. The error is of reading only.
func (v *Verifier) File(name string, from io.Reader) error {
	r := bufio.NewReaderSize(from, MaxLine+1)
	for number := uint64(1); ; number++ {
		line, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			v.unreadable(name, number, fmt.Errorf("it has more than %d bytes", MaxLine))
			if err := skip(r); err != nil {
				return fmt.Errorf("reading %s: %w", name, err)
			}
			continue
		case errors.Is(err, io.EOF):
			if len(line) > 0 {
				v.unreadable(name, number, errors.New("its end is missing"))
			}
			return nil
		case Damaged(err):
			v.unreadable(name, number, err)
			return nil
		case err != nil:
			return fmt.Errorf("reading %s: %w", name, err)
		}
		v.line(name, number, line[:len(line)-1])
	}
}

// skip reads to the end of a line.
func skip(r *bufio.Reader) error {
	for {
		switch _, err := r.ReadSlice('\n'); {
		case err == nil, errors.Is(err, io.EOF), Damaged(err): // the next look tells
			return nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return err
		}
	}
}

// End tells what was found once all files were read.
func (v *Verifier) End() Report {
	for _, seq := range slices.Sorted(maps.Keys(v.expected)) {
		e := v.expected[seq]
		switch {
		case e.met:
		case seq > v.last.Sequence:
			v.find("", 0, "the end is missing: the last line is number %d, and %s knows of line %d", v.last.Sequence, e.who, seq)
		case seq < v.report.First:
			v.find("", 0, "the first line is number %d, and %s knows of line %d only, which is before it: nothing tells that this is the end",
				v.report.First, e.who, seq)
		default:
			v.find("", 0, "line %d, which %s knows, is missing", seq, e.who)
		}
	}
	r := v.report
	r.Head, r.Replica = v.last, v.replica
	return r
}

// line checks one line.
func (v *Verifier) line(file string, number uint64, line []byte) {
	seq, prev, err := link(line)
	var told struct {
		Seq     uint64 `json:"seq"`
		Replica string `json:"replica"`
		Event   string `json:"event"`
		Reason  string `json:"reason"`
	}
	if err == nil {
		err = json.Unmarshal(line, &told)
	}
	if err != nil {
		v.unreadable(file, number, err)
		return
	}
	hash := HashOf(line)
	if v.last.Sequence == 0 {
		v.replica = told.Replica
	}
	switch {
	case v.report.Lines == 0:
		v.report.First = seq
		if seq == 1 && prev != Genesis {
			v.find(file, number, "it is number 1 and says that there was a line before it")
		}
	case seq == 1 && prev == Genesis:
		v.find(file, number, "the chain begins anew here: nothing ties it to the %d lines before", v.report.Lines)
	case v.lost && prev != v.last.Hash, !v.lost && (prev != v.last.Hash || seq != v.last.Sequence+1):
		v.find(file, number, "%s", v.misfit(seq, prev))
	case told.Replica != v.replica:
		v.find(file, number, "it is of replica %q, those before it are of %q", told.Replica, v.replica)
	}
	if told.Seq != seq {
		v.find(file, number, "it has its number twice")
	}
	if told.Event == EventsLost || told.Event == LogLost {
		v.find(file, number, "the log says so itself: %s", told.Reason)
	}
	if e, ok := v.expected[seq]; ok {
		if e.met = true; e.hash != hash {
			v.find(file, number, "it is not the line %d that %s knows", seq, e.who)
		}
		v.expected[seq] = e
	}
	v.last, v.lost = Head{Sequence: seq, Hash: hash}, false
	v.report.Lines++
}

// misfit says why a line does not follow the one before it.
func (v *Verifier) misfit(seq uint64, prev Hash) string {
	switch next := v.last.Sequence + 1; {
	case v.lost:
		return fmt.Sprintf("the line before it, number %d of the chain, could not be read or is not the one that it follows", seq-1)
	case seq == next:
		return fmt.Sprintf("the line before it, number %d of the chain, was changed: its hash is %.12s… and this line tells of %.12s…", seq-1, v.last.Hash, prev)
	case seq > next:
		return fmt.Sprintf("%d lines before it are missing: number %d follows number %d", seq-next, seq, v.last.Sequence)
	default:
		return fmt.Sprintf("it is out of order or there twice: number %d follows number %d", seq, v.last.Sequence)
	}
}

// unreadable notes a line that is none.
func (v *Verifier) unreadable(file string, number uint64, err error) {
	v.find(file, number, "%v", err)
	if v.report.Lines == 0 {
		v.report.First = 1 // what it was, nobody can tell
	}
	v.report.Lines++
	v.lost = true
}

// find notes that something is wrong, and keeps the first of it.
func (v *Verifier) find(file string, line uint64, format string, args ...any) {
	if v.report.Findings++; v.report.Findings > 1 {
		return
	}
	v.report.Finding, v.report.File, v.report.Line = fmt.Sprintf(format, args...), file, line
}
