package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
	"github.com/debvisor/debvisor/integration/machine"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const (
	day = 24 * time.Hour
	// dueAhead is so far ahead that certificates, which live for 30 days, are to be renewed, and have not ended.
	dueAhead = 25 * day
	// setAtOnce bounds what is done when a clock was set: a renewal looks at it four times a minute.
	setAtOnce = 45 * time.Second
)

// setClock sets the clock of a machine, which is of its own kernel, to the host's and some more.
func setClock(ctx context.Context, m *machine.Machine, ahead time.Duration) error {
	_, err := m.Run(ctx, "date", "--utc", "--set", time.Now().Add(ahead).UTC().Format("2006-01-02 15:04:05"))
	return err
}

// TestClockOfANode sets the clock of a hypervisor, whose agent works on: its session stays, what has become due by the new clock is done at
// once and once only, and an agent that would begin before its certificate does says so in one line.
func TestClockOfANode(t *testing.T) {
	c := pooled.use(t)
	n := c.Machines[0]
	ref := c.dataset(n, "clock")
	t.Cleanup(func() {
		if err := setClock(context.Background(), n.Machine, 0); err != nil {
			t.Error(err)
		}
	})
	storage := c.api(c.running()).storage
	works := func(when string) {
		t.Helper()
		c.must(c.whole(c.within(time.Minute)))
		if _, err := storage.CreateSnapshot(c.within(time.Minute), &debvisorv1.SnapshotRequest{Dataset: ref}); err != nil {
			t.Errorf("a snapshot %s: %v", when, err)
		}
	}
	log := c.mark(n.Agent.LogFile())
	c.must(setClock(t.Context(), n.Machine, dueAhead))
	works("while the node's clock is ahead")
	c.eventually(setAtOnce, "the agent renews its certificate", func() error {
		if len(log.lines("certificate renewed")) == 0 {
			return errors.New("it has not")
		}
		return nil
	})
	works("with a certificate that is due as it comes")
	if lines := log.lines("certificate renewed"); len(lines) != 1 {
		t.Errorf("it was renewed again and again:\n%s", strings.Join(lines, "\n"))
	}
	if len(log.lines("is this host's clock ahead")) != 1 {
		t.Error("the agent says nothing of the clock")
	}
	c.must(setClock(t.Context(), n.Machine, dueAhead-10*day))
	works("while the node's clock is set back")

	c.must(n.Agent.Process.Terminate(c.within(time.Minute)))
	c.must(setClock(t.Context(), n.Machine, -dueAhead))
	begun := c.mark(n.Agent.LogFile())
	said := ""
	if err := n.Agent.Start(); err != nil {
		said = err.Error() // it had ended before anybody looked
	} else {
		select {
		case <-n.Agent.Process.Done():
		case <-c.within(time.Minute).Done():
			t.Fatal("an agent starts before its certificate is valid")
		}
		said = strings.Join(begun.lines("set the clock"), "\n")
	}
	if !strings.Contains(said, "set the clock") || strings.Contains(said, "goroutine ") {
		t.Errorf("an agent that starts before its certificate is valid says %q", said)
	}
	c.must(setClock(t.Context(), n.Machine, 0))
	c.must(n.Agent.Start())
	works("once the clock is right")
}

// TestClockOfAReplica sets the clock of the host of a cluster's only replica: it leads on in the same term, takes changes, renews what
// has become due, and its audit log stays whole. One that would begin before its certificates do says so in one line.
func TestClockOfAReplica(t *testing.T) {
	t.Parallel()
	r := newClocked(t)
	serving := r.serve()
	var term string
	r.eventually("it leads", func() (err error) { term, err = r.term(); return err })
	before := r.served()
	for _, ahead := range []time.Duration{dueAhead, dueAhead - 10*day} {
		r.must(setClock(t.Context(), r.machine, ahead))
		if _, err := r.hvctl("role", "set", fmt.Sprintf("r%d", ahead/day), "--permission", "node:list"); err != nil {
			t.Errorf("a change with the clock %s ahead: %v", ahead, err)
		}
		if now, err := r.term(); err != nil || now != term {
			t.Errorf("with the clock %s ahead the leader is %q, before %q: %v", ahead, now, term, err)
		}
		r.eventually("it is ready", r.ready)
	}
	r.must(setClock(t.Context(), r.machine, dueAhead))
	r.eventually("it renews its certificate", func() error {
		if bytes.Equal(r.served(), before) {
			return errors.New("it is the same")
		}
		return nil
	})
	if _, err := r.hvctl("audit", "verify"); err != nil {
		t.Errorf("the audit log: %v", err)
	}
	r.must(serving.Kill(15))
	<-serving.Done()

	r.must(setClock(t.Context(), r.machine, -dueAhead))
	refused := r.serve()
	select {
	case <-refused.Done():
	case <-time.After(time.Minute):
		t.Fatal("a replica starts before its certificates are valid")
	}
	var exit *machine.ExitError
	if err := refused.Err(); !errors.As(err, &exit) || exit.Status >= 128 {
		t.Errorf("it ends with %v", err)
	}
	if said := strings.TrimSpace(r.said.String()); !strings.Contains(said, "set the clock") || strings.Contains(said, "\n") {
		t.Errorf("a replica that starts before its certificates are valid says %q", said)
	}
}

const (
	clockedData  = "/tmp/r1"
	clockedAudit = "/tmp/audit.log"
)

// clocked is the only replica of a cluster, in a machine whose clock can be set.
type clocked struct {
	t       *testing.T
	bin     string
	machine *machine.Machine
	said    bytes.Buffer // by its last start
}

func newClocked(t *testing.T) *clocked {
	t.Helper()
	bin := os.Getenv("DEBVISOR_BIN")
	if bin == "" {
		bin = "../bin"
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		t.Fatal(err)
	}
	m, err := machine.Boot(t.Context(), machine.Spec{Name: "clock", Visible: []string{bin}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	r := &clocked{t: t, bin: bin, machine: m}
	_, err = m.Run(t.Context(), filepath.Join(bin, "debvisor-rpcd"), "init", "--data-dir", clockedData, "--name", "r1", "--host", "127.0.0.1", "--etcd-peer-listen", "127.0.0.1:2380")
	r.must(err)
	return r
}

func (r *clocked) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *clocked) serve() *machine.Process {
	r.t.Helper()
	r.said.Reset()
	p, err := r.machine.Start(r.t.Context(), machine.Command{
		Args: []string{
			filepath.Join(r.bin, "debvisor-rpcd"), "serve", "--data-dir", clockedData, "--listen", "127.0.0.1:7443", "--agents-listen", "127.0.0.1:7444",
			"--metrics-listen", "127.0.0.1:7447", "--etcd-peer-listen", "127.0.0.1:2380", "--audit-log", clockedAudit, "--audit-syslog", "none", "--log-file", "/tmp/rpcd.log",
		},
		Stdout: &r.said, Stderr: &r.said,
	})
	r.must(err)
	return p
}

// hvctl runs in the machine as the operator, whom init has made.
func (r *clocked) hvctl(args ...string) (string, error) {
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	pki := filepath.Join(clockedData, "pki")
	err := r.machine.RunCommand(ctx, machine.Command{
		Args: append([]string{filepath.Join(r.bin, "hvctl")}, args...), Stdout: &out, Stderr: &errs,
		Env: []string{
			"HVCTL_SERVER=127.0.0.1:7443", "HVCTL_CA=" + filepath.Join(pki, "ca.pem"),
			"HVCTL_CERT=" + filepath.Join(pki, "operator.pem"), "HVCTL_KEY=" + filepath.Join(pki, "operator-key.pem"),
		},
	})
	if err != nil {
		err = fmt.Errorf("hvctl %s: %w: %s", strings.Join(args, " "), err, &errs)
	}
	return out.String(), err
}

// term is the leader's, as its cluster shows it; while nobody leads there is none.
func (r *clocked) term() (string, error) {
	out, err := r.hvctl("cluster", "show")
	for line := range strings.Lines(out) {
		name, term, _ := strings.Cut(line, ":")
		if term = strings.TrimSpace(term); name == "term" && err == nil && !strings.HasSuffix(term, ".0") {
			return term, nil
		}
	}
	return "", errors.Join(fmt.Errorf("nobody leads: %q", out), err)
}

// ready asks whether the replica says of itself that it is.
func (r *clocked) ready() error {
	_, err := r.machine.Run(r.t.Context(), "curl", "--silent", "--show-error", "--fail-with-body", "--cacert", filepath.Join(clockedData, "pki", "ca.pem"), "https://127.0.0.1:7447/readyz")
	return err
}

// served is the replica's certificate.
func (r *clocked) served() []byte {
	r.t.Helper()
	out, err := r.machine.Run(r.t.Context(), "cat", filepath.Join(clockedData, "pki", "server.pem"))
	r.must(err)
	return []byte(out)
}

func (r *clocked) eventually(what string, f func() error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	r.must(lab.Eventually(ctx, what, f))
}
