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
	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// bare is the baseline: a plain grpc-go server over mTLS that answers
// ListNodes with the bytes it was given, and nothing else.
type bare struct {
	debvisorv1.UnimplementedNodeServiceServer
	list *debvisorv1.NodeList
}

func (b *bare) ListNodes(context.Context, *debvisorv1.Empty) (*debvisorv1.NodeList, error) {
	return b.list, nil
}

// bareFiles are what the baseline's process is given.
type bareFiles struct{ listen, cert, key, ca, answer string }

// serveBare is the whole life of the baseline's process, which its lab ends.
func serveBare(f bareFiles) error {
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return fmt.Errorf("loading the baseline's certificate: %w", err)
	}
	pem, err := os.ReadFile(f.ca)
	if err != nil {
		return fmt.Errorf("reading the CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s holds no certificate", f.ca)
	}
	data, err := os.ReadFile(f.answer)
	if err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	list := &debvisorv1.NodeList{}
	if err := proto.Unmarshal(data, list); err != nil {
		return fmt.Errorf("decoding the answer: %w", err)
	}
	lis, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", f.listen)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13,
	})))
	debvisorv1.RegisterNodeServiceServer(srv, &bare{list: list})
	if err := srv.Serve(lis); err != nil {
		return fmt.Errorf("serving: %w", err)
	}
	return nil
}
