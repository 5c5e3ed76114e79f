// Package obs is how the daemons are observed: logs now; metrics, traces and
// health with the issues that need them.
package obs

import (
	"io"
	"os"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// The formats of a log.
const (
	FormatText = "text"
	FormatJSON = "json"
)

// LogConfig says how a daemon logs.
type LogConfig struct {
	// Name begins every line: the program's name.
	Name string
	// Level is trace, debug, info, warn or error; empty: info.
	Level string
	// File is appended to; empty: standard error. What goes to systemd's journal
	// there bears its priorities, and in text no time, which the journal has.
	File string
	// Format is text or json, one object a line; empty: text.
	Format string
}

// Check refuses a level or a format that there is not, naming the key.
func (c LogConfig) Check() error {
	if _, err := c.level(); err != nil {
		return err
	}
	switch c.Format {
	case "", FormatText, FormatJSON:
		return nil
	}
	return errdefs.Field("log_format", c.Format, "text or json")
}

func (c LogConfig) level() (hclog.Level, error) {
	if c.Level == "" {
		return hclog.Info, nil
	}
	level := hclog.LevelFromString(c.Level)
	if level < hclog.Trace || level > hclog.Error {
		return hclog.NoLevel, errdefs.Field("log_level", c.Level, "trace, debug, info, warn or error")
	}
	return level, nil
}

// Logs are a daemon's: one root logger whose level, format and file can change
// while the daemon runs, for all loggers that were made of it as well.
type Logs struct {
	root *logger
	out  *output

	mu  sync.Mutex // one change at a time
	cfg LogConfig
}

// OpenLogs opens a daemon's log. The error is one line that names the key.
func OpenLogs(cfg LogConfig) (*Logs, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	level, err := cfg.level()
	if err != nil {
		return nil, err
	}
	out, err := openOutput(cfg.File, os.Stderr)
	if err != nil {
		return nil, err
	}
	options := func(json, plain bool) *hclog.LoggerOptions {
		return &hclog.LoggerOptions{
			Name: cfg.Name, Level: level, Output: out, JSONFormat: json, DisableTime: plain,
			TimeFormat: "2006-01-02T15:04:05.000Z07:00",
		}
	}
	l := &Logs{cfg: cfg, out: out}
	l.root = &logger{format: &format{}}
	l.root.variants = [...]hclog.Logger{
		asText:    hclog.New(options(false, false)),
		asJSON:    hclog.New(options(true, false)),
		asJournal: hclog.New(options(false, true)),
	}
	l.root.format.Store(l.variant(cfg))
	return l, nil
}

// Logger is the root of all loggers.
func (l *Logs) Logger() hclog.Logger { return l.root }

// Apply changes level, format and file to what is said now; the name stays. An
// error changes nothing.
func (l *Logs) Apply(cfg LogConfig) error {
	if err := cfg.Check(); err != nil {
		return err
	}
	level, err := cfg.level()
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if cfg.File != l.cfg.File {
		if err := l.out.use(cfg.File); err != nil {
			return err
		}
	}
	cfg.Name = l.cfg.Name
	l.cfg = cfg
	l.root.SetLevel(level)
	l.root.format.Store(l.variant(cfg))
	return nil
}

// Reopen goes on in the file that is at the log's path now, for whoever moves
// the old one away. An error leaves the old one in use.
func (l *Logs) Reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cfg.File == "" {
		return nil
	}
	return l.out.use(l.cfg.File)
}

// Close closes the log's file, and leaves standard error open: the program's
// last words go there.
func (l *Logs) Close() error { return l.out.Close() }

func (l *Logs) variant(cfg LogConfig) int32 {
	switch {
	case cfg.Format == FormatJSON:
		return asJSON
	case cfg.File == "" && l.out.journal:
		return asJournal
	}
	return asText
}

// NewLogger is OpenLogs for who changes nothing later.
func NewLogger(cfg LogConfig) (hclog.Logger, io.Closer, error) {
	logs, err := OpenLogs(cfg)
	if err != nil {
		return nil, nil, err
	}
	return logs.Logger(), logs, nil
}
