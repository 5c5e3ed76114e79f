package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/debvisor/debvisor/shared/auditlog"
)

// What is added to the log's path for what is no part of it.
const (
	torn      = ".torn"
	unchained = ".unchained-"
)

// maxLook is how much of a file is read to find its last line, bytes.
const maxLook = 64 << 20

// Open opens the log and finds the end of its chain. A line that a crash has
// torn is cut off and kept beside the log (.torn); a file that is no chain is
// moved aside (.unchained). Paths that are no file, and files that another
// process writes, are refused.
func Open(cfg Config) (*Log, error) {
	m, err := openMedium(cfg.Path)
	if err != nil {
		return nil, err
	}
	found := end{reason: "begins a chain"}
	if r, ok := m.(*regular); ok {
		if r, found, err = resume(r, cfg); err != nil {
			return nil, err
		}
		m = r
	}
	l := newLog(cfg, newDisk(m, func(old medium) (medium, error) { return reopenMedium(cfg.Path, old) }), syslog(cfg.Syslog))
	l.opened, l.synced, l.written = found.head, found.head, found.head
	l.Add(&Event{Time: time.Now(), Kind: LogOpened, Principal: itself, Reason: found.reason})
	return l, nil
}

// end is where a chain goes on.
type end struct {
	head   auditlog.Head
	reason string
}

// resume finds the end of the chain in the file, or in the one before it.
func resume(r *regular, cfg Config) (*regular, end, error) {
	content, err := look(r.file)
	if err != nil {
		_ = r.Close() // nothing was written
		return nil, end{}, err
	}
	switch {
	case content.size == 0:
		found, err := before(cfg.Path)
		return r, found, err
	case !content.chained:
		return replace(r, cfg)
	}
	found := end{head: content.head, reason: "goes on after a restart"}
	if len(content.torn) > 0 {
		found.reason = fmt.Sprintf("goes on after a crash, of which %d bytes of a line were cut off", len(content.torn))
		if err := cutOff(r, content, cfg); err != nil {
			_ = r.Close()
			return nil, end{}, err
		}
	}
	if info, err := r.file.Stat(); err == nil && info.Mode().IsRegular() {
		if err := r.Sync(); err != nil {
			_ = r.Close()
			return nil, end{}, fmt.Errorf("the audit log %s cannot be written: %w", cfg.Path, err)
		}
	}
	return r, found, nil
}

// tailOf is what the end of a file has.
type tailOf struct {
	size    int64
	head    auditlog.Head
	chained bool
	torn    []byte
}

// look reads the end of a file.
func look(f *os.File) (tailOf, error) {
	info, err := f.Stat()
	if err != nil {
		return tailOf{}, fmt.Errorf("the audit log: %w", err)
	}
	found := tailOf{size: info.Size()}
	var b []byte
	for from := found.size; from > 0 && len(b) < maxLook; {
		// Two line feeds are the bounds of the last line; what is torn has none.
		step := min(from, 4*auditlog.MaxLine)
		block := make([]byte, step)
		if _, err := f.ReadAt(block, from-step); err != nil && !errors.Is(err, io.EOF) {
			return found, fmt.Errorf("reading the audit log: %w", err)
		}
		b, from = append(block, b...), from-step
		last := bytes.LastIndexByte(b, '\n')
		if last < 0 {
			continue
		}
		begin := bytes.LastIndexByte(b[:last], '\n')
		if begin < 0 && from > 0 {
			continue
		}
		line := b[begin+1 : last]
		found.torn = b[last+1:]
		if parsed, err := auditlog.Parse(line); err == nil {
			found.chained, found.head = true, auditlog.Head{Sequence: parsed.Seq, Hash: auditlog.HashOf(line)}
		}
		break
	}
	return found, nil
}

// maxShown is how much of what is torn a warning shows, bytes.
const maxShown = 1 << 10

// cutOff takes a torn line off the file, and keeps it beside.
func cutOff(r *regular, content tailOf, cfg Config) error {
	kept := cfg.Path + torn
	if err := keep(kept, content.torn); err != nil {
		kept = "nowhere: " + err.Error()
	}
	cfg.Log.Warn("a crash has torn the last line of the audit log: it was cut off", "path", cfg.Path, "bytes", len(content.torn),
		"kept_in", kept, "content", fmt.Sprintf("%.*q", maxShown, content.torn))
	r.synced = content.size - int64(len(content.torn))
	if err := r.file.Truncate(r.synced); err != nil {
		return fmt.Errorf("cutting a torn line off the audit log %s: %w", cfg.Path, err)
	}
	return nil
}

func keep(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(append(content, '\n'))
	return errors.Join(err, f.Close())
}

// replace moves a file aside that does not end as a chain does, such as one of
// before there were chains, and begins another.
func replace(r *regular, cfg Config) (*regular, end, error) {
	aside := fmt.Sprintf("%s%s%s", cfg.Path, unchained, time.Now().UTC().Format("20060102T150405.000000000"))
	if err := r.Close(); err != nil {
		return nil, end{}, fmt.Errorf("the audit log %s: %w", cfg.Path, err)
	}
	if err := os.Rename(cfg.Path, aside); err != nil {
		return nil, end{}, fmt.Errorf("the audit log does not end as a chain does, and cannot be moved aside: %w", err)
	}
	cfg.Log.Warn("the audit log did not end as a chain does: it was moved aside", "path", cfg.Path, "to", aside)
	m, err := openMedium(cfg.Path)
	if err != nil {
		return nil, end{}, err
	}
	anew, ok := m.(*regular)
	if !ok {
		return nil, end{}, fmt.Errorf("the audit log %s is another while it is opened", cfg.Path)
	}
	found, err := before(cfg.Path)
	found.reason += "; what was here before is no chain and is now " + aside
	return anew, found, err
}

// before finds where the chain goes on that the file at path does not have yet.
func before(path string) (end, error) {
	older, err := Files(path)
	if err != nil {
		return end{}, err
	}
	for i := len(older) - 1; i >= 0; i-- {
		if older[i] == path {
			continue
		}
		head, err := headOf(older[i])
		switch {
		case auditlog.Damaged(err):
			return end{head: head, reason: fmt.Sprintf("goes on from %s, of which not all can be read: %v", older[i], err)}, nil
		case err != nil:
			return end{}, err
		}
		return end{head: head, reason: "goes on from " + older[i]}, nil
	}
	return end{reason: "begins a chain"}, nil
}
