// Package simagent is an agent without a hypervisor: it speaks the session's
// real protocol with a real agent's certificate, heartbeats and lists what it
// is sent. Benchmarks run it by the hundred; fault tests use it where an agent
// must not do what a good one would.
package simagent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// Agent is one simulated agent. Its exported fields are set before Run.
type Agent struct {
	Node    string
	Journal string
	// TLS is a client configuration with the node's certificate.
	TLS *tls.Config
	// Servers are agents' listeners, host:port.
	Servers []string
	// Dial connects to a server; nil: from where the process is.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Domains are reported running in the first inventory.
	Domains []*agentv1.Domain
	// Capacity is reported in the first inventory; nil: 16 CPUs, 64 GiB.
	Capacity *debvisorv1.NodeCapacity
	// Outcome is how a task that comes down ends at once; nil: it is taken and
	// nothing is ever said of it.
	Outcome func(*agentv1.Task) *agentv1.TaskOutcome

	heartbeats atomic.Int64
	mu         sync.Mutex
	welcomes   []Welcome
	received   []Received
}

// Welcome is one leader's answer.
type Welcome struct {
	Server string
	Term   *agentv1.Term
	At     time.Time
}

// Received is one message as it came down.
type Received struct {
	Server  string
	Message *agentv1.LeaderMessage
	At      time.Time
}

// Heartbeats is how many heartbeats leaders have acknowledged.
func (a *Agent) Heartbeats() int64 { return a.heartbeats.Load() }

// Welcomes are the leaders' answers so far, oldest first.
func (a *Agent) Welcomes() []Welcome {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]Welcome(nil), a.welcomes...)
}

// Received are the messages received so far, oldest first, without the answers
// to Hello and to heartbeats.
func (a *Agent) Received() []Received {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]Received(nil), a.received...)
}

// Run keeps a session with whichever server leads, until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	next := 0
	target := ""
	for ctx.Err() == nil {
		if target == "" {
			target = a.Servers[next%len(a.Servers)]
			next++
		}
		target = a.Session(ctx, target)
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond): // a pace, not a condition: nobody waits for it
		}
	}
	return ctx.Err()
}

// Hello asks one server for a session and gives its first answer; the session
// ends with ctx.
func (a *Agent) Hello(ctx context.Context, server string) (*agentv1.LeaderMessage, error) {
	conn, stream, err := a.open(ctx, server)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	return stream.Recv()
}

// open connects to a server and says Hello. A Hello that could not be sent
// leaves its reason to the stream's Recv.
func (a *Agent) open(ctx context.Context, server string) (*grpc.ClientConn, agentv1.SessionService_ConnectClient, error) {
	opts := []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(a.TLS.Clone()))}
	if a.Dial != nil {
		opts = append(opts, grpc.WithContextDialer(a.Dial))
	}
	conn, err := grpc.NewClient("passthrough:"+server, opts...)
	if err != nil {
		return nil, nil, fmt.Errorf("client of %s: %w", server, err)
	}
	stream, err := agentv1.NewSessionServiceClient(conn).Connect(ctx)
	if err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	_ = stream.Send(&agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Hello{Hello: &agentv1.Hello{
		NodeId: a.Node, JournalId: a.Journal, AgentVersion: "simulated", PeerAddress: "127.0.0.1:1", BootId: "simulated",
	}}})
	return conn, stream, nil
}

// Session keeps one session with one server until it breaks or ctx ends. It
// gives the leader that the server named, or "".
func (a *Agent) Session(ctx context.Context, server string) (leader string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, stream, err := a.open(ctx, server)
	if err != nil {
		return ""
	}
	defer func() { _ = conn.Close() }()
	var sending sync.Mutex
	send := func(m *agentv1.AgentMessage) error {
		sending.Lock()
		defer sending.Unlock()
		if err := stream.Send(m); err != nil {
			return fmt.Errorf("sending: %w", err)
		}
		return nil
	}
	var beats sync.WaitGroup
	defer beats.Wait()
	defer cancel()
	for {
		m, err := stream.Recv()
		if err != nil {
			return ""
		}
		switch k := m.GetKind().(type) {
		case *agentv1.LeaderMessage_NotLeader:
			return k.NotLeader.GetLeaderAddress()
		case *agentv1.LeaderMessage_Welcome:
			a.mu.Lock()
			a.welcomes = append(a.welcomes, Welcome{Server: server, Term: m.GetTerm(), At: time.Now()})
			a.mu.Unlock()
			interval := time.Duration(k.Welcome.GetHeartbeatIntervalMs()) * time.Millisecond
			beats.Go(func() { _ = a.beat(ctx, interval, send) })
		case *agentv1.LeaderMessage_HeartbeatAck:
			a.heartbeats.Add(1)
		default:
			a.note(server, m)
			if t := m.GetTask(); t != nil && a.Outcome != nil {
				if err := send(ended(t, a.Outcome(t))); err != nil {
					return ""
				}
			}
		}
	}
}

func (a *Agent) note(server string, m *agentv1.LeaderMessage) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.received = append(a.received, Received{Server: server, Message: m, At: time.Now()})
}

// ended is the report of a task's end.
func ended(t *agentv1.Task, o *agentv1.TaskOutcome) *agentv1.AgentMessage {
	state := agentv1.TaskState_TASK_STATE_FAILED
	if o.GetErrorCode() == "" {
		state = agentv1.TaskState_TASK_STATE_SUCCEEDED
	}
	return &agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Report{Report: &agentv1.TaskReport{TaskId: t.GetId(), State: state, Outcome: o}}}
}

// beat sends the inventory, then heartbeats, until ctx ends.
func (a *Agent) beat(ctx context.Context, interval time.Duration, send func(*agentv1.AgentMessage) error) error {
	if interval <= 0 {
		return errors.New("the leader set no interval")
	}
	capacity := a.Capacity
	if capacity == nil {
		capacity = &debvisorv1.NodeCapacity{Cpus: 16, MemoryBytes: 64 << 30, MemoryAvailableBytes: 60 << 30}
	}
	err := send(&agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Inventory{Inventory: &agentv1.Inventory{
		Seq: 1, Complete: true, Capacity: capacity, Domains: a.Domains,
		Capabilities: &debvisorv1.NodeCapabilities{Arch: "x86_64"},
	}}})
	if err != nil {
		return err
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for seq := uint64(1); ; seq++ {
		err := send(&agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Heartbeat{Heartbeat: &agentv1.Heartbeat{
			Seq: seq, Health: &debvisorv1.Health{
				NodeId: &debvisorv1.NodeId{Id: a.Node}, Overall: debvisorv1.StatusCode_STATUS_OK, CephStatus: "none",
				CpuLoad: 0.1 + float64(seq%7)/100, MemUsedPct: 6.25, DiskUsedPct: 40,
			},
		}}})
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
