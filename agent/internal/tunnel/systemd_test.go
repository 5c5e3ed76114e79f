package tunnel

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// serviceMark names a directory to a process of this test's binary that is the
// main process of a systemd service.
const serviceMark = "DEBVISOR_TEST_SERVICE"

// standing is what the service says of itself and its tunnel.
type standing struct {
	Pid, Tunnel int
	Address     string
	Group       string // the tunnel's control group
}

// serveUnderSystemd is the service: it opens its tunnel, or finds it, as the
// agent does.
func serveUnderSystemd(dir string) error {
	var cfg Config
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err == nil {
		err = json.Unmarshal(data, &cfg)
	}
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	tun, err := (&Tunnels{Root: filepath.Join(dir, "tunnels"), Command: []string{os.Args[0]}, Log: hclog.Default()}).Open(ctx, cfg)
	if err != nil {
		return err
	}
	group, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", tun.pid()))
	if err != nil {
		return err
	}
	said, err := json.Marshal(standing{os.Getpid(), tun.pid(), tun.Address(), string(bytes.TrimSpace(group))})
	if err == nil {
		err = writeFile(filepath.Join(dir, "standing"), string(said))
	}
	if err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// manager is a systemd of the test's own, process 1 of a PID namespace.
type manager struct {
	t   *testing.T
	dir string
	pid int
}

// newManager starts one with the agent's unit, whose program is this test's.
func newManager(t *testing.T) *manager {
	t.Helper()
	if _, err := os.Stat("/lib/systemd/systemd"); err != nil || os.Getuid() != 0 {
		t.Skip("needs root and systemd")
	}
	m := &manager{t: t, dir: t.TempDir()}
	unit, err := os.ReadFile("../../../systemd/debvisor-agent.service")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"debvisor-agent.service": string(unit),
		"debvisor-agent.service.d/test.conf": "[Unit]\nConditionPathExists=\n" +
			// The test's program is no agent: it tells systemd nothing.
			"[Service]\nType=exec\nWatchdogSec=0\nExecStart=\nExecStart=" + os.Args[0] +
			"\nEnvironment=" + childMark + "=1 " + serviceMark + "=" + m.dir + "\n",
	}
	for _, name := range []string{"test", "sysinit", "basic", "shutdown", "network-online", "multi-user"} {
		files[name+".target"] = "[Unit]\nDefaultDependencies=no\n"
	}
	for name, content := range files {
		path := filepath.Join(m.dir, "units", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	script, err := filepath.Abs("testdata/systemd.sh")
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.Command("unshare", "--mount", script, m.dir)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if m.pid != 0 {
			_ = syscall.Kill(m.pid, syscall.SIGKILL) // all that is in it goes with it
		} else {
			_ = cmd.Process.Kill()
		}
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("systemd: %s", said.String())
		}
	})
	eventually(t, "systemd runs", func() bool {
		m.pid = descendant(cmd.Process.Pid, "systemd")
		return m.pid != 0 && m.run("is-active", "test.target") == nil
	})
	return m
}

// descendant is the process of that name among a process's only children's.
func descendant(pid int, name string) int {
	for {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			return 0
		}
		if pid, err = strconv.Atoi(strings.TrimSpace(string(children))); err != nil {
			return 0
		}
		if readFile(fmt.Sprintf("/proc/%d/comm", pid)) == name {
			return pid
		}
	}
}

// enter runs a program inside.
func (m *manager) enter(args ...string) ([]byte, error) {
	args = append([]string{"--target", strconv.Itoa(m.pid), "--pid", "--mount", "--cgroup"}, args...)
	ctx, cancel := context.WithTimeout(m.t.Context(), 20*time.Second)
	defer cancel()
	return exec.CommandContext(ctx, "nsenter", args...).CombinedOutput()
}

func (m *manager) run(args ...string) error {
	out, err := m.enter(append([]string{"systemctl"}, args...)...)
	if err != nil {
		return fmt.Errorf("systemctl %v: %w: %s", args, err, out)
	}
	return nil
}

func (m *manager) must(args ...string) {
	m.t.Helper()
	if err := m.run(args...); err != nil {
		m.t.Fatal(err)
	}
}

// stands waits until the service has begun anew and found its tunnel.
func (m *manager) stands(former int) (s standing) {
	m.t.Helper()
	eventually(m.t, "the service runs and has its tunnel", func() bool {
		return json.Unmarshal([]byte(readFile(filepath.Join(m.dir, "standing"))), &s) == nil && s.Pid != former
	})
	return s
}

// TestOutlivesTheServiceUnderSystemd restarts, kills and stops the agent's unit
// under a real systemd: the tunnel stays, in a scope of its own, and is found.
func TestOutlivesTheServiceUnderSystemd(t *testing.T) {
	p := newPair(t)
	m := newManager(t)
	cfg, err := json.Marshal(p.in)
	if err == nil {
		err = os.WriteFile(filepath.Join(m.dir, "config.json"), cfg, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.must("start", "debvisor-agent.service")
	was := m.stands(0)
	scope := scopeOf(layoutOf("", p.in.RightID))
	if !strings.HasSuffix(was.Group, "/"+scope) {
		t.Errorf("the tunnel is in %s, not in %s", was.Group, scope)
	}
	m.must("is-active", scope)
	same := func(after string) {
		t.Helper()
		now := m.stands(was.Pid)
		if now.Tunnel != was.Tunnel || now.Address != was.Address || now.Group != was.Group {
			t.Errorf("after %s: %+v, it was %+v", after, now, was)
		}
		was = now
	}
	m.must("restart", "debvisor-agent.service")
	same("a restart")
	m.must("kill", "--signal=KILL", "debvisor-agent.service")
	same("a kill of all of the unit")
	m.must("stop", "debvisor-agent.service")
	if _, err := m.enter("kill", "-0", strconv.Itoa(was.Tunnel)); err != nil {
		t.Errorf("a stop ended the tunnel: %v", err)
	}
	m.must("start", "debvisor-agent.service")
	same("a stop and a start")
	if _, err := m.enter("kill", strconv.Itoa(was.Tunnel)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the scope goes with its tunnel", func() bool { return m.run("is-active", scope) != nil })
	if out, err := m.enter("systemctl", "list-units", "--all", "--no-legend", "debvisor-tunnel-*"); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("left behind: %s, %v", out, err)
	}
}
