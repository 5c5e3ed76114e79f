package lab

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A Replica is one debvisor-rpcd with its place and its data directory. Its Process is nil until it was started.
type Replica struct {
	*Place
	Process *Process
	Data    string   // its --data-dir
	Args    []string // additional arguments of serve
	Env     []string // additional environment, "KEY=value"
	// Program is the debvisor-rpcd of another version, which has no listener for metrics; empty: the lab's.
	Program string

	lab *Lab
}

func newReplica(l *Lab, p *Place) *Replica {
	return &Replica{Place: p, Data: filepath.Join(l.Dir, p.Name), lab: l}
}

// Callers is the address of the replica's listener for callers.
func (r *Replica) Callers() string { return fmt.Sprintf("%s:%d", r.Addr, CallersPort) }

// Agents is the address of the replica's listener for agents.
func (r *Replica) Agents() string { return fmt.Sprintf("%s:%d", r.Addr, AgentsPort) }

// Gateway is the address of the replica's gateway.
func (r *Replica) Gateway() string { return fmt.Sprintf("https://%s:%d", r.Addr, GatewayPort) }

// Metrics is the address of the replica's listener for those who watch over it.
func (r *Replica) Metrics() string { return fmt.Sprintf("%s:%d", r.Addr, MetricsPort) }

// EtcdSocket is the unix socket of the replica's etcd.
func (r *Replica) EtcdSocket() string { return filepath.Join(r.Data, "etcd", "client.sock") }

// LogFile is the replica's own log.
func (r *Replica) LogFile() string { return r.lab.log(r.Name) }

// Audit is the replica's audit log.
func (r *Replica) Audit() string { return r.lab.log(r.Name + "-audit") }

// Init makes a cluster with this replica as the first.
func (r *Replica) Init(ctx context.Context) error {
	_, err := r.Run(ctx, r.program(), "init", "--data-dir", r.Data, "--cluster", ClusterName, "--name", r.Name, "--host", r.Addr,
		"--etcd-peer-listen", fmt.Sprintf("%s:%d", r.Addr, PeersPort))
	return err
}

// Join makes the replica a member of the cluster that the other one is in.
func (r *Replica) Join(ctx context.Context, other *Replica) error {
	token, err := r.lab.token(ctx, other, "token", "create", "--replica")
	if err != nil {
		return err
	}
	_, err = r.Run(ctx, r.program(), "join", "--server", other.Callers(), "--token", token,
		"--data-dir", r.Data, "--name", r.Name, "--host", r.Addr, "--etcd-peer-listen", fmt.Sprintf("%s:%d", r.Addr, PeersPort))
	return err
}

func (r *Replica) program() string {
	if r.Program != "" {
		return r.Program
	}
	return r.lab.Program("debvisor-rpcd")
}

// Start starts the replica, which must not run. It does not wait until it serves: see Serving.
func (r *Replica) Start() error {
	args := []string{
		r.program(), "serve", "--data-dir", r.Data, "--listen", r.Callers(),
		"--gateway-listen", fmt.Sprintf("%s:%d", r.Addr, GatewayPort), "--agents-listen", r.Agents(), "--etcd-peer-listen", fmt.Sprintf("%s:%d", r.Addr, PeersPort),
	}
	if r.Program == "" {
		args = append(args, "--metrics-listen", r.Metrics())
	}
	env := append([]string{
		"RPC_LOG_LEVEL=debug", "RPC_LOG_FILE=" + r.LogFile(), "RPC_AUDIT_LOG=" + r.Audit(),
	}, r.Env...)
	var err error
	r.Process, err = r.Place.Start(Command{
		Name: "debvisor-rpcd of " + r.Name, Args: append(args, r.Args...), Env: r.lab.failpointEnv(r.Place, env),
		Log: r.lab.log(r.Name + "-output"),
	})
	return err
}

// Kill kills the replica's process with SIGKILL.
func (r *Replica) Kill() error { return r.Process.Kill() }

// Stop makes the replica's process stand still.
func (r *Replica) Stop(ctx context.Context) error { return r.Process.Stop(ctx) }

// Cont lets the replica's process go on.
func (r *Replica) Cont() error { return r.Process.Cont() }

// Serving waits until the replica takes connections of callers.
func (r *Replica) Serving(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return Eventually(ctx, r.Name+" serves", func() error {
		if !r.Process.Alive() {
			cancel()
			return fmt.Errorf("it ended (%w), its output is in %s: %s", r.Process.Err(), r.Process.Log, tail(r.Process.Log))
		}
		conn, err := r.DialContext(ctx, "tcp", r.Callers())
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// PKI returns the path of a file of the replica's D/pki.
func (r *Replica) PKI(name string) string { return filepath.Join(r.Data, "pki", name) }

// Program returns the path of one of our programs.
func (l *Lab) Program(name string) string { return filepath.Join(l.opts.Bin, name) }

// token runs an hvctl command that prints a token: the last word it says.
func (l *Lab) token(ctx context.Context, at *Replica, args ...string) (string, error) {
	out, err := l.Hvctl(ctx, at, args...)
	words := strings.Fields(out)
	if err == nil && len(words) == 0 {
		err = fmt.Errorf("hvctl %s printed no token", strings.Join(args, " "))
	}
	if err != nil {
		return "", err
	}
	secret := words[len(words)-1]
	l.tokensMu.Lock()
	defer l.tokensMu.Unlock()
	l.tokens = append(l.tokens, secret)
	return secret, nil
}

// Tokens are the join tokens that the lab has made: secrets.
func (l *Lab) Tokens() []string {
	l.tokensMu.Lock()
	defer l.tokensMu.Unlock()
	return slices.Clone(l.tokens)
}
