package integration

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/obs/obstest"
)

// collector takes traces over TLS; endpoint and ca are what its clients are told.
type collector struct {
	obstest.Collector
	endpoint, ca string
}

// collector serves one in the operator's place until the test ends.
func (c *cluster) collector() *collector {
	c.t.Helper()
	ca, err := c.Authority()
	c.must(err)
	certPEM, keyPEM, err := lab.Issue(ca, certs.ServerLeaf(lab.ClusterName, "collector", []string{c.Operator.Addr}, time.Hour), time.Now())
	c.must(err)
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	c.must(err)
	var listener net.Listener
	c.must(c.Operator.InNetns(func() error {
		var err error
		listener, err = net.Listen("tcp", c.Operator.Addr+":0")
		return err
	}))
	col := &collector{endpoint: "https://" + listener.Addr().String(), ca: c.Replicas[0].PKI("ca.pem")}
	stop := col.Serve(listener, grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13})))
	c.t.Cleanup(stop)
	return col
}

// traced has all daemons of the lab send their traces there until the test ends.
func (c *cluster) traced(col *collector) {
	c.t.Helper()
	restart := func(replica, agent []string) (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // at the test's end too
		defer cancel()
		before := c.termOf(ctx, c.Replicas[0])
		for _, r := range c.Replicas {
			r.Env = replica
			err = errors.Join(err, r.Process.Kill(), r.Start())
		}
		for _, n := range c.Nodes {
			n.Agent.Env = agent
			err = errors.Join(err, n.Agent.Process.Kill(), n.Agent.Start())
		}
		// The former leader's record outlives it for a while, as if it led.
		return errors.Join(err, lab.Eventually(ctx, "a replica leads that was elected since", func() error {
			for _, r := range c.Replicas {
				if now := c.termOf(ctx, r); now <= before {
					return fmt.Errorf("%s knows of term %d, and of %d before", r.Name, now, before)
				}
			}
			return nil
		}))
	}
	c.t.Cleanup(func() {
		if err := restart(nil, nil); err != nil {
			c.t.Error(err)
		}
	})
	c.must(restart([]string{"RPC_TRACE_ENDPOINT=" + col.endpoint, "RPC_TRACE_CA=" + col.ca},
		[]string{"DEBVISOR_AGENT_TRACE_ENDPOINT=" + col.endpoint, "DEBVISOR_AGENT_TRACE_CA=" + col.ca}))
	c.must(c.repair(c.within(time.Minute)))
}

// termOf is the leader's term as a replica knows it; 0: it knows of none.
func (c *cluster) termOf(ctx context.Context, r *lab.Replica) int64 {
	conn, err := c.Dial(r)
	if err != nil {
		return 0
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	says, err := debvisorv1.NewClusterServiceClient(conn).GetCluster(ctx, &debvisorv1.Empty{})
	if err != nil {
		return 0
	}
	return says.GetTerm()
}
