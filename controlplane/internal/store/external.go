package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// ExternalConfig says how an outside etcd cluster is reached. Its members must
// take transactions of 1024 operations (--max-txn-ops=1024).
type ExternalConfig struct {
	// Endpoints are host:port, https://host:port or unix:///path.
	Endpoints []string
	// CAFile, CertFile and KeyFile are for mutual TLS; needed unless every
	// endpoint is a unix socket. The pair is read anew at each handshake.
	CAFile, CertFile, KeyFile string
	// Meter is told of each request to etcd; nil: nobody is.
	Meter Meter
	Log   hclog.Logger
}

// outsideWait is how long an outside etcd may take to answer when a replica
// starts: it is tried again by whoever starts the replica again.
const outsideWait = 20 * time.Second

// Connect connects to an outside etcd and waits until linearizable reads work.
// The client is the caller's to close.
func Connect(ctx context.Context, cfg ExternalConfig) (*clientv3.Client, error) {
	tlsConfig, err := cfg.tls()
	if err != nil {
		return nil, err
	}
	client, err := dial(cfg.Endpoints, tlsConfig, cfg.Meter, cfg.Log)
	if err != nil {
		return nil, fmt.Errorf("connecting to etcd at %s: %w", strings.Join(cfg.Endpoints, ", "), err)
	}
	waiting, cancel := context.WithTimeout(ctx, outsideWait)
	defer cancel()
	if err := awaitLinearizable(waiting, client, nil, cfg.Log); err != nil {
		_ = client.Close() // the error above says more
		if ctx.Err() == nil {
			return nil, fmt.Errorf("etcd at %s (--etcd-endpoints) has not answered for %s: is it there, and does it trust --etcd-cert? %w",
				strings.Join(cfg.Endpoints, ", "), outsideWait, err)
		}
		return nil, err
	}
	return client, nil
}

// Check reads the files that connecting needs, and asks nobody.
func (cfg ExternalConfig) Check() error {
	_, err := cfg.tls()
	return err
}

// tls is nil where every endpoint is a unix socket.
func (cfg ExternalConfig) tls() (*tls.Config, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, errdefs.Field("--etcd-endpoints", "", "at least one")
	}
	remote := false
	for _, e := range cfg.Endpoints {
		scheme, _, has := strings.Cut(e, "://")
		switch {
		case has && scheme == "unix":
		case has && scheme != "https":
			return nil, errdefs.Field("--etcd-endpoints", e, "host:port, https://host:port or unix:///path")
		default:
			remote = true
		}
	}
	if !remote {
		return nil, nil
	}
	pem, err := os.ReadFile(cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("reading the etcd CA: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("the etcd CA %s holds no certificate", cfg.CAFile)
	}
	pair := func() (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("the etcd client certificate: %w", err)
		}
		return &cert, nil
	}
	if _, err := pair(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		RootCAs:              roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair() },
	}, nil
}
