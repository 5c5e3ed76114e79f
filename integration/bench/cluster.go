package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// operatorTLS is the operator's client configuration towards any replica.
func (b *bench) operatorTLS() (*tls.Config, error) {
	first := b.lab.Replicas[0]
	pair, err := tls.LoadX509KeyPair(first.PKI("operator.pem"), first.PKI("operator-key.pem"))
	if err != nil {
		return nil, fmt.Errorf("loading the operator's certificate: %w", err)
	}
	pem, err := os.ReadFile(first.PKI("ca.pem"))
	if err != nil {
		return nil, fmt.Errorf("reading the CA: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, MinVersion: tls.VersionTLS13}, nil
}

// dial connects the operator to an address in the lab.
func (b *bench) dial(addr string) (*grpc.ClientConn, error) {
	cfg, err := b.operatorTLS()
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("passthrough:"+addr, grpc.WithTransportCredentials(credentials.NewTLS(cfg)),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return b.lab.Operator.DialContext(ctx, "tcp", addr)
		}))
	if err != nil {
		return nil, fmt.Errorf("dialling %s: %w", addr, err)
	}
	return conn, nil
}

// leader asks a replica who leads, and waits until one does.
func (b *bench) leader(ctx context.Context, conn *grpc.ClientConn) (*lab.Replica, error) {
	var found *lab.Replica
	err := lab.Eventually(ctx, "a replica leads", func() error {
		c, err := debvisorv1.NewClusterServiceClient(conn).GetCluster(ctx, &debvisorv1.Empty{})
		if err != nil {
			return fmt.Errorf("asking who leads: %w", err)
		}
		for _, known := range c.GetReplicas() {
			for _, r := range b.lab.Replicas {
				if known.GetName() == c.GetLeader() && known.GetCallersAddress() == r.Callers() {
					found = r
					return nil
				}
			}
		}
		return fmt.Errorf("leader %q is none of the lab's replicas", c.GetLeader())
	})
	return found, err
}

// follower is a replica that does not lead, with a connection to it.
func (b *bench) follower(ctx context.Context) (leader, follower *lab.Replica, conn *grpc.ClientConn, err error) {
	first, err := b.dial(b.lab.Replicas[0].Callers())
	if err != nil {
		return nil, nil, nil, err
	}
	defer func() { _ = first.Close() }()
	if leader, err = b.leader(ctx, first); err != nil {
		return nil, nil, nil, err
	}
	for _, r := range b.lab.Replicas {
		if r != leader && r.Process.Alive() {
			conn, err = b.dial(r.Callers())
			return leader, r, conn, err
		}
	}
	return nil, nil, nil, fmt.Errorf("every replica leads")
}
