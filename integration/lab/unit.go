package lab

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/debvisor/debvisor/integration/machine"
)

// agentUnit is the agent's unit.
const agentUnit = "debvisor-agent.service"

// unitOutput is where the agent of a machine with systemd writes, what it said at its last start only.
const unitOutput = "/run/debvisor-agent.log"

// startUnit has the systemd of a machine start the agent by its unit, of which only the command is the lab's, and who starts it again: a
// test. What is returned stands for the agent: signals are sent to it, and it ends when the agent does.
func (n *Node) startUnit(c Command) (*Process, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	const script = `set -eu
mkdir -p "$(dirname "$1")"
cat >"$1.new"
if ! cmp -s "$1.new" "$1"; then
  mv "$1.new" "$1"
  systemctl daemon-reload
fi
systemctl start --no-block "$2"`
	dropIn := filepath.Join(machine.UnitsDir, agentUnit+".d", "lab.conf")
	if _, err := n.RunInput(ctx, nil, strings.NewReader(n.dropIn(c)), "bash", "-c", script, "start", dropIn, agentUnit); err != nil {
		return nil, err
	}
	pid, err := n.unitProcess(ctx, c.Name)
	if err != nil {
		return nil, err
	}
	c.Args = []string{"tail", "--lines=+1", "--follow", "--sleep-interval=0.02", fmt.Sprintf("--pid=%d", pid), unitOutput}
	c.Env = nil
	p, err := n.Start(c)
	if err == nil {
		p.Pid = pid
	}
	return p, err
}

// unitProcess waits until the agent's unit has a process, and fails when it has had one.
func (n *Node) unitProcess(ctx context.Context, name string) (pid int, err error) {
	var output string
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	err = Eventually(within, name+" is started", func() error {
		u, err := n.Unit(ctx, agentUnit, "MainPID", "ActiveState", "SubState", "Result", "Job", "ConditionResult")
		if err != nil {
			return err
		}
		if pid, err = strconv.Atoi(u["MainPID"]); err != nil || pid != 0 {
			return err
		}
		if u["ActiveState"] == "failed" && u["Job"] == "" {
			output, _ = n.Run(ctx, "cat", unitOutput)
			cancel()
		}
		return fmt.Errorf("the unit is %v: %s", u, output[max(0, len(output)-2000):])
	})
	return pid, err
}

// dropIn is what the lab changes of the agent's unit. A test may stop it for long: nobody takes that for a hang.
func (n *Node) dropIn(c Command) string {
	lines := []string{
		"[Service]", "ExecStart=", "ExecStart=" + strings.Join(c.Args, " "), "Restart=no", "WatchdogSec=0", "TimeoutStartSec=infinity",
		"StandardOutput=truncate:" + unitOutput, "StandardError=inherit",
	}
	for _, e := range append([]string{"PATH=" + n.Machine.Path()}, c.Env...) {
		lines = append(lines, fmt.Sprintf("Environment=%q", e))
	}
	return strings.Join(lines, "\n") + "\n"
}
