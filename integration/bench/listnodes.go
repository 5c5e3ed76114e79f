package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const (
	callers     = 100
	connections = 10
	burst       = 4 * time.Second
)

// listNodes measures ListNodes of a replica at 100 callers against a bare
// server that sends the same bytes, both beside each other in one namespace.
func (b *bench) listNodes(ctx context.Context) error {
	_, replica, conn, err := b.follower(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	list, err := debvisorv1.NewNodeServiceClient(conn).ListNodes(ctx, &debvisorv1.Empty{})
	if err != nil {
		return fmt.Errorf("listing nodes: %w", err)
	}
	baseline, addr, err := b.startBare(ctx, replica, list)
	if err != nil {
		return err
	}
	defer func() { _ = baseline.Kill() }()
	ours, err := b.conns(replica.Callers())
	if err != nil {
		return err
	}
	theirs, err := b.conns(addr)
	if err != nil {
		return err
	}
	call := func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := debvisorv1.NewNodeServiceClient(c).ListNodes(ctx, &debvisorv1.Empty{})
		return err
	}
	var ratio, cpu, rate, bareRate []float64
	for round := range b.rounds + 1 {
		var mine, bare [2]load
		for i, step := range []struct {
			conns []*grpc.ClientConn
			pid   int
			into  *load
		}{
			{ours, replica.Process.Pid, &mine[0]},
			{theirs, baseline.Pid, &bare[0]},
			{theirs, baseline.Pid, &bare[1]},
			{ours, replica.Process.Pid, &mine[1]},
		} {
			if *step.into, err = drive(ctx, step.conns, callers, burst, step.pid, call); err != nil {
				return fmt.Errorf("burst %d: %w", i, err)
			}
		}
		if round == 0 {
			continue // warms both up
		}
		r, br := (mine[0].throughput+mine[1].throughput)/2, (bare[0].throughput+bare[1].throughput)/2
		c, bc := (mine[0].cpuPerCall+mine[1].cpuPerCall)/2, (bare[0].cpuPerCall+bare[1].cpuPerCall)/2
		b.say("round %d: %.0f/s ÷ %.0f/s, CPU %.0f µs ÷ %.0f µs", round, r, br, c, bc)
		ratio, cpu, rate, bareRate = append(ratio, r/br), append(cpu, c/bc), append(rate, r), append(bareRate, br)
	}
	detail := fmt.Sprintf("%d callers on %d connections, %d nodes (%d bytes), %.0f/s ÷ bare %.0f/s, median of %d rounds of A B B A",
		callers, connections, len(list.GetNodes()), proto.Size(list), median(rate), median(bareRate), len(ratio))
	b.add(Figure{Name: "listnodes_vs_bare_throughput", Value: median(ratio), Goal: 0.85, Better: "higher", Unit: "ratio", Detail: detail})
	b.add(Figure{Name: "listnodes_vs_bare_cpu", Value: median(cpu), Goal: 1.25, Better: "lower", Unit: "ratio", Detail: "the server's CPU time a call; " + detail})
	return nil
}

func (b *bench) conns(addr string) ([]*grpc.ClientConn, error) {
	var all []*grpc.ClientConn
	for range connections {
		config, err := b.lab.OperatorTLS()
		if err != nil {
			return nil, fmt.Errorf("the operator's certificate: %w", err)
		}
		c, err := b.lab.DialTo(addr, config)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// startBare starts the baseline beside the replica, with its certificate.
func (b *bench) startBare(ctx context.Context, beside *lab.Replica, list *debvisorv1.NodeList) (*lab.Process, string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", fmt.Errorf("finding the bench itself: %w", err)
	}
	answer := filepath.Join(b.lab.Dir, "answer.pb")
	data, err := proto.Marshal(list)
	if err != nil {
		return nil, "", fmt.Errorf("encoding the answer: %w", err)
	}
	if err := os.WriteFile(answer, data, 0o644); err != nil {
		return nil, "", fmt.Errorf("writing the answer: %w", err)
	}
	addr := beside.Addr + ":9443"
	p, err := beside.Place.Start(lab.Command{
		Name: "the baseline's server", Log: filepath.Join(b.lab.Dir, "bare.log"),
		Args: []string{
			self, "-bare", addr, "-bare-cert", beside.PKI("server.pem"), "-bare-key", beside.PKI("server-key.pem"),
			"-bare-ca", beside.PKI("ca.pem"), "-bare-answer", answer,
		},
	})
	if err != nil {
		return nil, "", fmt.Errorf("starting the baseline: %w", err)
	}
	wait, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return p, addr, lab.Eventually(wait, "the baseline serves", func() error {
		c, err := b.lab.Operator.DialContext(wait, "tcp", addr)
		if err != nil {
			return err
		}
		return c.Close()
	})
}
