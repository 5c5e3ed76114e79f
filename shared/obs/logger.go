package obs

import (
	"io"
	"log"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
)

// The variants of a logger, by what its lines look like.
const (
	asText = iota
	asJSON
	// asJournal is text without the time.
	asJournal
	variants
)

// format says which variant writes.
type format = atomic.Int32

// logger is an hclog logger whose format can change while it is in use: hclog
// decides on it when a logger is made, so one of each format is kept, and with
// it all that are made of it. They share their level.
type logger struct {
	variants [variants]hclog.Logger
	format   *format
}

func (l *logger) now() hclog.Logger { return l.variants[l.format.Load()] }

// derive makes the same of each variant.
func (l *logger) derive(of func(hclog.Logger) hclog.Logger) hclog.Logger {
	d := &logger{format: l.format}
	for i, v := range l.variants {
		d.variants[i] = of(v)
	}
	return d
}

// Log and those below write a line, where its level is logged.
func (l *logger) Log(level hclog.Level, msg string, args ...any) { l.now().Log(level, msg, args...) }
func (l *logger) Trace(msg string, args ...any)                  { l.now().Trace(msg, args...) }
func (l *logger) Debug(msg string, args ...any)                  { l.now().Debug(msg, args...) }
func (l *logger) Info(msg string, args ...any)                   { l.now().Info(msg, args...) }
func (l *logger) Warn(msg string, args ...any)                   { l.now().Warn(msg, args...) }
func (l *logger) Error(msg string, args ...any)                  { l.now().Error(msg, args...) }

// IsTrace and those below tell what is logged.
func (l *logger) IsTrace() bool { return l.now().IsTrace() }
func (l *logger) IsDebug() bool { return l.now().IsDebug() }
func (l *logger) IsInfo() bool  { return l.now().IsInfo() }
func (l *logger) IsWarn() bool  { return l.now().IsWarn() }
func (l *logger) IsError() bool { return l.now().IsError() }

// ImpliedArgs are those of With.
func (l *logger) ImpliedArgs() []any { return l.now().ImpliedArgs() }

// Name is the logger's.
func (l *logger) Name() string { return l.now().Name() }

// With makes a logger whose lines all have these arguments.
func (l *logger) With(args ...any) hclog.Logger {
	return l.derive(func(v hclog.Logger) hclog.Logger { return v.With(args...) })
}

// Named makes a logger with a longer name.
func (l *logger) Named(name string) hclog.Logger {
	return l.derive(func(v hclog.Logger) hclog.Logger { return v.Named(name) })
}

// ResetNamed makes a logger with another name.
func (l *logger) ResetNamed(name string) hclog.Logger {
	return l.derive(func(v hclog.Logger) hclog.Logger { return v.ResetNamed(name) })
}

// SetLevel changes what is logged, by all loggers of the same root.
func (l *logger) SetLevel(level hclog.Level) {
	for _, v := range l.variants {
		v.SetLevel(level)
	}
}

// GetLevel is from where on lines are logged.
func (l *logger) GetLevel() hclog.Level { return l.now().GetLevel() }

// StandardLogger is for what knows the standard library's loggers only.
func (l *logger) StandardLogger(opts *hclog.StandardLoggerOptions) *log.Logger {
	return log.New(l.StandardWriter(opts), "", 0)
}

// StandardWriter takes what others print; each write is a line.
func (l *logger) StandardWriter(opts *hclog.StandardLoggerOptions) io.Writer {
	return printed{l, opts}
}

type printed struct {
	log  *logger
	opts *hclog.StandardLoggerOptions
}

func (p printed) Write(b []byte) (int, error) { return p.log.now().StandardWriter(p.opts).Write(b) }
