package replication

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
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/certs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// within bounds every wait of these tests.
const within = 2 * time.Minute

var authority = sync.OnceValue(func() *certs.Authority {
	ca, err := certs.NewAuthority(cluster, time.Now())
	if err != nil {
		panic(err)
	}
	return ca
})

func certificate(t *testing.T, node string) certs.Files {
	t.Helper()
	dir := t.TempDir()
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := authority().Issue(key.Public(), certs.AgentLeaf(cluster, node, 0), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := certs.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	f := certs.Files{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	for path, data := range map[string][]byte{f.CA: authority().PEM(), f.Cert: leaf, f.Key: keyPEM} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// agent is an agent's process, which is started again when it has died.
type agent struct {
	t   *testing.T
	cfg agentConfig
	log *os.File

	mu      sync.Mutex
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	reports map[string]*agentv1.TaskReport
	died    int
	// away keeps the next process from being started for so long.
	away time.Duration
	// dead is called while there is no process, after one has died.
	dead func()
	// nextDieAt is where the next process is killed.
	nextDieAt string
	stopped   bool
	bell      chan struct{}
	group     sync.WaitGroup
}

// startAgent starts an agent that lives until the test's end, however often it is
// killed.
func startAgent(t *testing.T, node string, edit ...func(*agentConfig)) *agent {
	t.Helper()
	dir, first := t.TempDir(), somePorts()
	a := &agent{
		t: t, reports: map[string]*agentv1.TaskReport{}, bell: make(chan struct{}, 1),
		cfg: agentConfig{Node: node, Dir: dir, Files: certificate(t, node), First: first, Last: first + 9},
	}
	for _, e := range edit {
		e(&a.cfg)
	}
	var err error
	if a.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	a.start()
	t.Cleanup(a.end)
	return a
}

func (a *agent) start() {
	text, err := json.Marshal(a.cfg)
	if err != nil {
		panic(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), agentEnv+"="+string(text))
	cmd.Stderr = a.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, errIn := cmd.StdinPipe()
	out, errOut := cmd.StdoutPipe()
	if err := errors.Join(errIn, errOut, cmd.Start()); err != nil {
		a.t.Errorf("starting an agent: %v", err)
		return
	}
	a.mu.Lock()
	a.cmd, a.stdin = cmd, in
	a.mu.Unlock()
	a.group.Go(func() {
		a.read(out)
		_ = cmd.Wait()
		a.mu.Lock()
		away, dead := a.away, a.dead
		if a.cfg.DieAt == "" {
			away = 0
		}
		a.mu.Unlock()
		if dead != nil {
			dead()
		}
		timer := time.NewTimer(away)
		<-timer.C
		a.mu.Lock()
		stopped := a.stopped
		a.died++
		a.cfg.DieAt, a.nextDieAt = a.nextDieAt, "" // once is enough
		a.mu.Unlock()
		if !stopped {
			a.start()
		}
	})
}

func (a *agent) read(out io.Reader) {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		r := &agentv1.TaskReport{}
		if err := protojson.Unmarshal(lines.Bytes(), r); err != nil {
			a.t.Errorf("%s: %v", lines.Text(), err)
			continue
		}
		a.mu.Lock()
		a.reports[r.GetTaskId()] = r
		a.mu.Unlock()
		select {
		case a.bell <- struct{}{}:
		default:
		}
	}
}

func (a *agent) kill() {
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = a.cmd.Process.Kill()
}

func (a *agent) deaths() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.died
}

func (a *agent) ended(t *agentv1.Task) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reports[t.GetId()].GetOutcome() != nil
}

func (a *agent) end() {
	a.mu.Lock()
	a.stopped = true
	_ = a.cmd.Process.Kill()
	a.mu.Unlock()
	a.group.Wait()
	if a.t.Failed() || os.Getenv("DEBVISOR_TEST_LOGS") != "" {
		text, _ := os.ReadFile(a.log.Name())
		a.t.Logf("log of %s:\n%s", a.cfg.Node, text[max(0, len(text)-12000):])
	}
	_ = a.log.Close()
}

// say writes a command, to whichever process there is.
func (a *agent) say(format string, args ...any) {
	a.mu.Lock()
	in := a.stdin
	a.mu.Unlock()
	_, _ = fmt.Fprintf(in, format+"\n", args...)
}

func (a *agent) accept(t *agentv1.Task) {
	data, err := proto.Marshal(t)
	if err != nil {
		a.t.Fatal(err)
	}
	a.say("accept %s", base64.StdEncoding.EncodeToString(data))
}

// await waits for a report of the task that is as wanted. The task is delivered
// again now and then, as a leader does.
func (a *agent) await(t *agentv1.Task, what string, wanted func(*agentv1.TaskReport) bool) *agentv1.TaskReport {
	a.t.Helper()
	deadline := time.After(within)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		a.mu.Lock()
		r := a.reports[t.GetId()]
		a.mu.Unlock()
		if r != nil && wanted(r) {
			return r
		}
		select {
		case <-a.bell:
		case <-tick.C:
			a.accept(t)
		case <-deadline:
			a.t.Fatalf("%s: %s does not come: %v", t.GetId(), what, r)
		}
	}
}

func (a *agent) outcome(t *agentv1.Task) *agentv1.TaskOutcome {
	a.t.Helper()
	return a.await(t, "the outcome", func(r *agentv1.TaskReport) bool { return r.GetOutcome() != nil }).GetOutcome()
}

// sh runs a command of the machine's and gives what it prints.
func sh(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// try is sh that may fail.
func try(args ...string) string {
	out, _ := exec.Command(args[0], args[1:]...).CombinedOutput()
	return strings.TrimSpace(string(out))
}
