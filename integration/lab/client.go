package lab

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// OperatorTLS is the operator's client configuration towards any replica. It needs the cluster that StartCluster makes.
func (l *Lab) OperatorTLS() (*tls.Config, error) {
	first := l.Replicas[0]
	certPEM, err := os.ReadFile(first.PKI("operator.pem"))
	if err != nil {
		return nil, fmt.Errorf("operator's certificate: %w", err)
	}
	keyPEM, err := os.ReadFile(first.PKI("operator-key.pem"))
	if err != nil {
		return nil, fmt.Errorf("operator's key: %w", err)
	}
	return l.TLSWith(certPEM, keyPEM)
}

// Dial makes a client connection from the operator's place to a replica, as the operator. The caller closes it.
func (l *Lab) Dial(r *Replica) (*grpc.ClientConn, error) {
	config, err := l.OperatorTLS()
	if err != nil {
		return nil, err
	}
	return l.DialAs(r, config)
}

// DialAs is Dial with another identity.
func (l *Lab) DialAs(r *Replica, config *tls.Config) (*grpc.ClientConn, error) {
	return l.DialTo(r.Callers(), config)
}

// DialTo is DialAs with the address of any listener.
func (l *Lab) DialTo(addr string, config *tls.Config) (*grpc.ClientConn, error) {
	dialer := func(ctx context.Context, addr string) (net.Conn, error) {
		return l.Operator.DialContext(ctx, "tcp", addr)
	}
	conn, err := grpc.NewClient("passthrough:"+addr,
		grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithContextDialer(dialer))
	if err != nil {
		return nil, fmt.Errorf("client of %s: %w", addr, err)
	}
	return conn, nil
}

// Leader waits until the replicas that run agree on who of them leads, and returns it. The replicas that stand still, if any,
// have to be named: they would not answer, and do not count.
func (l *Lab) Leader(ctx context.Context, still ...*Replica) (*Replica, error) {
	var leader *Replica
	err := Eventually(ctx, "a replica leads", func() error {
		leader = nil
		for _, r := range l.Replicas {
			if r.Process == nil || !r.Process.Alive() || slices.Contains(still, r) {
				continue
			}
			says, err := l.leaderOf(ctx, r)
			switch {
			case err != nil:
				return fmt.Errorf("%s: %w", r.Name, err)
			case !says.Process.Alive() || slices.Contains(still, says):
				return fmt.Errorf("%s still takes %s for the leader", r.Name, says.Name)
			case leader != nil && says != leader:
				return fmt.Errorf("%s takes %s for the leader, others %s", r.Name, says.Name, leader.Name)
			}
			leader = says
		}
		if leader == nil {
			return errors.New("no replica runs")
		}
		return nil
	})
	return leader, err
}

// leaderOf asks one replica who leads.
func (l *Lab) leaderOf(ctx context.Context, r *Replica) (*Replica, error) {
	conn, err := l.Dial(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	cluster, err := debvisorv1.NewClusterServiceClient(conn).GetCluster(ctx, &debvisorv1.Empty{})
	if err != nil {
		return nil, err
	}
	for _, known := range cluster.GetReplicas() {
		for _, r := range l.Replicas {
			if known.GetName() == cluster.GetLeader() && known.GetCallersAddress() == r.Callers() {
				return r, nil
			}
		}
	}
	return nil, fmt.Errorf("leader %q is none of the lab's replicas", cluster.GetLeader())
}

// Follower returns a running replica that does not lead, beside the one that does.
func (l *Lab) Follower(ctx context.Context) (follower, leader *Replica, err error) {
	if leader, err = l.Leader(ctx); err != nil {
		return nil, nil, err
	}
	for _, r := range l.Replicas {
		if r != leader && r.Process != nil && r.Process.Alive() {
			return r, leader, nil
		}
	}
	return nil, leader, errors.New("no replica runs besides the leader")
}
