package lab

import (
	"context"
	"fmt"
	"path/filepath"
)

// An Agent is the debvisor-agent of a node. Its Process is nil until it was started.
type Agent struct {
	Process *Process
	Data    string   // its --data-dir
	Args    []string // additional arguments of run
	Env     []string // additional environment, "KEY=value"
	Program string   // what is started and enrolled; empty: the lab's debvisor-agent

	node *Node
}

func newAgent(n *Node) *Agent {
	return &Agent{Data: filepath.Join(n.dir, "agent"), node: n}
}

// Enroll gives the agent its identity, with a token asked of the replica.
func (a *Agent) Enroll(ctx context.Context, at *Replica) error {
	n := a.node
	token, err := n.lab.token(ctx, at, "node", "token", n.Name)
	if err != nil {
		return err
	}
	_, err = n.Run(ctx, a.program(), "enroll", "--server", at.Callers(), "--token", token,
		"--data-dir", a.Data, "--node", n.Name)
	return err
}

func (a *Agent) program() string {
	if a.Program != "" {
		return a.Program
	}
	return a.node.lab.Program("debvisor-agent")
}

// Start starts the agent, which must not run.
func (a *Agent) Start() error {
	n := a.node
	args := []string{
		a.program(), "run", "--data-dir", a.Data,
		"--peer-listen", fmt.Sprintf("%s:%d", n.Addr, AgentPort),
		"--tunnel-listen", fmt.Sprintf("%s:%d-%d", n.Addr, TunnelsFirst, TunnelsLast),
		"--libvirt-uri", "qemu:///system", "--shared-dir", SharedDir,
	}
	c := Command{
		Name: "debvisor-agent of " + n.Name, Args: append(args, a.Args...), Env: n.lab.failpointEnv(n.Place, a.Env),
		Log: a.LogFile(),
	}
	start := n.Start
	if n.Machine != nil && n.lab.opts.MachineUnit != "" {
		start = n.startUnit
	}
	var err error
	a.Process, err = start(c)
	return err
}

// LogFile is the agent's log, of all its starts.
func (a *Agent) LogFile() string { return a.node.lab.log(a.node.Name + "-agent") }

// Kill kills the agent's process with SIGKILL. Its tunnels and the guests live on.
func (a *Agent) Kill() error { return a.Process.Kill() }

// Stop makes the agent's process stand still.
func (a *Agent) Stop(ctx context.Context) error { return a.Process.Stop(ctx) }

// Cont lets the agent's process go on.
func (a *Agent) Cont() error { return a.Process.Cont() }
