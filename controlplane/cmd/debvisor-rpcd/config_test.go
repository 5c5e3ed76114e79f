package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestConfigCheck tells each mistake with its place, those of files that the
// configuration names too, and is content with a good one.
func TestConfigCheck(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	if _, err := command(t, "init", "--data-dir", data, "--name", "r1"); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "rpcd.yaml")
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("data_dir: " + data + "\nlisten: 127.0.0.1:7443\n")
	if out, err := command(t, "config", "check", "--config", file); err != nil || !strings.Contains(out, "the configuration is good ("+file+")") {
		t.Errorf("a good one: %q, %v", out, err)
	}
	t.Setenv("RPC_CONFIG", file)
	if out, err := command(t, "config", "check"); err != nil || !strings.Contains(out, file) {
		t.Errorf("named by the environment: %q, %v", out, err)
	}
	t.Setenv("RPC_LOG_LEVEL", "chatty")
	write("data_dir: " + data + "\nlisten: nowhere\nleader_ttl: 1h\nrate_limit: many\n")
	out, err := command(t, "config", "check", "--metrics-listen=7447")
	if err == nil || err.Error() != "5 mistakes in the configuration" {
		t.Errorf("mistakes: %v", err)
	}
	for _, want := range []string{
		file + `:2: listen: "nowhere" is not accepted; expected host:port, such as 192.0.2.10:7443`,
		file + `:3: leader_ttl: "1h0m0s" is not accepted; expected whole seconds from 1s to 5s`,
		file + `:4: rate_limit: "many" is not accepted; expected a whole number`,
		`RPC_LOG_LEVEL in the environment: "chatty" is not accepted; expected trace, debug, info, warn or error`,
		`--metrics-listen: "7447" is not accepted; expected host:port, such as 127.0.0.1:7447`,
	} {
		if !strings.Contains(out, want+"\n") {
			t.Errorf("it does not say %s:\n%s", want, out)
		}
	}
	t.Setenv("RPC_LOG_LEVEL", "")
	write("data_dir: " + data + "\naccess_file: " + file + "\njwt_key: " + file + "\njwt_algorithms: [none]\n")
	out, err = command(t, "config", "check")
	if err == nil || !strings.Contains(out, file+`:1: the file has no field "data_dir"`) || !strings.Contains(out, file+`:4: jwt_algorithms: "none" is not accepted; expected RS256, ES256 or both`) {
		t.Errorf("of files: %v\n%s", err, out)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := command(t, "serve"); err == nil || !strings.Contains(err.Error(), file+": it cannot be read: no such file") {
		t.Errorf("a named file that is not there: %v", err)
	}
	if _, err := command(t, "serve", "--config="); err == nil || !strings.Contains(err.Error(), "--config") {
		t.Errorf("no name: %v", err)
	}
}

func TestConfigShow(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rpcd.yaml")
	if err := os.WriteFile(file, []byte("listen: 192.0.2.1:7443\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("RPC_AUDIT_LOG", "/var/log/elsewhere")
	out, err := command(t, "config", "show", "--config", file, "--log-file=-")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		rows[fields[0]] = strings.Join(fields[1:], " ")
	}
	for key, want := range map[string]string{
		"listen": "192.0.2.1:7443 " + file + ":1", "audit_log": "/var/log/elsewhere environment RPC_AUDIT_LOG",
		"log_file": "- flag --log-file", "rate_limit": "100 default", "access_file": `"" default`,
	} {
		if rows[key] != want {
			t.Errorf("%s is %q, want %q", key, rows[key], want)
		}
	}
	if _, err := command(t, "config", "show", "-o", "xml"); err == nil || !strings.Contains(err.Error(), "table, yaml or json") {
		t.Errorf("as XML: %v", err)
	}
	if out, err := command(t, "config", "default"); err != nil || !strings.Contains(out, "\n#listen: 127.0.0.1:7443\n") {
		t.Errorf("the default file: %v\n%s", err, out)
	}
}
