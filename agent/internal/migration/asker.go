package migration

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/certs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/rpc"
)

const (
	askFor = 20 * time.Second
	// askAgain is the first pause between two questions; it doubles up to
	// askOften while the answer is being waited for, a guest perhaps standing
	// still, and up to askSeldom once the other side has ended.
	askAgain  = 50 * time.Millisecond
	askOften  = 200 * time.Millisecond
	askSeldom = 2 * time.Second
)

// peers keeps one connection to each agent that is asked.
type peers struct {
	certs   *certs.Reloader
	cluster string

	mu    sync.Mutex
	conns map[string]*grpc.ClientConn // by node and address
}

func newPeers(c *certs.Reloader, cluster string) *peers {
	return &peers{certs: c, cluster: cluster, conns: map[string]*grpc.ClientConn{}}
}

// conn gives the connection to a node's agent. A pause before it is dialled
// again is cut short: whoever asks paces itself.
func (p *peers) conn(node, address string) (*grpc.ClientConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := node + " " + address
	if p.conns[key] == nil {
		conn, err := rpc.Dial(address, p.certs.PeerClient(p.cluster, node))
		if err != nil {
			return nil, err
		}
		p.conns[key] = conn
	}
	p.conns[key].ResetConnectBackoff()
	return p.conns[key], nil
}

func (p *peers) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for key, conn := range p.conns {
		errs = append(errs, conn.Close())
		delete(p.conns, key)
	}
	return errors.Join(errs...)
}

// asker asks one agent about its side for as long as it is run.
type asker struct {
	peers         *peers
	node, address string
	taskID        string
	log           hclog.Logger
	// news gets every answer; kick ends a pause between two questions.
	news chan<- *agentv1.Side
	kick <-chan struct{}
}

// run asks until ctx ends. A question stays open at the other agent until its
// side has ended, so that the answer comes at once.
func (a *asker) run(ctx context.Context) {
	pause := askAgain
	var last *agentv1.Side
	for ctx.Err() == nil {
		side, err := a.ask(ctx, last.GetEnded())
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			a.log.Debug("the other agent does not answer", "node", a.node, "error", err)
		case proto.Equal(side, last):
		default:
			last, pause = side, askAgain
			select {
			case a.news <- side:
			case <-ctx.Done():
				return
			}
		}
		longest := askOften
		if last.GetEnded() {
			longest = askSeldom
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
			pause = min(2*pause, longest)
		case <-a.kick:
			pause = askAgain
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

func (a *asker) ask(ctx context.Context, ended bool) (*agentv1.Side, error) {
	conn, err := a.peers.conn(a.node, a.address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askFor+5*time.Second)
	defer cancel()
	req := &agentv1.LookRequest{TaskId: a.taskID}
	if !ended {
		req.WaitEndedMs = uint32(askFor.Milliseconds())
	}
	answer, err := agentv1.NewPeerServiceClient(conn).Look(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("asking %s about %s: %w", a.node, a.taskID, err)
	}
	return answer.GetSide(), nil
}
