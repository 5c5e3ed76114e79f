package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestMistakesAreToldInOneLine(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"run", "--data-dir", dir}, "debvisor-agent enroll"},
		{[]string{"run", "--data-dir", dir, "--log-level", "loud"}, "log_level"},
		{[]string{"run", "more"}, "unknown command"},
		{[]string{"run", "--data-dir", dir, "--shared-dir", "srv"}, "shared-dir"},
		{[]string{"run", "--data-dir", dir, "--dirty-rate-every", "1s"}, "dirty-rate-every"},
		{[]string{"enroll", "--server", "127.0.0.1:1"}, "token"},
		{[]string{"enroll", "--token", "x"}, "server"},
		{[]string{"enroll", "--server", "127.0.0.1:1", "--token", "x", "--token-file", "y"}, "token"},
		{[]string{"enroll", "--server", "127.0.0.1:1", "--token-file", dir + "/missing"}, "reading the token"},
		{[]string{"enroll", "--server", "127.0.0.1:1", "--token", "dvj_x", "--data-dir", dir}, "token"},
	} {
		cmd := root()
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SetArgs(c.args)
		err := cmd.ExecuteContext(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") || out.Len() > 0 {
			t.Errorf("%v: error %v, output %q", c.args, err, out.String())
		}
	}
}
