package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// settings are all kinds of values.
type settings struct {
	listen, level, token string
	rate                 int
	sample               float64
	trust                bool
	ttl                  time.Duration
	names, dirs          []string
}

func table(s *settings) *Table {
	t := New("daemon", "DAEMON_")
	t.Section("Listeners")
	t.String(&s.listen, "listen", "127.0.0.1:1", "where it listens, host:port")
	t.Strings(&s.names, "names", "names of it")
	t.Section("The rest")
	t.Int(&s.rate, "rate-limit", 100, "calls a minute; 0: no limit").Live()
	t.Float(&s.sample, "sample", 0.5, "the part that counts")
	t.Bool(&s.trust, "trust", false, "believe anything")
	t.Duration(&s.ttl, "leader-ttl", 3*time.Second, "how long it leads")
	t.Strings(&s.dirs, "shared-dir", "PATH[=ID], may be given several times").Whole()
	t.String(&s.level, "log-level", "info", "trace, debug or info").Live()
	t.String(&s.token, "token", "", "a secret").Secret()
	return t
}

func defaults() settings {
	return settings{listen: "127.0.0.1:1", level: "info", rate: 100, sample: 0.5, ttl: 3 * time.Second}
}

// source is a file's content, an environment and a command line.
func source(t *testing.T, file string, env map[string]string, args ...string) Source {
	t.Helper()
	path := filepath.Join(t.TempDir(), "d.yaml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := table(&settings{})
	set := pflag.NewFlagSet("daemon", pflag.ContinueOnError)
	flags.AddFlags(set)
	if err := set.Parse(args); err != nil {
		t.Fatal(err)
	}
	return Source{File: path, Flags: flags.Given(), Env: func(name string) (string, bool) {
		v, ok := env[name]
		return v, ok
	}}
}

func equal(a, b settings) bool {
	return a.listen == b.listen && a.level == b.level && a.token == b.token && a.rate == b.rate && a.sample == b.sample && a.trust == b.trust &&
		a.ttl == b.ttl && slices.Equal(a.names, b.names) && slices.Equal(a.dirs, b.dirs)
}

func TestPrecedence(t *testing.T) {
	const file = "listen: 10.0.0.1:1 # ours\nnames: [a, 'b']\nrate_limit: 5\nshared_dir: /srv\nleader_ttl: 36h\ntrust: true\nsample: 1\n"
	for name, c := range map[string]struct {
		file string
		env  map[string]string
		args []string
		want func(*settings)
	}{
		"nothing":      {want: func(*settings) {}},
		"only comment": {file: "# nothing\n---\n# at all\n", want: func(*settings) {}},
		"the file": {file: file, want: func(s *settings) {
			s.listen, s.names, s.rate, s.dirs, s.ttl, s.trust, s.sample = "10.0.0.1:1", []string{"a", "b"}, 5, []string{"/srv"}, 36*time.Hour, true, 1
		}},
		"the environment": {file: file, env: map[string]string{
			"DAEMON_LISTEN": "10.0.0.2:1", "DAEMON_NAMES": "c,d", "DAEMON_RATE_LIMIT": "6", "DAEMON_LEADER_TTL": "30d",
			"DAEMON_TRUST": "false", "DAEMON_SHARED_DIR": "/a,/b", "DAEMON_SAMPLE": "",
		}, want: func(s *settings) {
			s.listen, s.names, s.rate, s.dirs, s.ttl, s.sample = "10.0.0.2:1", []string{"c", "d"}, 6, []string{"/a", "/b"}, 30*24*time.Hour, 1
		}},
		"the flags": {
			file: file, env: map[string]string{"DAEMON_LISTEN": "10.0.0.2:1", "DAEMON_NAMES": "c,d", "DAEMON_TRUST": "false"},
			args: []string{"--listen", "10.0.0.3:1", "--names=e", "--names=f,g", "--rate-limit=7", "--trust", "--shared-dir", "/a,b", "--leader-ttl", "1s", "--log-level="},
			want: func(s *settings) {
				s.listen, s.names, s.rate, s.trust, s.dirs, s.ttl, s.sample = "10.0.0.3:1", []string{"e", "f", "g"}, 7, true, []string{"/a,b"}, time.Second, 1
				s.level = ""
			},
		},
	} {
		var got settings
		want := defaults()
		c.want(&want)
		if err := table(&got).Load(source(t, c.file, c.env, c.args...)); err != nil || !equal(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, want)
		}
	}
}

// TestAllMistakesAtOnce checks each line that tells of a mistake, and that one
// does not hide another.
func TestAllMistakesAtOnce(t *testing.T) {
	const file = `listn: x
rate_limit: many
trust: "yes"
leader-ttl: 1s
leader_ttl: 5
listen: [a, b]
names: {a: b}
shared_dir: [/a, [/b], /c]
token: [hunter2]
sample: 1
sample: 2
nothing_like_it: 1
log_level:
`
	src := source(t, file, map[string]string{"DAEMON_RATE_LIMIT": "1e3"}, "--leader-ttl", "soon")
	err := table(&settings{}).Load(src)
	var got []string
	for _, e := range Each(err) {
		got = append(got, strings.TrimPrefix(e.Error(), src.File))
	}
	want := []string{
		`:1: there is no key "listn"; did you mean listen?`,
		`:2: rate_limit: "many" is not accepted; expected a whole number`,
		`:3: trust: "yes" is not accepted; expected true or false`,
		`:4: there is no key "leader-ttl"; did you mean leader_ttl?`,
		`:5: leader_ttl: "5" is not accepted; expected a duration such as 90s, 5m, 36h or 30d`,
		`:6: listen: a list is not accepted; expected a text; "" for none`,
		`:7: names: a mapping is not accepted; expected a list such as [a, b], or one text`,
		`:8: shared_dir: an item is a list; expected a text`,
		`:9: token: a list is not accepted; expected a text; "" for none`,
		`:11: "sample" is there twice, first in line 10`,
		`:12: there is no key "nothing_like_it"; daemon config show lists all keys`,
		`:13: log_level: nothing is not accepted; expected a text; "" for none`,
		`DAEMON_RATE_LIMIT in the environment: "1e3" is not accepted; expected a whole number`,
		`--leader-ttl: "soon" is not accepted; expected a duration such as 90s, 5m, 36h or 30d`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestFilesThatAreNoConfiguration(t *testing.T) {
	for content, want := range map[string]string{
		"- a\n":                 ":1: the file is a list; expected keys with their values",
		"listen: a\n  rate: 1":  ":2: it is no YAML: mapping values are not allowed in this context",
		"listen: \x00":          ":1: it holds the control character 0x0",
		"listen: a\n---\nb: c":  ":2: a second document begins; expected one only",
		"listen: &x a\nrate: *": ":2: it is no YAML: did not find expected alphabetic or numeric character",
		"<<: {listen: a}\n":     `:1: a key is "<<"; expected a name`,
	} {
		src := source(t, content, nil)
		if err := table(&settings{}).Load(src); err == nil || err.Error() != src.File+want {
			t.Errorf("%q: %v", content, err)
		}
	}
	dir := t.TempDir()
	missing := filepath.Join(dir, "none.yaml")
	if err := table(&settings{}).Load(Source{File: missing, Optional: true}); err != nil {
		t.Errorf("a file that need not be there: %v", err)
	}
	for path, want := range map[string]string{missing: "no such file", dir: "not a regular file"} {
		if err := table(&settings{}).Load(Source{File: path}); err == nil || !strings.HasPrefix(err.Error(), path+": ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	src := source(t, "listen: a\n", nil)
	if err := os.Chmod(src.File, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := table(&settings{}).Load(src); err == nil || !strings.Contains(err.Error(), "chmod o-w") {
		t.Errorf("a file that anyone can write to: %v", err)
	}
	if err := os.WriteFile(src.File, make([]byte, maxBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(src.File, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := table(&settings{}).Load(src); err == nil || !strings.Contains(err.Error(), "more than 1048576 bytes") {
		t.Errorf("an endless file: %v", err)
	}
}

// TestLocate tells of mistakes that only the daemon can find where they stand.
func TestLocate(t *testing.T) {
	src := source(t, "\nlisten: nowhere\n", map[string]string{"DAEMON_LOG_LEVEL": "loud"}, "--rate-limit=-1")
	tab := table(&settings{})
	if err := tab.Load(src); err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]string{
		"--listen":     src.File + `:2: listen: "x" is not accepted; expected y`,
		"log_level":    `DAEMON_LOG_LEVEL in the environment: "x" is not accepted; expected y`,
		"--rate-limit": `--rate-limit: "x" is not accepted; expected y`,
		"--trust":      `--trust: "x" is not accepted; expected y`,
		"other":        `other: "x" is not accepted; expected y`,
	} {
		if err := tab.Locate(errdefs.Field(field, "x", "y")); err == nil || err.Error() != want {
			t.Errorf("%s: %v", field, err)
		}
	}
	if err := tab.Locate(nil); err != nil {
		t.Errorf("of nothing: %v", err)
	}
}

func TestShow(t *testing.T) {
	src := source(t, "listen: https://me:secret@example.org\ntoken: hunter2\nnames: ['a#b', 'true', 'c, d']\n", map[string]string{"DAEMON_LOG_LEVEL": "debug"}, "--rate-limit=9")
	var s settings
	tab := table(&s)
	if err := tab.Load(src); err != nil {
		t.Fatal(err)
	}
	var text, yaml, object strings.Builder
	for format, w := range map[string]*strings.Builder{"table": &text, "yaml": &yaml, "json": &object} {
		if err := tab.Show(w, format); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(w.String(), "secret@") || strings.Contains(w.String(), "hunter2") {
			t.Errorf("%s shows a secret: %s", format, w)
		}
	}
	if err := tab.Show(&text, "xml"); !errdefs.Is(err, errdefs.InvalidArgument) {
		t.Errorf("as XML: %v", err)
	}
	for _, want := range []string{"log_level   debug", "environment DAEMON_LOG_LEVEL", src.File + ":2", "flag --rate-limit", "(hidden)", "leader_ttl  3s", "default"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, text.String())
		}
	}
	var rows []struct {
		Key   string
		Value any
		From  string
	}
	if err := json.Unmarshal([]byte(object.String()), &rows); err != nil || len(rows) != len(tab.Keys()) || rows[0].Key != "listen" {
		t.Errorf("as JSON: %v, %v", rows, err)
	}
	// The YAML is a file that says the same, but for what is hidden.
	again := source(t, yaml.String(), nil)
	var same settings
	if err := table(&same).Load(again); err != nil {
		t.Fatal(err)
	}
	same.listen, same.token = s.listen, s.token
	if !equal(same, s) {
		t.Errorf("the YAML says %+v of %+v:\n%s", same, s, yaml.String())
	}
}

// TestDefaultFile: commented out or not, it says the defaults, and every key is
// there once.
func TestDefaultFile(t *testing.T) {
	var b strings.Builder
	if err := table(&settings{}).WriteDefault(&b, "/etc/d.yaml"); err != nil {
		t.Fatal(err)
	}
	bare, keys := Uncomment(b.String())
	for _, content := range []string{b.String(), bare} {
		var got settings
		if err := table(&got).Load(source(t, content, nil)); err != nil || !equal(got, defaults()) {
			t.Errorf("%+v, %v from\n%s", got, err, content)
		}
	}
	for i, k := range table(&settings{}).Keys() {
		if keys[i] != k.Name {
			t.Errorf("key %d is %s, not %s", i, keys[i], k.Name)
		}
	}
	for line := range strings.Lines(b.String()) {
		if len(line) > lineWidth+1 {
			t.Errorf("a long line: %s", line)
		}
	}
}

func TestChanges(t *testing.T) {
	var running, next settings
	was, is := table(&running), table(&next)
	if err := was.Load(source(t, "listen: a:1\n", nil)); err != nil {
		t.Fatal(err)
	}
	src := source(t, "listen: b:1\nrate_limit: 7\ntoken: hunter2\nnames: [x, y]\n", nil, "--leader-ttl=3s")
	if err := is.Load(src); err != nil {
		t.Fatal(err)
	}
	want := []Change{
		{Key: "listen", Old: "a:1", New: "b:1"},
		{Key: "names", New: "x,y"},
		{Key: "rate_limit", Old: "100", New: "7", Live: true},
		{Key: "token", New: "(hidden)"},
	}
	if got := was.Changes(is); !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	was.Adopt(is)
	if running.rate != 7 || running.listen != "a:1" {
		t.Errorf("adopted: %+v", running)
	}
	if got := was.Changes(is); !slices.Equal(got, slices.Delete(want, 2, 3)) {
		t.Errorf("after adopting: %+v", got)
	}
}

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0s": 0, "1.5s": 1500 * time.Millisecond, "5m": 5 * time.Minute, "36h": 36 * time.Hour, "30d": 720 * time.Hour, "1h30m": 90 * time.Minute, "1h0m5s": time.Hour + 5*time.Second,
	} {
		if got, err := parseDuration(text); err != nil || got != want || durationText(got) != text {
			t.Errorf("%s: %v, %v, %s", text, got, err, durationText(got))
		}
	}
	for _, text := range []string{"", "5", "d", "1.5d", "1h1d", "99999999d"} {
		if got, err := parseDuration(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}
