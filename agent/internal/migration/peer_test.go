package migration

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/certs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/rpc"
)

// agents make certificates of one cluster, and serve what one of them sees.
type agents struct {
	t  *testing.T
	ca *certs.Authority
}

func newAgents(t *testing.T) *agents {
	t.Helper()
	ca, err := certs.NewAuthority("testing", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &agents{t, ca}
}

func (a *agents) certificate(node string) *certs.Reloader {
	a.t.Helper()
	key, err := certs.NewKey()
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, err := a.ca.Issue(key.Public(), certs.AgentLeaf("testing", node, 0), time.Now())
	if err != nil {
		a.t.Fatal(err)
	}
	keyPEM, err := certs.EncodeKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	dir := a.t.TempDir()
	f := certs.Files{CA: filepath.Join(dir, "ca"), Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key")}
	for path, data := range map[string][]byte{f.CA: a.ca.PEM(), f.Cert: leaf, f.Key: keyPEM} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	r, err := certs.NewReloader(f, hclog.NewNullLogger())
	if err != nil {
		a.t.Fatal(err)
	}
	return r
}

// serve has the agent of a node answer at an address.
func (a *agents) serve(node, address string) (at string, m *Migration, stop func()) {
	a.t.Helper()
	own := a.certificate(node)
	m = &Migration{cfg: Config{Node: node, Cluster: "testing"}, sides: newSides(time.Now)}
	server, err := rpc.NewServer(rpc.ServerConfig{TLS: own.PeersServer("testing"), Log: hclog.NewNullLogger()})
	if err != nil {
		a.t.Fatal(err)
	}
	m.Register(server)
	l, err := net.Listen("tcp", address)
	if err != nil {
		a.t.Fatal(err)
	}
	go func() { _ = server.Serve(l) }()
	a.t.Cleanup(server.Stop)
	return l.Addr().String(), m, server.Stop
}

// ask follows a task of node b as the agent of another node.
func (a *agents) ask(node, address, taskID string) <-chan *agentv1.Side {
	a.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	news := make(chan *agentv1.Side)
	p := newPeers(a.certificate(node), "testing")
	one := &asker{peers: p, node: "b", address: address, taskID: taskID, log: hclog.NewNullLogger(), news: news}
	done := make(chan struct{})
	go func() {
		defer close(done)
		one.run(ctx)
	}()
	a.t.Cleanup(func() {
		cancel()
		<-done
		_ = p.close()
	})
	return news
}

func next(t *testing.T, news <-chan *agentv1.Side, want *agentv1.Side) {
	t.Helper()
	select {
	case got := <-news:
		if !proto.Equal(got, want) {
			t.Fatalf("heard %v, want %v", got, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("heard nothing, want %v", want)
	}
}

func TestTheAnswerComesWhenTheSideEnds(t *testing.T) {
	a := newAgents(t)
	address, m, _ := a.serve("b", "127.0.0.1:0")
	cell := m.sides.begin("op/1/migrate-send", "a", &agentv1.Side{State: outgoing})
	news := a.ask("a", address, "op/1/migrate-send")
	gone := &agentv1.Side{State: absent, Ended: true}
	select {
	case side := <-news:
		t.Fatalf("answered before it had ended: %v", side)
	case <-time.After(100 * time.Millisecond):
	}
	cell.set(gone)
	next(t, news, gone)
	cell.end(time.Now()) // the task is over, its side still known
	next(t, a.ask("a", address, "op/1/migrate-send"), gone)
}

func TestOnlyTheOtherNodeOfTheMigrationIsAnswered(t *testing.T) {
	a := newAgents(t)
	address, m, _ := a.serve("b", "127.0.0.1:0")
	m.sides.begin("op/1/migrate-send", "a", &agentv1.Side{State: outgoing})
	for node, taskID := range map[string]string{"c": "op/1/migrate-send", "a": "op/2/migrate-send"} {
		conn, err := rpc.Dial(address, a.certificate(node).PeerClient("testing", "b"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = agentv1.NewPeerServiceClient(conn).Look(t.Context(), &agentv1.LookRequest{TaskId: taskID})
		if status.Code(err) != codes.NotFound {
			t.Errorf("%s asks about %s: %v", node, taskID, err)
		}
		_ = conn.Close()
	}
}

func TestAsksOnOverARestart(t *testing.T) {
	a := newAgents(t)
	address, m, stop := a.serve("b", "127.0.0.1:0")
	m.sides.begin("op/1/migrate-send", "a", &agentv1.Side{State: outgoing})
	news := a.ask("a", address, "op/1/migrate-send")
	stop()
	_, m, _ = a.serve("b", address)
	side := &agentv1.Side{State: running, Ended: true, Reason: "aborted"}
	m.sides.begin("op/1/migrate-send", "a", side)
	next(t, news, side)
}

func TestSidesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSides(time.Now)
		s.begin("old", "a", &agentv1.Side{}).end(s.now())
		s.begin("at work", "a", &agentv1.Side{})
		time.Sleep(rememberFor)
		s.begin("third", "a", &agentv1.Side{})
		if s.find("old", "a") == nil {
			t.Error("forgotten too soon")
		}
		time.Sleep(time.Second)
		s.begin("fourth", "a", &agentv1.Side{})
		if s.find("old", "a") != nil || s.find("at work", "a") == nil || s.find("third", "b") != nil {
			t.Error("the wrong ones are remembered")
		}
	})
}

func TestWhatHasEndedDoesNotBeginAgain(t *testing.T) {
	h := &half{log: hclog.NewNullLogger(), other: &agentv1.Side{}}
	gone := &agentv1.Side{State: absent, Ended: true}
	h.hear(&agentv1.Side{State: outgoing})
	h.hear(gone)
	h.hear(&agentv1.Side{State: outgoing}) // relayed, and overtaken
	if !proto.Equal(h.other, gone) {
		t.Errorf("took %v for the news", h.other)
	}
}
