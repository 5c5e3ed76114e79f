package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// A connection on which nothing comes is pinged after keepaliveTime and
	// given up after keepaliveTimeout more. etcd refuses pings more often than
	// every 5 s.
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 3 * time.Second
	// attemptTimeout and attemptPause pace the wait for a store that answers.
	attemptTimeout = 2 * time.Second
	attemptPause   = 200 * time.Millisecond
)

// dial makes a client. It does not wait for a connection.
func dial(endpoints []string, tlsConfig *tls.Config, meter Meter, log hclog.Logger) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		DialOptions:          measured(meter),
		Endpoints:            endpoints,
		TLS:                  tlsConfig,
		DialKeepAliveTime:    keepaliveTime,
		DialKeepAliveTimeout: keepaliveTimeout,
		Logger:               quietZap(log.Named("etcd-client")),
	})
}

// awaitLinearizable waits until reads that a quorum has confirmed work. They
// do not while there is no quorum, and on a learner until it is promoted.
// failed, when it is ready, ends the wait with its error.
func awaitLinearizable(ctx context.Context, client *clientv3.Client, failed <-chan error, log hclog.Logger) error {
	var told string
	for {
		err := attempt(ctx, client)
		if err == nil {
			return nil
		}
		if why := reason(err); why != told {
			log.Info("waiting for the cluster's store", "reason", why)
			told = why
		}
		select {
		case err := <-failed:
			return fmt.Errorf("etcd has failed: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("waiting for the cluster's store (%s): %w", told, ctx.Err())
		case <-time.After(attemptPause):
		}
	}
}

func attempt(ctx context.Context, client *clientv3.Client) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	_, err := client.Get(ctx, EpochKey(), clientv3.WithCountOnly())
	return err
}

// reason says in a few words why a store does not answer.
func reason(err error) string {
	if errors.Is(err, rpctypes.Error(rpctypes.ErrGRPCNotSupportedForLearner)) {
		return "this replica is a learner until the leader promotes it"
	}
	return err.Error()
}
