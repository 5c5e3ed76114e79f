package audit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/debvisor/debvisor/shared/auditlog"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// readable tells why the log cannot be read back, nil if it can.
func (l *Log) readable() error {
	info, err := os.Stat(l.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("looking at the audit log: %w", err)
	}
	if err == nil && !info.Mode().IsRegular() {
		return errdefs.New(errdefs.FailedPrecondition, "AUDIT_LOG_UNREADABLE",
			"this replica's audit log is no file that could be read back; ask whoever reads it")
	}
	return nil
}

// openFiles opens the files of the log, oldest first, as they were at one
// moment: they may be renamed at any time.
func (l *Log) openFiles() ([]*source, error) {
	for range 10 {
		names, err := Files(l.path)
		if err != nil {
			return nil, err
		}
		var list []*source
		for _, name := range names {
			s, openErr := openSource(name)
			if err = openErr; err != nil {
				break
			}
			list = append(list, s)
		}
		if again, againErr := Files(l.path); err == nil && againErr == nil && slices.Equal(names, again) && inPlace(list) {
			return list, nil
		}
		closeAll(list)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	return nil, errdefs.New(errdefs.Unavailable, "AUDIT_LOG_BUSY", "the files of the audit log are being moved; try again")
}

// inPlace tells whether what was opened still has its name.
func inPlace(list []*source) bool {
	return !slices.ContainsFunc(list, func(s *source) bool {
		now, err := os.Stat(s.name)
		return err != nil || !os.SameFile(now, s.info)
	})
}

func closeAll(list []*source) {
	for _, s := range list {
		_ = s.Close() // they were only read
	}
}

// source is one file of the log.
type source struct {
	io.ReadCloser
	name string
	info os.FileInfo
}

func openSource(name string) (*source, error) {
	f, err := auditlog.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(name)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &source{ReadCloser: f, name: name, info: info}, nil
}

// plain gives the file, where it can be read from anywhere; nil: it is packed.
func (s *source) plain() *os.File {
	f, _ := s.ReadCloser.(*os.File)
	return f
}

// errStop ends a reading early.
var errStop = errors.New("stop")

// forward calls each with the lines from a reader, and tells how many bytes they
// have. What has no line feed yet is not a line. Of lines that are longer than
// any, each gets the begin.
func forward(ctx context.Context, from io.Reader, each func(line []byte) error) (n int64, err error) {
	r := bufio.NewReaderSize(from, auditlog.MaxLine+1)
	for count := 0; ; count++ {
		if count%1024 == 0 && ctx.Err() != nil {
			return n, ctx.Err()
		}
		line, err := r.ReadSlice('\n')
		size := int64(len(line))
		long := errors.Is(err, bufio.ErrBufferFull)
		if long {
			line = bytes.Clone(line)
			for errors.Is(err, bufio.ErrBufferFull) {
				var more []byte
				more, err = r.ReadSlice('\n')
				size += int64(len(more))
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return n, nil
		case auditlog.Damaged(err):
			return n, each([]byte(err.Error())) // in the place of the lines that it had
		case err != nil:
			return n, fmt.Errorf("reading the audit log: %w", err)
		case !long:
			line = line[:len(line)-1]
		}
		n += size
		if err := each(line); err != nil {
			return n, err
		}
	}
}

// backward calls each with the lines of a file and where they begin, the last
// one first.
func backward(ctx context.Context, f io.ReaderAt, size int64, each func(line []byte, at int64) error) error {
	const block = 256 << 10
	var b []byte // from at on; ends behind the line that comes next
	at, first := size, true
	for at > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		step := min(at, block)
		read := make([]byte, step, int(step)+len(b))
		if _, err := f.ReadAt(read, at-step); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("reading the audit log: %w", err)
		}
		b, at = append(read, b...), at-step
		for {
			end := bytes.LastIndexByte(b, '\n')
			if first && end >= 0 {
				b, first = b[:end], false // what is behind it is not a line yet
				continue
			}
			if first || end < 0 {
				break
			}
			if err := each(b[end+1:], at+int64(end)+1); err != nil {
				return err
			}
			b = b[:end]
		}
		if len(b) > 16*auditlog.MaxLine {
			b = b[:auditlog.MaxLine] // a line that is longer than any
		}
	}
	if first {
		return nil
	}
	return each(b, 0)
}

// Has tells whether a line is in the log.
func (l *Log) Has(ctx context.Context, head auditlog.Head) (bool, error) {
	l.mu.Lock()
	synced, written := l.synced, l.written
	l.mu.Unlock()
	switch {
	case head.Sequence == 0, head == synced, l.readable() != nil:
		return true, nil // or nobody can tell
	case head.Sequence > written.Sequence:
		return false, nil
	}
	files, err := l.openFiles()
	if err != nil {
		return false, err
	}
	defer closeAll(files)
	for _, s := range slices.Backward(files) {
		found, passed, err := s.has(ctx, head)
		if err != nil || passed {
			return found, err
		}
	}
	return false, nil
}

// has tells whether a file has a line, and whether no other can have it.
func (s *source) has(ctx context.Context, head auditlog.Head) (found, passed bool, err error) {
	look := func(line []byte) error {
		parsed, err := auditlog.Parse(line)
		if err != nil {
			return nil //nolint:nilerr // whoever verifies the log is told of it
		}
		if found = parsed.Seq == head.Sequence && auditlog.HashOf(line) == head.Hash; found {
			return errStop
		}
		passed = passed || parsed.Seq <= head.Sequence
		return nil
	}
	if f := s.plain(); f != nil {
		err = backward(ctx, f, s.info.Size(), func(line []byte, _ int64) error {
			if err := look(line); err != nil || passed {
				return errStop
			}
			return nil
		})
	} else {
		_, err = forward(ctx, s, look)
	}
	if errors.Is(err, errStop) {
		err = nil
	}
	return found, found || passed, err
}

// Verify checks the whole log, with the files that it was moved to, and that it
// has the line which etcd knows.
func (l *Log) Verify(ctx context.Context, recorded auditlog.Head) (auditlog.Report, error) {
	if err := l.readable(); err != nil {
		return auditlog.Report{}, err
	}
	_ = l.Sync(ctx) // what cannot be written is not in the file, and not expected there
	var v auditlog.Verifier
	v.Expect(recorded, "etcd")
	v.Expect(l.Head(), "the replica")
	files, err := l.openFiles()
	if err != nil {
		return auditlog.Report{}, err
	}
	defer closeAll(files)
	for _, s := range files {
		left := s.info.Size()
		if s.plain() == nil {
			left = math.MaxInt64 // it is packed, and grows no more
		}
		if err := v.File(s.name, &whole{ctx: ctx, Reader: s, log: l, left: left}); err != nil {
			return auditlog.Report{}, err
		}
	}
	return v.End(), nil
}

// whole reads a file as far as it went when it was opened, to the end of a line:
// the last one may just be written.
type whole struct {
	io.Reader
	ctx  context.Context // a Reader's Read has none
	log  *Log
	left int64
	// within says that a line has begun and not ended.
	within bool
}

// lineWithin is how long the rest of a line may take.
const lineWithin = time.Second

// Read reads, and waits for the rest of a line.
func (w *whole) Read(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	if w.left <= 0 {
		return w.rest(p[:min(len(p), auditlog.MaxLine)])
	}
	n, err := w.Reader.Read(p[:min(int64(len(p)), w.left)])
	if w.left -= int64(n); n > 0 {
		w.within = p[n-1] != '\n'
	}
	if errors.Is(err, io.EOF) {
		w.left = 0 // it was cut meanwhile
	}
	return n, err
}

// rest reads the rest of the last line.
func (w *whole) rest(p []byte) (int, error) {
	if !w.within {
		return 0, io.EOF
	}
	grown := w.log.Grown()
	n, err := w.Reader.Read(p)
	if n == 0 && errors.Is(err, io.EOF) {
		timeout := time.NewTimer(lineWithin)
		defer timeout.Stop()
		select {
		case <-grown:
			n, err = w.Reader.Read(p)
		case <-timeout.C:
		case <-w.ctx.Done():
			return 0, w.ctx.Err()
		}
	}
	if end := bytes.IndexByte(p[:n], '\n'); end >= 0 {
		w.within = false
		return end + 1, nil
	}
	return n, err
}

// Query says which lines are wanted; empty fields do not narrow. Lines that
// cannot be read are always wanted.
type Query struct {
	Since, Until time.Time
	Events       []string
	Principal    string
	// Method is a full method name, or its end.
	Method                         string
	TraceID, Operation, Peer, Code string
	// Last is how many of the last are wanted; 0: all.
	Last int
	// Follow goes on with what is added.
	Follow bool
}

// slack is how far lines may be out of the order of their times: a call's line
// has the time of its begin.
const slack = time.Minute

// needles are what a line must have somewhere to be wanted.
func (q Query) needles() [][]byte {
	var list [][]byte
	for _, value := range []string{q.Principal, q.Method, q.TraceID, q.Operation, q.Peer, q.Code} {
		if value != "" && plain(value) {
			list = append(list, []byte(value))
		}
	}
	return list
}

// wants gives a function that tells whether a line is wanted, and its time.
func (q Query) wants() func(line []byte) (wanted bool, at time.Time) {
	needles, all := q.needles(), q.empty()
	return func(line []byte) (bool, time.Time) {
		for _, needle := range needles {
			if !bytes.Contains(line, needle) && bytes.HasPrefix(line, []byte(`{"seq":`)) && bytes.HasSuffix(line, []byte{'}'}) {
				return false, time.Time{}
			}
		}
		if all {
			return true, time.Time{}
		}
		l, err := auditlog.Parse(line)
		return err != nil || q.matches(l), l.Time
	}
}

func (q Query) empty() bool {
	return len(q.Events) == 0 && q.Principal == "" && q.Method == "" && q.TraceID == "" && q.Operation == "" && q.Peer == "" && q.Code == "" &&
		q.Since.IsZero() && q.Until.IsZero()
}

func (q Query) matches(l auditlog.Line) bool {
	is := func(want, got string) bool { return want == "" || want == got }
	return (q.Since.IsZero() || !l.Time.Before(q.Since)) && (q.Until.IsZero() || !l.Time.After(q.Until)) &&
		(len(q.Events) == 0 || slices.Contains(q.Events, l.Event)) &&
		is(q.Principal, l.Principal) && is(q.TraceID, l.TraceID) && is(q.Operation, l.Operation) && is(q.Peer, l.Peer) &&
		(q.Code == "" || strings.EqualFold(q.Code, l.Code)) &&
		(q.Method == "" || q.Method == l.Method || strings.HasSuffix(l.Method, "/"+strings.TrimPrefix(q.Method, "/")))
}
