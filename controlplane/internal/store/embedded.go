package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

// Embedded is an etcd member inside this process. Its clients use a unix
// socket, which only this user can open; its peers speak mutual TLS 1.3 with
// certificates of etcd's own CA. Nothing else listens.
type Embedded struct {
	etcd   *embed.Etcd
	client *clientv3.Client
	log    hclog.Logger
	// logFile is etcd's own log, nil where it goes to log.
	logFile io.Closer
	close   sync.Once
}

// StartEmbedded starts a member and waits until linearizable reads through it
// work: until there is a quorum and, for a replica that joins, until it has
// been promoted from learner. ctx bounds the start only.
func StartEmbedded(ctx context.Context, cfg EmbeddedConfig) (*Embedded, error) {
	ec, err := cfg.etcd()
	if err != nil {
		return nil, err
	}
	e := &Embedded{log: cfg.Log}
	zapLog := quietZap(cfg.Log.Named("etcd"))
	if cfg.LogFile != "" {
		zl, file, err := fileZap(cfg.LogFile)
		if err != nil {
			return nil, err
		}
		zapLog, e.logFile = zl, file
	}
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapLog)
	if err := e.start(ctx, ec, SocketPath(cfg.DataDir), cfg.Meter); err != nil {
		e.Close()
		return nil, err
	}
	return e, nil
}

func (e *Embedded) start(ctx context.Context, ec *embed.Config, socket string, meter Meter) error {
	var err error
	if e.etcd, err = startEtcd(ec); err != nil {
		return err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return fmt.Errorf("closing etcd's socket to others: %w", err)
	}
	if e.client, err = dial([]string{"unix://" + socket}, nil, meter, e.log); err != nil {
		return fmt.Errorf("connecting to etcd at %s: %w", socket, err)
	}
	return awaitLinearizable(ctx, e.client, e.etcd.Err(), e.log)
}

// Client is connected to the member by its unix socket; Close closes it.
func (e *Embedded) Client() *clientv3.Client { return e.client }

// MemberID is the member's id in etcd's member list.
func (e *Embedded) MemberID() uint64 { return uint64(e.etcd.Server.MemberID()) }

// Run returns when etcd fails or this member is removed from the cluster, and
// when ctx ends; in each case the member has stopped by then.
func (e *Embedded) Run(ctx context.Context) error {
	defer e.Close()
	select {
	case err, open := <-e.etcd.Err():
		if !open {
			return errors.New("etcd was closed")
		}
		return fmt.Errorf("etcd has failed: %w", err)
	case <-e.etcd.Server.StopNotify():
		return errors.New("etcd has stopped: the member was removed from the cluster, or its disk failed")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close stops the member and returns when it has. Only the first call does
// anything. For a member that Run was never called for.
func (e *Embedded) Close() {
	e.close.Do(func() {
		// First the client: etcd waits for its calls, watches among them.
		if e.client != nil {
			if err := e.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
				e.log.Warn("closing the client of etcd", "error", err)
			}
		}
		if e.etcd != nil {
			select {
			case <-e.etcd.Server.ReadyNotify():
			default:
				// It never had a quorum; its Close would wait for one.
				e.etcd.Server.HardStop()
			}
			e.etcd.Close()
		}
		if e.logFile != nil {
			if err := e.logFile.Close(); err != nil {
				e.log.Warn("closing etcd's log", "error", err)
			}
		}
	})
}

// SocketPath is the embedded member's client socket in a data directory.
func SocketPath(dataDir string) string { return filepath.Join(dataDir, "etcd", "client.sock") }
