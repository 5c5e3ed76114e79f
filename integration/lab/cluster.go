package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// StartCluster makes the cluster out of the replicas and lets the agents of all nodes join it. It returns when every replica
// serves and every agent runs; whether the leader has heard of all nodes yet is for the caller to wait for.
func (l *Lab) StartCluster(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for i, r := range l.Replicas {
		if err := l.startReplica(ctx, i); err != nil {
			return fmt.Errorf("replica %s: %w", r.Name, err)
		}
		l.opts.Log("replica %s serves on %s", r.Name, r.Callers())
	}
	nodes := l.AllNodes()
	failed := make([]error, len(nodes))
	var group sync.WaitGroup
	for i, n := range nodes {
		group.Go(func() {
			if failed[i] = n.Agent.Enroll(ctx, l.Replicas[0]); failed[i] == nil {
				failed[i] = n.Agent.Start()
			}
			if failed[i] == nil {
				l.opts.Log("the agent of %s runs", n.Name)
			}
		})
	}
	group.Wait()
	return errors.Join(failed...)
}

func (l *Lab) startReplica(ctx context.Context, i int) error {
	r, first := l.Replicas[i], l.Replicas[0]
	var err error
	if i == 0 {
		err = r.Init(ctx)
	} else {
		err = r.Join(ctx, first)
	}
	if err == nil {
		err = r.Start()
	}
	if err == nil {
		err = r.Serving(ctx)
	}
	return err
}

// tail returns the end of a log for an error message.
func tail(path string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(raw[max(0, len(raw)-2000):])
}
