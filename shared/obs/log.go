// Package obs is how the daemons are observed: logs now; metrics, traces and
// health with the issues that need them.
package obs

import (
	"fmt"
	"io"
	"os"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// LogConfig says how a daemon logs.
type LogConfig struct {
	// Name begins every line: the program's name.
	Name string
	// Level is trace, debug, info, warn or error; empty: info.
	Level string
	// File is appended to; empty: standard error.
	File string
}

// NewLogger makes a daemon's root logger. The returned closer closes its file,
// and leaves standard error open: the program's last words go there.
func NewLogger(cfg LogConfig) (hclog.Logger, io.Closer, error) {
	level := hclog.Info
	if cfg.Level != "" {
		level = hclog.LevelFromString(cfg.Level)
		if level == hclog.NoLevel {
			return nil, nil, errdefs.Field("log level", cfg.Level, "trace, debug, info, warn or error")
		}
	}
	var out io.WriteCloser = keptOpen{os.Stderr}
	if cfg.File != "" {
		f, err := os.OpenFile(cfg.File, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
		if err != nil {
			return nil, nil, fmt.Errorf("opening the log: %w", err)
		}
		out = f
	}
	logger := hclog.New(&hclog.LoggerOptions{Name: cfg.Name, Level: level, Output: out, TimeFormat: "2006-01-02T15:04:05.000Z07:00"})
	return logger, out, nil
}

// keptOpen is a file whose Close leaves it open.
type keptOpen struct{ *os.File }

func (keptOpen) Close() error { return nil }
