package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
	"github.com/debvisor/debvisor/integration/machine"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// formerCommit is the last one before the version at work: replicas and agents of both must get on with each other.
const formerCommit = "06c66debefb98424935a025d8cd6368ae74210c2"

// formerBin gives the directory of the programs of formerCommit, which are built once on a host.
func formerBin(t *testing.T) string {
	t.Helper()
	cache, err := machine.Cache()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(cache, "former-"+formerCommit[:12])
	lock, err := os.OpenFile(bin+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil { // of two runs one builds
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "debvisor-agent")); err == nil {
		return bin
	}
	if err := buildFormer(t.Context(), bin); err != nil {
		t.Fatal(err)
	}
	return bin
}

func buildFormer(ctx context.Context, bin string) (err error) {
	run := func(dir, name string, args ...string) ([]byte, error) {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir = dir
		var said bytes.Buffer
		cmd.Stderr = &said
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, said.String())
		}
		return out, err
	}
	if _, err := run("..", "git", "cat-file", "-e", formerCommit+"^{commit}"); err != nil {
		return fmt.Errorf("this clone has no commit %s, whose programs are run beside today's: fetch it with git fetch --unshallow: %w", formerCommit, err)
	}
	source, err := os.MkdirTemp("", "debvisor-former-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(source)) }()
	archive := filepath.Join(source, "source.tar")
	if _, err := run("..", "git", "archive", "-o", archive, formerCommit); err != nil {
		return err
	}
	if _, err := run(source, "tar", "-xf", archive); err != nil {
		return err
	}
	made := filepath.Join(source, "former")
	if _, err := run(source, "go", "build", "-trimpath", "-ldflags", "-s -w -X github.com/debvisor/debvisor/shared/obs.Version=former", "-o", made+"/",
		"./controlplane/cmd/debvisor-rpcd", "./agent/cmd/debvisor-agent"); err != nil {
		return err
	}
	// Whole or not at all: the rename comes last, and crosses no file system.
	if _, err := run(".", "cp", "-r", made, bin+".new"); err != nil {
		return err
	}
	return os.Rename(bin+".new", bin)
}

// TestUpgrade upgrades a cluster of the former version while it works, one host after the other: an agent before any replica, the
// replicas, then the other agent. With every mixture guests move, to and from the former agent.
func TestUpgrade(t *testing.T) {
	former := formerBin(t)
	own := newShared("DEBVISOR_BIN", "../bin", false, "--agent-cert-life", certLife.String())
	own.before = func(l *lab.Lab) {
		for _, r := range l.Replicas {
			r.Program = filepath.Join(former, "debvisor-rpcd")
		}
		for _, n := range l.Nodes {
			n.Agent.Program = filepath.Join(former, "debvisor-agent")
		}
	}
	t.Cleanup(func() {
		if err := own.close(); err != nil {
			t.Error(err)
		}
	})
	u := &upgrade{cluster: own.use(t)}
	u.web = u.guest("web")
	u.moves("all is of the former version")
	u.agent(u.Nodes[0])
	u.moves("one agent is of today, all else of the former version")
	for _, r := range u.Replicas {
		u.replica(r)
	}
	u.moves("one agent is of the former version, all else of today")
	u.renewals(u.Nodes[1])
	u.startsAndStops(u.Nodes[1])
	u.agent(u.Nodes[1])
	u.moves("all is of today")
}

// upgrade is a cluster on its way from the former version to today's.
type upgrade struct {
	*cluster
	web *mover
}

// moves moves the guest there and back.
func (u *upgrade) moves(when string) {
	u.t.Helper()
	u.t.Log(when)
	leader, err := u.Leader(u.within(30 * time.Second))
	u.must(err)
	a := u.api(leader)
	for range 2 {
		u.web.becomesMovable()
		u.succeeded(time.Minute, a, u.web.begin(a))
		u.must(u.web.runsOnly(u.web.to))
		u.eventually(30*time.Second, "it is known to be there", func() error { return u.web.known(u.within(5*time.Second), u.web.to) })
		u.web.from, u.web.to = u.web.to, u.web.from
	}
}

// agent upgrades a node's agent; what runs there goes on.
func (u *upgrade) agent(n *lab.Node) {
	u.t.Helper()
	u.must(n.Agent.Process.Terminate(u.within(30 * time.Second)))
	n.Agent.Program = ""
	u.must(n.Agent.Start())
	u.must(u.whole(u.within(time.Minute)))
}

// replica upgrades a replica: the nodes stay, whoever leads.
func (u *upgrade) replica(r *lab.Replica) {
	u.t.Helper()
	u.must(r.Process.Terminate(u.within(30 * time.Second)))
	r.Program = ""
	u.must(r.Start())
	u.must(r.Serving(u.within(time.Minute)))
	u.must(u.whole(u.within(time.Minute)))
}

// renewals waits until a node's agent has shown another certificate than now.
func (u *upgrade) renewals(n *lab.Node) {
	u.t.Helper()
	path := filepath.Join(n.Agent.Data, "pki", "agent.pem")
	before, err := os.ReadFile(path)
	u.must(err)
	u.eventually(2*certLife, "the former agent renews its certificate", func() error {
		now, err := os.ReadFile(path)
		if err == nil && bytes.Equal(now, before) {
			err = errors.New("it is the same")
		}
		return err
	})
	u.must(u.whole(u.within(time.Minute)))
}

// startsAndStops has a guest of the node ended and started again.
func (u *upgrade) startsAndStops(n *lab.Node) {
	u.t.Helper()
	leader, err := u.Leader(u.within(30 * time.Second))
	u.must(err)
	a, g := u.api(leader), u.web
	if g.from != n {
		u.succeeded(time.Minute, a, g.begin(a))
		g.from, g.to = g.to, g.from
	}
	if _, err := a.vms.DestroyVM(u.within(time.Minute), &debvisorv1.VMRef{VmId: g.UUID}); err != nil {
		u.t.Fatal(err)
	}
	if _, err := a.vms.StartVM(u.within(time.Minute), &debvisorv1.VMRef{VmId: g.UUID}); err != nil {
		u.t.Fatal(err)
	}
	u.must(g.runsOnly(n))
	u.must(g.known(u.within(30*time.Second), n))
}
