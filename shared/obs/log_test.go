package obs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestStandardErrorStaysOpen(t *testing.T) {
	_, closer, err := NewLogger(LogConfig{Name: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if err := closer.Close(); err != nil {
		t.Fatal(err)
	}
	// A program says why it ends after its logger is closed.
	if _, err := os.Stderr.Stat(); err != nil {
		t.Errorf("standard error is gone: %v", err)
	}
}

func TestLogFileIsAppendedTo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	for range 2 {
		logger, closer, err := NewLogger(LogConfig{Name: "x", Level: "warn", File: path})
		if err != nil {
			t.Fatal(err)
		}
		logger.Info("quiet")
		logger.Warn("loud")
		if err := closer.Close(); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text := string(raw); strings.Count(text, "loud") != 2 || strings.Contains(text, "quiet") {
		t.Errorf("the log holds %q", text)
	}
}

func TestUnknownLevelIsRefused(t *testing.T) {
	if _, _, err := NewLogger(LogConfig{Level: "chatty"}); err == nil || !strings.Contains(err.Error(), "log level") {
		t.Errorf("got %v", err)
	}
}
