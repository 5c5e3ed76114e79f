package machine

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// selfEnv makes this test program one of those that run in a machine.
const selfEnv = "DEBVISOR_MACHINE_SELF"

func TestMain(m *testing.M) {
	switch os.Getenv(selfEnv) {
	case "":
	case "owner":
		own()
	default:
		Main(m, Spec{Name: "self", Disks: []Disk{{MiB: 128}}})
	}
	os.Exit(m.Run())
}

// boot boots a machine that ends with the test.
func boot(t *testing.T, s Spec) *Machine {
	t.Helper()
	m, err := Boot(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// run runs a command that has to end well.
func run(t *testing.T, m *Machine, args ...string) string {
	t.Helper()
	out, err := m.Run(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func TestMachineHasZFS(t *testing.T) {
	m := boot(t, Spec{Name: "m", Disks: []Disk{{MiB: 256}}})
	run(t, m, "zpool", "create", "tank", "/dev/ubda")
	run(t, m, "zfs", "create", "-V", "10M", "tank/v")
	run(t, m, "zfs", "snapshot", "-r", "tank@a")
	if got, want := run(t, m, "zfs", "list", "-H", "-o", "name", "-t", "all"), "tank\ntank@a\ntank/v\ntank/v@a"; got != want {
		t.Errorf("there is\n%s\nwant\n%s", got, want)
	}
	if got := run(t, m, "hostname"); got != "m" {
		t.Errorf("its name is %s", got)
	}
	_, err := m.Run(t.Context(), "zfs", "destroy", "tank/none")
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Status != 1 || !strings.Contains(exit.Stderr, "dataset does not exist") {
		t.Errorf("destroying what is not there: %v", err)
	}
}

// TestSystemd: the machine's process 1 is systemd, which has the units that it was given, and keeps services to what they say.
func TestSystemd(t *testing.T) {
	m := boot(t, Spec{Name: "m", Systemd: true, Files: map[string]string{UnitsDir + "/mine.service": strings.Join([]string{
		"[Service]", "Type=oneshot", "StandardOutput=append:/run/said", "CapabilityBoundingSet=CAP_CHOWN CAP_SYS_ADMIN", "NoNewPrivileges=yes",
		"SystemCallFilter=~@mount", "SystemCallErrorNumber=EPERM", "DevicePolicy=closed",
		"ExecStart=/bin/grep -E ^(CapEff|NoNewPrivs|Seccomp): /proc/self/status",
		"ExecStart=/bin/sh -c 'umount /tmp 2>&1; head -c 1 /dev/ttyS0 2>&1; true'", "",
	}, "\n")}})
	if first := run(t, m, "cat", "/proc/1/comm"); first != "systemd" {
		t.Errorf("process 1 is %s", first)
	}
	if units := run(t, m, "systemctl", "list-unit-files", "--type=service", "--no-legend"); !strings.HasPrefix(units, "mine.service") || strings.Contains(units, "\n") {
		t.Errorf("it has other units than it was given: %s", units)
	}
	run(t, m, "systemctl", "start", "mine")
	said := run(t, m, "cat", "/run/said")
	for _, want := range []string{"CapEff:\t0000000000200001", "NoNewPrivs:\t1", "Seccomp:\t2", "must be superuser to unmount", "ttyS0' for reading: Operation not permitted"} {
		if !strings.Contains(said, want) {
			t.Errorf("the service is not kept to what it says, %q: %s", want, said)
		}
	}
	if err := m.PowerOff(); err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(t, m, "systemctl", "start", "mine")
}

// TestInside is run in a machine by TestMainRunsTestsInside.
func TestInside(t *testing.T) {
	if !Inside() {
		t.Skip("run by TestMainRunsTestsInside")
	}
	for _, args := range [][]string{{"zpool", "create", "tank", "/dev/ubda"}, {"zfs", "list", "tank"}, {"zfs", "list", "tank/none"}} {
		out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
		fmt.Printf("%v: %v: %s\n", args, err, out)
	}
	if err := os.WriteFile(filepath.Join(t.TempDir(), "file"), nil, 0o644); err != nil {
		t.Error(err)
	}
	if os.Getenv(selfEnv) == "fails" {
		t.Error("it was to fail")
	}
}

func TestMainRunsTestsInside(t *testing.T) {
	for mode, want := range map[string]int{"succeeds": 0, "fails": 1} {
		t.Run(mode, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), mustExecutable(), "-test.run=^TestInside$", "-test.v", "-test.timeout=60s")
			cmd.Env = append(os.Environ(), selfEnv+"="+mode)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			err := cmd.Run()
			if got := cmd.ProcessState.ExitCode(); got != want {
				t.Errorf("status %d, want %d: %v", got, want, err)
			}
			for _, want := range []string{"[zfs list tank]: <nil>: NAME", "dataset does not exist", "--- " + map[int]string{0: "PASS", 1: "FAIL"}[want] + ": TestInside"} {
				if !strings.Contains(out.String(), want) {
					t.Errorf("no %q in:\n%s", want, &out)
				}
			}
		})
	}
}
