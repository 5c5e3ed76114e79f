package api_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/debvisor/debvisor/certs"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// BenchmarkListNodes measures a call through the whole chain and, for
// comparison, the same answer by a server that has none. Both figures hold the
// client's share, too.
func BenchmarkListNodes(b *testing.B) {
	r := start(b, 1<<30)
	for i := range 10 {
		r.node(fmt.Sprintf("node-%d", i), nil)
	}
	conn := r.principal("operator")
	list, err := debvisorv1.NewNodeServiceClient(conn).ListNodes(b.Context(), &debvisorv1.Empty{})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("chain", func(b *testing.B) { load(b, conn) })
	b.Run("bare", func(b *testing.B) { load(b, bare(b, r, list)) })
}

func load(b *testing.B, conn *grpc.ClientConn) {
	client := debvisorv1.NewNodeServiceClient(conn)
	b.ReportAllocs()
	b.SetParallelism(50)
	before := cpuTime(b)
	defer func() {
		b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
	}()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := client.ListNodes(b.Context(), &debvisorv1.Empty{}); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// cpuTime is the processor time that this process has used.
func cpuTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

type bareNodes struct {
	debvisorv1.UnimplementedNodeServiceServer
	list *debvisorv1.NodeList
}

func (s *bareNodes) ListNodes(context.Context, *debvisorv1.Empty) (*debvisorv1.NodeList, error) {
	return s.list, nil
}

// bare serves the list with grpc-go's defaults over mutual TLS.
func bare(b *testing.B, r *replica, list *debvisorv1.NodeList) *grpc.ClientConn {
	b.Helper()
	files := r.issue("bare", certs.ServerLeaf(clusterName, "bare", nil, 0))
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		b.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(r.ca.Certificate())
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	})))
	debvisorv1.RegisterNodeServiceServer(server, &bareNodes{list: list})
	listener, err := (&net.ListenConfig{}).Listen(b.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	background(b, func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, server.Stop)
		defer stop()
		return server.Serve(listener)
	})
	outer := r.address
	r.address = listener.Addr().String()
	defer func() { r.address = outer }()
	return r.principal("operator")
}
