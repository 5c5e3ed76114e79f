package controlplane

import (
	"context"
	"time"
)

const (
	// maxDrain is the longest that a replica that stops may go on serving: the
	// service manager's patience is bounded.
	maxDrain = time.Minute
	// handOver is how long etcd's leadership is waited for to be elsewhere.
	handOver = time.Second
	// firstView is how long listeners wait for the cluster's state before they
	// serve: health is told even where it cannot be read.
	firstView = 5 * time.Second
)

// What a replica does when it is asked to stop is the group's order, last added
// first: it says that it stops (watchOver) · etcd's leadership goes elsewhere
// (yieldEtcd) · it resigns, and agents leave for the next leader (elect) ·
// streams are told to move (Move) · it serves on, for who has not noticed yet
// (drain) · calls that wait for operations are told to ask another replica
// (Leave) · listeners finish what is at work · the audit log is flushed · etcd.

// yieldEtcd waits until ctx ends, and then hands etcd's own leadership to
// another replica: were it lost with the process, no replica could write for
// the time of an election.
func (r *replica) yieldEtcd(ctx context.Context) error {
	<-ctx.Done()
	if r.embedded == nil {
		return nil
	}
	done := make(chan struct{})
	go func() { // its own time limit is longer
		defer close(done)
		r.embedded.Yield()
	}()
	select {
	case <-done:
	case <-time.After(handOver):
	}
	return nil
}

// drain waits until ctx ends, and then goes on for as long as callers and what
// balances them may take to notice. Where there is no other replica, nobody is
// waited for.
func (r *replica) drain(ctx context.Context) error {
	<-ctx.Done()
	if len(r.view.Current().Replicas) > 1 {
		time.Sleep(r.cfg.Drain)
	}
	return nil
}

// seen waits until the cluster's state has been read, before which every call
// would be refused, or some seconds. False: ctx has ended.
func (r *replica) seen(ctx context.Context) bool {
	late := time.NewTimer(firstView)
	defer late.Stop()
	select {
	case <-r.view.Ready():
	case <-late.C:
		r.cfg.Log.Warn("the cluster's state has not been read yet: only health is answered until it is")
	case <-ctx.Done():
		return false
	}
	return true
}

// serveCallers is the callers' listener.
func (r *replica) serveCallers(ctx context.Context) error {
	if !r.seen(ctx) {
		return r.callers.lis.Close()
	}
	return r.callers.Run(ctx)
}

// serveGateway is the gateway.
func (r *replica) serveGateway(ctx context.Context) error {
	if !r.seen(ctx) {
		return r.gateway.Close()
	}
	return r.gateway.Run(ctx)
}
