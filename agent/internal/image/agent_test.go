package image

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/integration/ceph"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// within bounds every wait of these tests.
const within = time.Minute

// numbers makes names of their own.
var numbers atomic.Int64

// site is a cluster and an agent of it.
type site struct {
	t       *testing.T
	cluster *ceph.Cluster
	cfg     agentConfig
	log     *os.File
}

func newSite(t *testing.T, pools ...string) *site {
	t.Helper()
	s := &site{t: t, cluster: ceph.New(t, ceph.Options{Pools: append([]string{"rbd"}, pools...)})}
	// Who is dead is known to be after a moment, not after half a minute.
	if _, err := s.cluster.Admin(t.Context(), "ceph", "config", "set", "osd", "osd_client_watch_timeout", "3"); err != nil {
		t.Fatal(err)
	}
	s.cfg = agentConfig{Dir: t.TempDir(), Conf: s.cluster.Conf(), User: ceph.Agent}
	var err error
	if s.log, err = os.Create(filepath.Join(s.cfg.Dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() || os.Getenv("DEBVISOR_TEST_LOGS") != "" {
			text, _ := os.ReadFile(s.log.Name())
			t.Logf("the agent's log:\n%s", text[max(0, len(text)-12000):])
		}
		_ = s.log.Close()
	})
	return s
}

// rbd runs rbd as client.admin.
func (s *site) rbd(args ...string) string {
	s.t.Helper()
	out, err := s.cluster.Admin(s.t.Context(), "rbd", args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// image makes an image and gives its id.
func (s *site) image(spec string) *agentv1.RbdImageID {
	s.t.Helper()
	s.rbd("create", "--size", "16M", "--image-feature", "layering,exclusive-lock", spec)
	return s.id(spec)
}

// id is an image with its id.
func (s *site) id(spec string) *agentv1.RbdImageID {
	s.t.Helper()
	var info struct{ ID string }
	if err := json.Unmarshal([]byte(s.rbd("info", "--format", "json", spec)), &info); err != nil {
		s.t.Fatal(err)
	}
	id := &agentv1.RbdImageID{Pool: spec, Id: info.ID}
	parts := strings.Split(spec, "/")
	id.Pool, id.Name = parts[0], parts[len(parts)-1]
	if len(parts) == 3 {
		id.Namespace = parts[1]
	}
	return id
}

// snapshots are the names of an image's snapshots with their ids.
func (s *site) snapshots(spec string, args ...string) map[string]uint64 {
	s.t.Helper()
	var list []struct {
		ID   uint64
		Name string
	}
	if err := json.Unmarshal([]byte(s.rbd(append([]string{"snap", "ls", "--format", "json", spec}, args...)...)), &list); err != nil {
		s.t.Fatal(err)
	}
	all := map[string]uint64{}
	for _, one := range list {
		all[one.Name] = one.ID
	}
	return all
}

// snap takes a snapshot past us.
func (s *site) snap(spec, name string) *agentv1.RbdSnapshotID {
	s.t.Helper()
	s.rbd("snap", "create", spec+"@"+name, "--no-progress")
	return &agentv1.RbdSnapshotID{Image: s.id(spec), Name: name, Id: s.snapshots(spec)[name]}
}

// nothingLeft checks what is in a pool (or namespace) and that the trash is empty.
func (s *site) only(pool string, want ...string) {
	s.t.Helper()
	if got := strings.Fields(s.rbd("ls", pool)); strings.Join(got, " ") != strings.Join(want, " ") {
		s.t.Errorf("%s has the images %q, want %q", pool, got, want)
	}
	if trash := s.rbd("trash", "ls", "--all", pool); trash != "" {
		s.t.Errorf("%s has in its trash: %s", pool, trash)
	}
}

// task makes a task of an operation.
func task(operation string, attempt int, kind string, spec *agentv1.TaskSpec) *agentv1.Task {
	return &agentv1.Task{
		Id: fmt.Sprintf("%s/%d/%s", operation, attempt, kind), OperationId: operation, Resource: "rbd/x", Term: &agentv1.Term{Epoch: 1, Revision: 1}, Spec: spec,
	}
}

func operation() string { return fmt.Sprintf("op-%d", numbers.Add(1)) }

// process is an agent's process at work.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed at its end
	bell chan struct{}

	mu       sync.Mutex
	phases   []string
	furthest uint64
	outcome  *agentv1.TaskOutcome
}

// start starts a process of the agent with the task.
func (s *site) start(t *agentv1.Task, edit ...func(*agentConfig)) *process {
	s.t.Helper()
	cfg := s.cfg
	for _, e := range edit {
		e(&cfg)
	}
	data, err := proto.Marshal(t)
	if err != nil {
		s.t.Fatal(err)
	}
	cfg.Task = base64.StdEncoding.EncodeToString(data)
	text, err := json.Marshal(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	p := &process{cmd: exec.Command(os.Args[0]), done: make(chan struct{}), bell: make(chan struct{}, 1)}
	p.cmd.Env = append(os.Environ(), agentEnv+"="+string(text))
	p.cmd.Stderr, p.cmd.WaitDelay = s.log, time.Second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err := errors.Join(err, p.cmd.Start()); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		p.read(out)
		_ = p.cmd.Wait()
	}()
	s.t.Cleanup(func() { _ = p.cmd.Process.Kill(); <-p.done })
	return p
}

func (p *process) read(out io.Reader) {
	for in := bufio.NewScanner(out); in.Scan(); {
		var line said
		if json.Unmarshal(in.Bytes(), &line) != nil {
			continue
		}
		p.mu.Lock()
		p.phases = append(p.phases, line.Phase)
		p.furthest = max(p.furthest, line.Done)
		if line.Outcome != nil {
			p.outcome = &agentv1.TaskOutcome{}
			_ = protojson.Unmarshal(line.Outcome, p.outcome)
		}
		p.mu.Unlock()
		select {
		case p.bell <- struct{}{}:
		default:
		}
	}
}

// said tells whether a phase has been told that holds the words.
func (p *process) said(words string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Contains(strings.Join(p.phases, "\n"), words)
}

// end waits for the process's end and gives the outcome; nil: it was killed.
func (p *process) end(t *testing.T) *agentv1.TaskOutcome {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(within):
		t.Fatal("an agent's task does not end")
	}
	return p.outcome
}

// until waits until the process has told of what is wanted.
func (p *process) until(t *testing.T, what string, wanted func() bool) {
	t.Helper()
	deadline := time.After(within)
	for !wanted() {
		select {
		case <-p.bell:
		case <-p.done:
			t.Fatalf("%s does not come: the task has ended: %v", what, p.outcome)
		case <-deadline:
			t.Fatalf("%s does not come; told: %q", what, p.phases)
		}
	}
}

// do runs a task to its end, with processes one after the other while they die.
func (s *site) do(t *agentv1.Task, edit ...func(*agentConfig)) *agentv1.TaskOutcome {
	s.t.Helper()
	out := s.start(t, edit...).end(s.t)
	if out == nil {
		out = s.start(t, append(edit, func(c *agentConfig) { c.DieAt = "" })...).end(s.t)
	}
	if out == nil {
		s.t.Fatal("the agent died without having been killed")
	}
	return out
}

func dieAt(point string) func(*agentConfig)    { return func(c *agentConfig) { c.DieAt = point } }
func cancelAt(point string) func(*agentConfig) { return func(c *agentConfig) { c.CancelAt = point } }
