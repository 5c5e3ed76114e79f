package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/integration/lab"
	"github.com/debvisor/debvisor/integration/simagent"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// simulated is how many agents heartbeat besides the lab's own.
const simulated = 100

// heartbeats lets 100 agents heartbeat for more than two rewrites of the
// last-known state and counts etcd's write transactions meanwhile.
func (b *bench) heartbeats(ctx context.Context) error {
	leader, _, conn, err := b.follower(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	agents, err := b.simulate(ctx, conn)
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for _, a := range agents {
		wg.Go(func() { _ = a.Run(running) })
	}
	joined, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = lab.Eventually(joined, "every simulated agent heartbeats", func() error {
		for _, a := range agents {
			if a.Heartbeats() < 3 {
				return fmt.Errorf("%s has %d heartbeats", a.Node, a.Heartbeats())
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	const window = 65 * time.Second
	writes, beats, err := b.count(ctx, leader, agents, window)
	if err != nil {
		return err
	}
	b.add(Figure{
		Name: "etcd_writes_per_heartbeat", Value: float64(writes) / float64(beats), Goal: 0.01, Better: "lower", Unit: "ratio",
		Detail: fmt.Sprintf("%d write transactions (etcd's revisions) ÷ %d acknowledged heartbeats of %d simulated agents in %v", writes, beats, simulated, window),
	})
	rss, err := rssMB(leader.Process.Pid)
	if err != nil {
		return err
	}
	agentRSS, err := rssMB(b.lab.Nodes[0].Agent.Process.Pid)
	if err != nil {
		return err
	}
	b.add(Figure{Name: "rpcd_rss_mb", Value: rss, Better: "lower", Unit: "MiB", Detail: fmt.Sprintf("the leader, etcd included, with %d sessions", simulated+len(b.lab.Nodes))})
	b.add(Figure{Name: "agent_rss_mb", Value: agentRSS, Better: "lower", Unit: "MiB", Detail: "an agent after migrations of one guest"})
	return nil
}

// count is etcd's write transactions and the heartbeats in a window.
func (b *bench) count(ctx context.Context, leader *lab.Replica, agents []*simagent.Agent, window time.Duration) (writes, beats int64, err error) {
	cli, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"unix://" + filepath.Join(leader.Data, "etcd", "client.sock")}, DialTimeout: 5 * time.Second, Context: ctx,
	})
	if err != nil {
		return 0, 0, fmt.Errorf("connecting to etcd: %w", err)
	}
	defer func() { _ = cli.Close() }()
	look := func() (revision, total int64, err error) {
		res, err := cli.Get(ctx, "none", clientv3.WithCountOnly())
		if err != nil {
			return 0, 0, fmt.Errorf("asking etcd for its revision: %w", err)
		}
		for _, a := range agents {
			total += a.Heartbeats()
		}
		return res.Header.GetRevision(), total, nil
	}
	rev0, beats0, err := look()
	if err != nil {
		return 0, 0, err
	}
	select {
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	case <-time.After(window): // the window itself is what is measured
	}
	rev1, beats1, err := look()
	return rev1 - rev0, beats1 - beats0, err
}

// simulate registers the nodes and gives each its certificate.
func (b *bench) simulate(ctx context.Context, conn *grpc.ClientConn) ([]*simagent.Agent, error) {
	var servers []string
	for _, r := range b.lab.Replicas {
		servers = append(servers, fmt.Sprintf("%s:%d", r.Addr, lab.AgentsPort))
	}
	agents := make([]*simagent.Agent, simulated)
	for i := range agents {
		node := fmt.Sprintf("sim-%03d", i)
		_, err := debvisorv1.NewNodeServiceClient(conn).RegisterNode(ctx, &debvisorv1.NodeInfo{Id: &debvisorv1.NodeId{Id: node}, Hostname: node})
		if err != nil {
			return nil, fmt.Errorf("registering %s: %w", node, err)
		}
		config, err := b.lab.AgentTLS(node)
		if err != nil {
			return nil, fmt.Errorf("a certificate for %s: %w", node, err)
		}
		agents[i] = &simagent.Agent{
			Node: node, Journal: "journal-" + node, Servers: servers, TLS: config,
			Dial: func(ctx context.Context, addr string) (net.Conn, error) {
				return b.lab.Operator.DialContext(ctx, "tcp", addr)
			},
		}
	}
	return agents, nil
}
