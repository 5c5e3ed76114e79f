package store

import (
	"fmt"
	"os"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// quietZap is a zap logger, which etcd wants, whose warnings and errors go to
// ours; the rest of what etcd has to say is dropped.
func quietZap(log hclog.Logger) *zap.Logger {
	return zap.New(&hclogCore{LevelEnabler: zapcore.WarnLevel, log: log})
}

// fileZap is a zap logger that appends to a file of its own.
func fileZap(path string) (*zap.Logger, *os.File, error) {
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, nil, fmt.Errorf("opening etcd's log: %w", err)
	}
	encoder := zap.NewProductionEncoderConfig()
	encoder.EncodeTime = zapcore.ISO8601TimeEncoder
	core := zapcore.NewCore(zapcore.NewJSONEncoder(encoder), zapcore.Lock(file), zapcore.InfoLevel)
	return zap.New(core), file, nil
}

// hclogCore writes zap's entries to an hclog logger.
type hclogCore struct {
	zapcore.LevelEnabler
	log hclog.Logger
}

// With adds fields to all later entries.
func (c *hclogCore) With(fields []zapcore.Field) zapcore.Core {
	return &hclogCore{LevelEnabler: c.LevelEnabler, log: c.log.With(pairs(fields)...)}
}

// Check adds the core to an entry that it is to write.
func (c *hclogCore) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return checked.AddCore(e, c)
	}
	return checked
}

// Write writes an entry.
func (c *hclogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := hclog.Warn
	if e.Level > zapcore.WarnLevel {
		level = hclog.Error
	}
	c.log.Log(level, e.Message, pairs(fields)...)
	return nil
}

// Sync has nothing to flush.
func (c *hclogCore) Sync() error { return nil }

// pairs are zap's fields as hclog takes them: key, value, key, value.
func pairs(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	args := make([]any, 0, 2*len(fields))
	for _, f := range fields {
		f.AddTo(enc)
		args = append(args, f.Key, enc.Fields[f.Key])
	}
	return args
}
