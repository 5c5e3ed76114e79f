package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// UnitsDir is where the systemd of a machine has its units, those of Spec.Files and those that are written there later. It sees none of the
// host's, which are none of the machine's business.
const UnitsDir = "/etc/systemd/system"

// besideEnv is in the environment of the process that serves the owner of a machine whose process 1 is systemd: the machine's inside.
const besideEnv = "DEBVISOR_MACHINE_BESIDE"

// systemd is the host's, of which each machine sees the programs.
const systemd = "/lib/systemd/systemd"

// targets are those that services ask for by themselves. Nothing is to be done for them: makeRoot has mounted all that there is.
var targets = map[string]string{
	"default.target": "[Unit]\nRequires=basic.target\nAfter=basic.target\n",
	"basic.target":   "[Unit]\nRequires=sysinit.target\nAfter=sysinit.target\n",
	"sysinit.target": "[Unit]\n",
}

// becomeSystemd starts the process that serves the machine's owner, and becomes systemd. It returns only if that fails.
func (i inside) becomeSystemd() error {
	raw, err := json.Marshal(i) // the file that it was read from is not seen any more
	if err != nil {
		return err
	}
	attr := &syscall.ProcAttr{Dir: "/", Env: append(i.environment(), besideEnv+"="+string(raw)), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setsid: true}}
	if _, err := syscall.ForkExec(i.Program, []string{i.Program}, attr); err != nil {
		return fmt.Errorf("%s: %w", i.Program, err)
	}
	// The kernel has no BPF: only the older kind of control groups holds back devices.
	err = syscall.Exec(systemd, []string{systemd, "--system", "--unit=default.target"}, []string{
		"PATH=" + i.Path, "SYSTEMD_UNIT_PATH=" + UnitsDir, "SYSTEMD_LOG_TARGET=console", "SYSTEMD_COLORS=0",
		"SYSTEMD_PROC_CMDLINE=systemd.unified_cgroup_hierarchy=0 systemd.show_status=0",
	})
	return fmt.Errorf("%s: %w", systemd, err)
}

// beside serves the machine's owner once systemd, which is process 1, has started what is to be started.
func beside() error {
	var i inside
	if err := json.Unmarshal([]byte(os.Getenv(besideEnv)), &i); err != nil {
		return err
	}
	if err := os.Unsetenv(besideEnv); err != nil {
		return err
	}
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		out, err := exec.Command("/bin/systemctl", "is-system-running").CombinedOutput() //nolint:noctx // the machine ends it
		state := strings.TrimSpace(string(out))
		if err == nil {
			return i.serve()
		}
		if time.Since(begin) > bootLimit {
			return errors.New("systemd does not come up: " + state)
		}
	}
}

// powerOff takes the machine's power, as the end of process 1 does.
func powerOff() {
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	os.Exit(1)
}
