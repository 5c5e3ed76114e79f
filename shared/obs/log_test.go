package obs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hashicorp/go-hclog"
)

func TestStandardErrorStaysOpen(t *testing.T) {
	logs, err := OpenLogs(LogConfig{Name: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if err := logs.Close(); err != nil {
		t.Fatal(err)
	}
	// A program says why it ends after its log is closed.
	if _, err := os.Stderr.Stat(); err != nil {
		t.Errorf("standard error is gone: %v", err)
	}
}

func TestLogFileIsAppendedTo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	for range 2 {
		logs := open(t, LogConfig{Name: "x", Level: "warn", File: path})
		logs.Logger().Info("quiet")
		logs.Logger().Warn("loud")
		if err := logs.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if text := read(t, path); strings.Count(text, "loud") != 2 || strings.Contains(text, "quiet") {
		t.Errorf("the log holds %q", text)
	}
}

func TestUnknownLevelsAndFormatsAreRefused(t *testing.T) {
	for cfg, want := range map[LogConfig]string{
		{Level: "chatty"}: `log_level: "chatty" is not accepted; expected trace, debug, info, warn or error`,
		{Level: "off"}:    `log_level: "off" is not accepted; expected trace, debug, info, warn or error`,
		{Format: "xml"}:   `log_format: "xml" is not accepted; expected text or json`,
	} {
		if _, err := OpenLogs(cfg); err == nil || err.Error() != want {
			t.Errorf("%+v: %v", cfg, err)
		}
		logs := open(t, LogConfig{Name: "x"})
		if err := logs.Apply(cfg); err == nil || err.Error() != want {
			t.Errorf("%+v applied: %v", cfg, err)
		}
		if logs.Logger().GetLevel() != hclog.Info {
			t.Errorf("%+v: the level is %v", cfg, logs.Logger().GetLevel())
		}
	}
}

// TestAllChangesAtRunTime changes level, format and file under loggers that were
// made before, while others write.
func TestAllChangesAtRunTime(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first.log"), filepath.Join(dir, "second.log")
	logs := open(t, LogConfig{Name: "x", File: first})
	child := logs.Logger().Named("part").With("operation", "op-1")
	std := logs.Logger().Named("child").StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Warn})

	stop := make(chan struct{})
	var noise sync.WaitGroup
	for range 3 {
		noise.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
					logs.Logger().Info("noise", "n", n)
				}
			}
		})
	}
	child.Debug("unheard")
	child.Info("plain")
	std.Print("printed plainly")
	apply := func(cfg LogConfig) {
		t.Helper()
		if err := logs.Apply(cfg); err != nil {
			t.Fatal(err)
		}
	}
	apply(LogConfig{Level: "debug", File: first, Format: FormatJSON})
	if !child.IsDebug() || child.IsTrace() || child.GetLevel() != hclog.Debug || child.Name() != "x.part" {
		t.Error("a logger made before does not follow the level")
	}
	child.Debug("heard", "answer", 42)
	std.Print("printed as an object")
	apply(LogConfig{Level: "warn", File: second})
	child.Info("silenced")
	child.Warn("moved")
	close(stop)
	noise.Wait()

	before, after := read(t, first), read(t, second)
	for _, want := range []string{"[INFO]  x.part: plain: operation=op-1", "[WARN]  x.child: printed plainly"} {
		if !strings.Contains(before, want) {
			t.Errorf("the first file lacks %q", want)
		}
	}
	if strings.Contains(before+after, "unheard") || strings.Contains(after, "silenced") || !strings.Contains(after, "x.part: moved") {
		t.Errorf("the second file holds %q", after)
	}
	found := 0
	for line := range strings.Lines(before) {
		if !strings.HasPrefix(line, "{") {
			continue
		}
		var object map[string]any
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		switch object["@message"] {
		case "heard":
			if object["operation"] != "op-1" || object["answer"] != 42.0 || object["@level"] != "debug" || object["@module"] != "x.part" {
				t.Errorf("an object is %v", object)
			}
			found++
		case "printed as an object":
			found++
		}
	}
	if found != 2 {
		t.Errorf("%d of 2 objects are in the first file", found)
	}
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	logs := open(t, LogConfig{Name: "x", File: path})
	logs.Logger().Info("one")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	logs.Logger().Info("two")
	if err := logs.Reopen(); err != nil {
		t.Fatal(err)
	}
	logs.Logger().Info("three")
	if old := read(t, path+".1"); !strings.Contains(old, "one") || !strings.Contains(old, "two") || strings.Contains(old, "three") {
		t.Errorf("the rotated file holds %q", old)
	}
	if now := read(t, path); !strings.Contains(now, "three") {
		t.Errorf("the new file holds %q", now)
	}
	// What cannot be opened changes nothing.
	if err := logs.Apply(LogConfig{Name: "x", File: filepath.Join(path, "below")}); err == nil {
		t.Error("a log below a file was opened")
	}
	logs.Logger().Info("four")
	if now := read(t, path); !strings.Contains(now, "four") {
		t.Errorf("after a refused change the file holds %q", now)
	}
}

func TestLinesForTheJournal(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	info, err := w.Stat()
	if err != nil {
		t.Fatal(err)
	}
	sys := info.Sys().(*syscall.Stat_t)
	mine := fmt.Sprintf("%d:%d", sys.Dev, sys.Ino)
	if !toJournal(w, mine) || toJournal(w, mine+"1") || toJournal(w, "") {
		t.Error("the journal's stream is mistaken")
	}
	o := &output{stderr: w, journal: true}
	for _, level := range []hclog.Level{hclog.Error, hclog.Warn, hclog.Info, hclog.Debug, hclog.Trace} {
		if n, err := o.LevelWrite(level, []byte("x\n")); n != 2 || err != nil {
			t.Fatal(n, err)
		}
	}
	_ = w.Close()
	var got bytes.Buffer
	if _, err := got.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	if got.String() != "<3>x\n<4>x\n<6>x\n<7>x\n<7>x\n" {
		t.Errorf("the journal gets %q", got.String())
	}
}

func open(t *testing.T, cfg LogConfig) *Logs {
	t.Helper()
	logs, err := OpenLogs(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = logs.Close() })
	return logs
}

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
