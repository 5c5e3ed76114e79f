package audit

import (
	"context"
	"errors"
	"io"
	"os"
	"sort"
	"time"

	"github.com/debvisor/debvisor/shared/auditlog"
)

// Search calls send with the lines that are wanted, oldest first, also those of
// files that the log was moved to. It ends with ctx, or where a query does not
// follow, with the log.
func (l *Log) Search(ctx context.Context, q Query, send func(line []byte) error) error {
	if err := l.readable(); err != nil {
		return err
	}
	_ = l.Sync(ctx) // what cannot be written cannot be found
	grown := l.Grown()
	files, err := l.openFiles()
	if err != nil {
		return err
	}
	defer func() { closeAll(files) }()
	s := &search{Query: q, log: l, wants: q.wants(), send: send}
	from, err := s.start(ctx, files)
	if err != nil {
		return err
	}
	for ; from.file < len(files); from = (position{file: from.file + 1}) {
		source := files[from.file]
		if err := from.seek(source); err != nil {
			return err
		}
		s.skip = from.skip
		n, err := forward(ctx, source.upTo(from.offset), s.line)
		if s.read = from.offset + n; err != nil {
			return ended(err)
		}
	}
	if !q.Follow {
		return nil
	}
	var last *source
	if len(files) > 0 {
		last, files = files[len(files)-1], files[:len(files)-1]
	}
	return ended(s.follow(ctx, last, grown))
}

// ended makes an early end an ordinary one.
func ended(err error) error {
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// search is one Search at work.
type search struct {
	Query
	log   *Log
	wants func(line []byte) (bool, time.Time)
	send  func(line []byte) error
	// skip is how many lines that are wanted are passed over.
	skip int
	// read is how far the file at hand was read.
	read int64
	// beyond is how many lines in a row were out of the time that is wanted: one
	// alone may be of a clock that was wrong.
	beyond int
}

// enough is how many lines in a row end a search.
const enough = 1000

// past counts lines that are out of the time that is wanted, and tells when
// there is nothing more to be found.
func (s *search) past(is bool) bool {
	if !is {
		s.beyond = 0
		return false
	}
	s.beyond++
	return s.beyond >= enough
}

// line sends a line if it is wanted.
func (s *search) line(line []byte) error {
	wanted, at := s.wants(line)
	switch {
	case s.past(!s.Until.IsZero() && at.After(s.Until.Add(slack))):
		return errStop
	case !wanted:
		return nil
	case s.skip > 0:
		s.skip--
		return nil
	}
	return s.send(line)
}

// position is where sending begins.
type position struct {
	file   int
	offset int64
	skip   int
}

func (p position) seek(s *source) error {
	if f := s.plain(); f != nil {
		_, err := f.Seek(p.offset, io.SeekStart)
		return err
	}
	// It may have been read to its end.
	again, err := auditlog.Open(s.name)
	if err != nil {
		return err
	}
	_ = s.Close()
	s.ReadCloser = again
	return nil
}

// upTo gives the rest of a file behind an offset, as it was when it was opened:
// it may grow faster than it is read.
func (s *source) upTo(offset int64) io.Reader {
	if s.plain() == nil {
		return s
	}
	return io.LimitReader(s, s.info.Size()-offset)
}

// start finds where to begin: at the last so many lines, or where Since is.
func (s *search) start(ctx context.Context, files []*source) (position, error) {
	if s.Last == 0 {
		return s.since(ctx, files)
	}
	missing := s.Last
	defer func() { s.beyond = 0 }()
	for i := len(files) - 1; i >= 0; i-- {
		begin := position{file: i}
		count := func(line []byte) error {
			wanted, at := s.wants(line)
			if wanted {
				missing--
			}
			if s.past(!s.Since.IsZero() && !at.IsZero() && at.Before(s.Since.Add(-slack))) || missing == 0 {
				return errStop
			}
			return nil
		}
		f := files[i].plain()
		if f == nil {
			total := 0
			if _, err := forward(ctx, files[i], func(line []byte) error {
				if wanted, _ := s.wants(line); wanted {
					total++
				}
				return nil
			}); err != nil {
				return position{}, err
			}
			if begin.skip = max(0, total-missing); begin.skip > 0 || total == missing {
				return begin, nil
			}
			missing -= total
			continue
		}
		err := backward(ctx, f, files[i].info.Size(), func(line []byte, at int64) error {
			begin.offset = at
			return count(line)
		})
		switch {
		case errors.Is(err, errStop):
			return begin, nil
		case err != nil:
			return position{}, err
		}
	}
	return position{}, nil
}

// since finds the first line that may be wanted, by halves.
func (s *search) since(ctx context.Context, files []*source) (position, error) {
	if s.Since.IsZero() {
		return position{}, nil
	}
	from := s.Since.Add(-slack)
	begin := position{}
	for i, source := range files {
		first, err := firstOf(source.name)
		if err == nil && first.Time.After(from) {
			break // what is wanted begins in the file before, if not here
		}
		begin.file = i
	}
	if len(files) == 0 {
		return begin, nil
	}
	f := files[begin.file].plain()
	if f == nil {
		return begin, nil
	}
	const step = 64 << 10
	blocks := int(files[begin.file].info.Size() / step)
	n := sort.Search(blocks, func(i int) bool {
		at, ok := timeAt(ctx, f, int64(i)*step)
		return ok && at.After(from)
	})
	if n > 0 {
		begin.offset = lineAt(ctx, f, int64(n-1)*step)
	}
	return begin, nil
}

// lineAt gives where the first line begins that begins at an offset or behind it.
func lineAt(ctx context.Context, f *os.File, offset int64) int64 {
	if offset == 0 {
		return 0
	}
	n, _ := forward(ctx, io.NewSectionReader(f, offset-1, 1<<20), func([]byte) error { return errStop })
	return offset - 1 + n
}

// timeAt gives the time of the first line behind an offset that has one.
func timeAt(ctx context.Context, f *os.File, offset int64) (at time.Time, ok bool) {
	_, _ = forward(ctx, io.NewSectionReader(f, lineAt(ctx, f, offset), 1<<20), func(line []byte) error {
		l, err := auditlog.Parse(line)
		if err != nil {
			return nil //nolint:nilerr // the next one may have it
		}
		at, ok = l.Time, true
		return errStop
	})
	return at, ok
}

// follow sends what is added to the file at hand, and then to those that take
// its place, until ctx ends. Grown is of before the file was read.
func (s *search) follow(ctx context.Context, at *source, grown <-chan struct{}) error {
	defer func() {
		if at != nil {
			_ = at.Close() // it was only read
		}
	}()
	for {
		select {
		case <-grown:
		case <-ctx.Done():
			return ctx.Err()
		}
		grown = s.log.Grown()
		for {
			if err := s.more(ctx, at); err != nil {
				return err
			}
			next := s.next(at)
			if next == nil {
				break
			}
			if err := s.more(ctx, at); err != nil { // its last lines, of just before
				_ = next.Close()
				return err
			}
			if at != nil {
				_ = at.Close()
			}
			at, s.read = next, 0
		}
	}
}

// more sends what the file has behind what was read.
func (s *search) more(ctx context.Context, at *source) error {
	if at == nil || at.plain() == nil {
		return nil
	}
	f := at.plain()
	if info, err := f.Stat(); err == nil && info.Size() < s.read {
		s.read = 0 // it was copied and emptied
	}
	n, err := forward(ctx, io.NewSectionReader(f, s.read, 1<<62), s.line)
	s.read += n
	return err
}

// next opens the file that took the place of the one at hand: the log is
// written there only once all of the old one was.
func (s *search) next(at *source) *source {
	info, err := os.Stat(s.log.path)
	if err != nil || info.Size() == 0 || at != nil && os.SameFile(info, at.info) {
		return nil
	}
	next, err := openSource(s.log.path)
	if err != nil {
		return nil
	}
	return next
}
