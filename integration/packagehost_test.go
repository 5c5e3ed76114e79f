package integration

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// Units of the packages.
const (
	rpcdUnit  = "debvisor-rpcd.service"
	agentUnit = "debvisor-agent.service"
)

// hosts are two Debian hosts with systemd on which our packages are installed, as an operator does it: the first has a replica, an agent
// and hvctl, the second an agent.
type hosts struct {
	*lab.Lab
	t    *testing.T
	a, b *lab.Node
}

func (h *hosts) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(h.t.Context(), d)
	h.t.Cleanup(cancel)
	return ctx
}

func (h *hosts) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *hosts) eventually(d time.Duration, what string, f func() error) {
	h.t.Helper()
	h.must(lab.Within(d, what, f))
}

// sh runs a command line on a host and returns what it says.
func (h *hosts) sh(n *lab.Node, line string) string {
	h.t.Helper()
	out, err := h.try(n, line)
	if err != nil {
		h.t.Fatalf("%v\n%s", err, out)
	}
	return out
}

func (h *hosts) try(n *lab.Node, line string) (string, error) {
	out, err := n.RunInput(h.within(2*time.Minute), []string{"DEBIAN_FRONTEND=noninteractive"}, nil, "/bin/bash", "-euo", "pipefail", "-c", line)
	return strings.TrimSpace(out), err
}

// hvctl runs the installed hvctl on the first host as the operator that init has made.
func (h *hosts) hvctl(args ...string) (string, error) {
	const pki = "/var/lib/debvisor/rpcd/pki/"
	env := []string{"HVCTL_SERVER=" + h.a.Addr, "HVCTL_CA=" + pki + "ca.pem", "HVCTL_CERT=" + pki + "operator.pem", "HVCTL_KEY=" + pki + "operator-key.pem"}
	out, err := h.a.RunInput(h.within(time.Minute), env, nil, append([]string{"/usr/bin/hvctl"}, args...)...)
	return strings.TrimSpace(out), err
}

// operation is one as hvctl shows it.
func (h *hosts) operation(id string) (*debvisorv1.Operation, error) {
	out, err := h.hvctl("-o", "json", "operation", "show", id)
	if err != nil {
		return nil, err
	}
	op := &debvisorv1.Operation{}
	return op, protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal([]byte(out), op)
}

// online waits until all nodes are.
func (h *hosts) online(names ...string) {
	h.t.Helper()
	h.eventually(time.Minute, "nodes are online", func() error {
		out, err := h.hvctl("node", "list")
		if err != nil {
			return err
		}
		for _, name := range names {
			if !slices.ContainsFunc(strings.Split(out, "\n"), func(line string) bool {
				f := strings.Fields(line)
				return len(f) > 1 && f[0] == name && f[1] == "ONLINE"
			}) {
				return fmt.Errorf("%s is not among them:\n%s", name, out)
			}
		}
		return nil
	})
}

// unit is what a host's systemd says of one.
type unit struct {
	pid, restarts   int
	active, enabled string
	all             map[string]string
}

func (h *hosts) unit(n *lab.Node, name string) unit {
	h.t.Helper()
	u, err := h.askUnit(n, name)
	h.must(err)
	return u
}

func (h *hosts) askUnit(n *lab.Node, name string) (unit, error) {
	all, err := n.Unit(h.within(20*time.Second), name, "MainPID", "NRestarts", "ActiveState", "SubState", "Result", "UnitFileState", "ConditionResult",
		"StatusText", "MemoryMax", "CPUQuotaPerSecUSec", "TasksMax", "WatchdogUSec", "Type", "LoadState")
	if err != nil {
		return unit{}, err
	}
	u := unit{active: all["ActiveState"], enabled: all["UnitFileState"], all: all}
	if u.pid, err = strconv.Atoi(all["MainPID"]); err != nil {
		return u, err
	}
	u.restarts, err = strconv.Atoi(all["NRestarts"])
	return u, err
}

// files are the paths on a host that packages could have left something at: what belongs to the kernel, to guests, to logs and to
// dpkg's own books is none of it.
func (h *hosts) files(n *lab.Node) map[string]bool {
	h.t.Helper()
	out := h.sh(n, `find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /lab -o -path /run/systemd -o -path /run/log -o -path /run/udev \
		-o -path /var/log/journal -o -path /var/lib/libvirt -o -path /var/log/libvirt -o -path /var/cache/libvirt -o -path /run/libvirt -o -path /var/lib/dpkg \
		-o -path /var/cache/man -o -path /var/lib/systemd/timers -o -path /etc/libvirt/qemu -o -path /var/spool/rsyslog \) -prune -o -print; ls -d /run/debvisor 2>/dev/null || true`)
	all := map[string]bool{}
	s := bufio.NewScanner(strings.NewReader(out))
	for s.Scan() {
		all[s.Text()] = true
	}
	return all
}

// aCommand runs a command of ours in the repository.
func aCommand(t *testing.T, env []string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...) //nolint:gosec // our own scripts
	cmd.Env = append(os.Environ(), env...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, out, said.String())
	}
	return string(out)
}

// packagesDir returns a directory for packages that hosts may read.
func packagesDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil { //nolint:gosec // apt's and dpkg's users have to get there
			t.Fatal(err)
		}
	}
	return dir
}

// debs makes the packages of the programs under test with a version, in a directory of that name, and returns their digests.
func debs(t *testing.T, dir, version string) string {
	t.Helper()
	bin := os.Getenv("DEBVISOR_BIN")
	if bin == "" {
		bin = "../bin"
	}
	aCommand(t, nil, "../.ci/nfpm-build", "../build/tools")
	return aCommand(t, nil, "../.ci/deb", filepath.Join(dir, version), bin, "../build/tools/nfpm", version)
}
