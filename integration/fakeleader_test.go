package integration

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/integration/lab"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// fakeLeader is a replica that says whatever a test wants, with a good certificate: a leader that slept, or a network that
// delivers late and twice.
type fakeLeader struct {
	agentv1.UnimplementedSessionServiceServer
	addr string
	term task.Term // of Welcome and of heartbeats' answers

	mu      sync.Mutex
	send    chan *agentv1.LeaderMessage // of the session that is open; nil: none
	reports []*agentv1.TaskReport
	hellos  int
}

// fakeLeader serves one in the operator's place until the test ends.
func (c *cluster) fakeLeader(term task.Term) *fakeLeader {
	c.t.Helper()
	ca, err := c.Authority()
	c.must(err)
	certPEM, keyPEM, err := lab.Issue(ca, certs.ServerLeaf(lab.ClusterName, "fake", []string{c.Operator.Addr}, time.Hour), time.Now())
	c.must(err)
	config, err := c.TLSWith(certPEM, keyPEM)
	c.must(err)
	config.ClientAuth = tls.RequireAnyClientCert
	f := &fakeLeader{addr: fmt.Sprintf("%s:%d", c.Operator.Addr, lab.AgentsPort), term: term}
	var listener net.Listener
	c.must(c.Operator.InNetns(func() error {
		var err error
		listener, err = net.Listen("tcp", f.addr)
		return err
	}))
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	agentv1.RegisterSessionServiceServer(server, f)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener) // ends with Stop
	}()
	c.t.Cleanup(func() { server.Stop(); <-served })
	return f
}

// Connect welcomes whoever calls.
func (f *fakeLeader) Connect(stream agentv1.SessionService_ConnectServer) error {
	send := make(chan *agentv1.LeaderMessage, 100)
	send <- &agentv1.LeaderMessage{Term: f.term.Wire(), Kind: &agentv1.LeaderMessage_Welcome{Welcome: &agentv1.Welcome{
		Leader: "fake", HeartbeatIntervalMs: 1000, Replicas: []string{f.addr},
	}}}
	f.mu.Lock()
	f.send = send
	f.hellos++
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.send = nil
		f.mu.Unlock()
	}()
	go f.receive(stream, send)
	for {
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case m := <-send:
			if err := stream.Send(m); err != nil {
				return err
			}
		}
	}
}

// receive answers heartbeats and keeps reports until the stream ends.
func (f *fakeLeader) receive(stream agentv1.SessionService_ConnectServer, send chan<- *agentv1.LeaderMessage) {
	for {
		m, err := stream.Recv()
		if err != nil {
			return
		}
		if beat := m.GetHeartbeat(); beat != nil {
			send <- &agentv1.LeaderMessage{Term: f.term.Wire(), Kind: &agentv1.LeaderMessage_HeartbeatAck{
				HeartbeatAck: &agentv1.HeartbeatAck{Seq: beat.GetSeq()},
			}}
		}
		f.mu.Lock()
		f.reports = append(f.reports, m.GetHello().GetTasks()...)
		if r := m.GetReport(); r != nil {
			f.reports = append(f.reports, r)
		}
		f.mu.Unlock()
	}
}

// say sends a message on the session that is open.
func (f *fakeLeader) say(term task.Term, m *agentv1.LeaderMessage) error {
	m.Term = term.Wire()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.send == nil {
		return errors.New("no agent has a session")
	}
	f.send <- m
	return nil
}

// reported says whether a task was reported in a state, since so many reports.
func (f *fakeLeader) reported(id string, state agentv1.TaskState, since int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.reports[since:] {
		if r.GetTaskId() == id && r.GetState() == state {
			return nil
		}
	}
	return fmt.Errorf("%s is not reported %v: %v", id, state, f.reports[since:])
}

func (f *fakeLeader) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.reports)
}

func (f *fakeLeader) sessions() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hellos
}

// lure stops the agent of a node and runs one from a copy of its directory, journal and all, that knows the fake leader only.
// What it does leaves no trace in the real one's journal.
func (c *cluster) lure(n *lab.Node, to *fakeLeader) {
	c.t.Helper()
	c.must(n.Agent.Process.Terminate(c.within(20 * time.Second)))
	lured := n.Agent.Data + "-lured"
	c.must(os.CopyFS(lured, os.DirFS(n.Agent.Data)))
	c.must(filepath.WalkDir(lured, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			err = os.Chmod(path, 0o600)
		}
		return err
	}))
	record := filepath.Join(lured, "agent.json")
	raw, err := os.ReadFile(record)
	c.must(err)
	settings := map[string]any{}
	c.must(json.Unmarshal(raw, &settings))
	settings["servers"] = []string{to.addr}
	raw, err = json.Marshal(settings)
	c.must(err)
	c.must(os.WriteFile(record, raw, 0o600))
	c.must(errors.Join(os.RemoveAll(filepath.Join(lured, "servers.json"))))
	own := n.Agent.Data
	n.Agent.Data = lured
	err = n.Agent.Start()
	n.Agent.Data = own
	c.must(err)
	c.t.Cleanup(func() {
		err := n.Agent.Kill()
		if err := errors.Join(err, os.RemoveAll(lured), n.Agent.Start()); err != nil {
			c.t.Error(err)
		}
	})
}

// recorded is a task as it was sent, from its record in etcd.
func (c *cluster) recorded(id string) *agentv1.Task {
	c.t.Helper()
	got, err := c.etcd(c.running()).Get(c.within(10*time.Second), keyPrefix+"tasks/"+id)
	c.must(err)
	if len(got.Kvs) != 1 {
		c.t.Fatalf("no record of task %s", id)
	}
	record, spec := &storev1.Task{}, &agentv1.TaskSpec{}
	c.must(proto.Unmarshal(got.Kvs[0].Value, record))
	c.must(proto.Unmarshal(record.GetSpec(), spec))
	return &agentv1.Task{
		Id: record.GetId(), OperationId: record.GetOperationId(), Resource: record.GetResource(), Spec: spec,
		Term: task.TermOf(record.GetTerm()).Wire(),
	}
}

func sending(t *agentv1.Task) *agentv1.LeaderMessage {
	return &agentv1.LeaderMessage{Kind: &agentv1.LeaderMessage_Task{Task: t}}
}

// TestTaskTwiceOrLate delivers tasks to a real agent late, twice, and from a term that has passed.
func TestTaskTwiceOrLate(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	a, leader := c.follower()
	op := c.succeeded(time.Minute, a, g.begin(a))
	g.arrived()
	term := c.term(leader)
	late := c.recorded(op.GetId() + "/1/migrate-send")
	there, back := g.starts(g.to), g.starts(g.from)

	fake := c.fakeLeader(term)
	log := c.mark(g.from.Agent.LogFile())
	c.lure(g.from, fake)
	log.says("session open")

	// Late: the guest is gone from here, and its end is told once more.
	seen := fake.count()
	c.must(fake.say(term, sending(late)))
	c.eventually(10*time.Second, "the task's end is told again", func() error {
		return fake.reported(late.GetId(), agentv1.TaskState_TASK_STATE_SUCCEEDED, seen)
	})
	log.says("delivered again", late.GetId())

	// Twice: something new.
	fresh := proto.CloneOf(c.recorded(op.GetId() + "/1/migrate-receive"))
	fresh.Id = "op-fake/1/migrate-receive"
	right := fresh.GetSpec().GetMigrateReceive().GetRight()
	right.ReceiveTaskId, right.SendTaskId, right.Id = fresh.GetId(), "op-fake/1/migrate-send", "00112233445566778899aabbccddeeff"
	right.SourceNode, right.TargetNode = g.to.Name, g.from.Name
	fresh.GetSpec().GetMigrateReceive().SourcePeerAddress = fmt.Sprintf("%s:%d", g.to.Addr, lab.AgentPort)
	seen = fake.count()
	for range 3 {
		c.must(fake.say(term, sending(fresh)))
	}
	c.eventually(10*time.Second, "the task runs", func() error {
		return fake.reported(fresh.GetId(), agentv1.TaskState_TASK_STATE_RUNNING, seen)
	})
	c.eventually(10*time.Second, "all three were taken in", func() error {
		if accepted, again := log.lines("task accepted", fresh.GetId()), log.lines("delivered again", fresh.GetId()); len(accepted) != 1 || len(again) != 2 {
			return fmt.Errorf("accepted %v, delivered again %v", accepted, again)
		}
		return nil
	})
	c.eventually(10*time.Second, "its tunnel is there", func() error {
		carried, err := tunnels(g.from)
		if err == nil && len(carried) != 1 {
			err = fmt.Errorf("tunnels: %v", carried)
		}
		return err
	})
	if runs := log.lines("task runs", fresh.GetId()); len(runs) != 1 {
		t.Errorf("it runs %d times: %v", len(runs), runs)
	}
	c.must(fake.say(term, &agentv1.LeaderMessage{Kind: &agentv1.LeaderMessage_CancelTask{CancelTask: &agentv1.CancelTask{TaskId: fresh.GetId()}}}))
	c.eventually(20*time.Second, "it is cancelled", func() error {
		return fake.reported(fresh.GetId(), agentv1.TaskState_TASK_STATE_CANCELLED, seen)
	})

	// From a term that has passed.
	past := term
	past.Revision--
	fresh.Id = "op-past/1/migrate-receive"
	sessions := fake.sessions()
	c.must(fake.say(past, sending(fresh)))
	log.says("refused", "term")
	c.eventually(20*time.Second, "the agent has left that leader", func() error {
		if fake.sessions() == sessions {
			return errors.New("it keeps the session")
		}
		return nil
	})
	if done := log.lines("task accepted", fresh.GetId()); len(done) > 0 {
		t.Errorf("a task of a past term was accepted: %v", done)
	}
	if now, before := g.starts(g.to)+g.starts(g.from), there+back; now != before {
		t.Errorf("QEMU was started %d times", now-before)
	}
	c.must(g.runsOnly(g.to))
}

// TestLeaderChangesWhileMemoryIsCopied moves a guest over a change of leader: the agents meet the new one in the midst of their
// tasks, and do none a second time.
func TestLeaderChangesWhileMemoryIsCopied(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	a, leader := c.follower()
	c.must(g.from.SetMigrateSpeed(g.UUID, slow))
	starts := g.starts(g.to)
	logs := []logMark{c.mark(g.from.Agent.LogFile()), c.mark(g.to.Agent.LogFile())}
	id := g.begin(a)
	g.copying()
	c.must(leader.Process.Terminate(c.within(20 * time.Second)))
	for _, log := range logs {
		log.says("session open")
	}
	c.must(leader.Start())
	c.must(g.from.SetMigrateSpeed(g.UUID, full))
	op := c.succeeded(time.Minute, a, id)
	g.arrived()
	if got := op.GetMigration().GetAttempt(); got != 1 {
		t.Errorf("it took %d attempts", got)
	}
	if now := g.starts(g.to); now != starts+1 {
		t.Errorf("QEMU was started %d times", now-starts)
	}
	for i, kind := range []string{"migrate-send", "migrate-receive"} {
		taskID := id + "/1/" + kind
		if runs := logs[i].lines("task runs", taskID); len(runs) != 1 {
			t.Errorf("%s runs %d times: %v", taskID, len(runs), runs)
		}
	}
}
