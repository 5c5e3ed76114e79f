package integration

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// leafLife is the life of replicas' and agents' certificates in TestCertificates.
const leafLife = time.Minute

// TestCertificates exchanges the CA, there and back and there again, while replicas and agents renew their certificates every
// minute, callers call over standing and new connections, an operation is watched and a guest moves. No call fails. Then the old
// CA's certificates open nothing, and a node's agent and a principal's stream that are revoked are cut within 5 s.
func TestCertificates(t *testing.T) {
	own := newShared("DEBVISOR_BIN", "../bin", false, "--agent-cert-life", leafLife.String(), "--server-cert-life", leafLife.String())
	c := own.use(t)
	t.Cleanup(func() {
		if err := own.close(); err != nil {
			t.Error(err)
		}
	})
	g := c.guest("web")
	a, leader := c.follower()
	begun, serials, seen := time.Now(), c.serials(), c.mark(leader.LogFile())
	old, err := c.OperatorTLS()
	c.must(err)
	load := c.load(old)

	c.rotateCA("begin")
	c.rotateCA("switch")
	c.must(g.from.SetMigrateSpeed(g.UUID, steady))
	id := g.begin(a)
	var watch sync.WaitGroup
	watch.Go(func() { load.done("watching the move", c.follows(a, id)) })
	c.rotateCA("back")
	c.rotateCA("switch")
	if op := c.succeeded(time.Minute, a, id); op.GetState() != debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED {
		t.Errorf("the move ended %v", op)
	}
	watch.Wait()
	g.arrived()

	c.refusedAs(nil, old, "before the end of the exchange")
	if _, err := c.Hvctl(c.within(20*time.Second), a.replica, "cert", "rotate-ca", "finish"); err == nil || !holds(err.Error(), "principal/operator") {
		t.Errorf("the old CA goes though the operator's certificate is of it: %v", err)
	}
	renewed, former := c.newOperator(a.replica)
	load.as(renewed)
	c.eventually(leafLife, "everybody has renewed since the beginning", func() error {
		for i, now := range c.serials() {
			if now == serials[i] {
				return fmt.Errorf("%s still has %s", c.Nodes[i].Name, now)
			}
		}
		if left := leafLife*2/3 - time.Since(begun); left > 0 {
			return fmt.Errorf("replicas do in %v", left)
		}
		return nil
	})
	c.leaveBehind(a.replica, former)
	c.rotateCA("finish")
	c.eventually(10*time.Second, "every replica refuses the old CA's certificates", func() error {
		for _, r := range c.Replicas {
			if err := c.calls(r, old); err == nil {
				return fmt.Errorf("%s does not", r.Name)
			}
		}
		return nil
	})
	if calls, failed := load.end(); failed != nil || calls < 100 {
		t.Errorf("of %d calls failed: %v", calls, failed)
	} else {
		t.Logf("%d calls, none failed, in %v", calls, time.Since(begun).Round(time.Second))
	}
	for _, n := range c.Nodes {
		if lines := seen.lines("node liveness", "node="+n.Name); len(lines) > 0 {
			t.Errorf("%s was missed: %v", n.Name, lines)
		}
	}
	c.cutOff(leader)
}

// rotateCA takes the exchange of the CA to its next phase, as soon as everybody is ready.
func (c *cluster) rotateCA(step string) {
	c.t.Helper()
	begin := time.Now()
	c.eventually(time.Minute, "the exchange of the CA: "+step, func() error {
		_, err := c.Hvctl(c.within(20*time.Second), c.Replicas[1], "cert", "rotate-ca", step)
		return err
	})
	c.t.Logf("%s took %v", step, time.Since(begin).Round(10*time.Millisecond))
}

// newOperator issues the operator a certificate of the CA that signs now, and puts it where the lab takes it from.
func (c *cluster) newOperator(at *lab.Replica) (config *tls.Config, former string) {
	c.t.Helper()
	dir := c.t.TempDir()
	_, err := c.Hvctl(c.within(20*time.Second), at, "cert", "issue", "operator", "--out", dir)
	c.must(err)
	for _, name := range []string{"operator-key.pem", "operator.pem"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		c.must(err)
		c.must(os.WriteFile(c.Replicas[0].PKI(name), data, 0o600))
	}
	config, err = c.OperatorTLS()
	c.must(err)
	c.apis = map[*lab.Replica]*api{}
	return config, c.formerSerial(dir)
}

// leaveBehind ends the operator's former certificate, which would keep the old CA from going. By now nobody shows it.
func (c *cluster) leaveBehind(at *lab.Replica, serial string) {
	c.t.Helper()
	_, err := c.Hvctl(c.within(20*time.Second), at, "cert", "revoke", serial, "--reason", "renewed")
	c.must(err)
}

// follows watches an operation to its end by one stream.
func (c *cluster) follows(a *api, id string) error {
	all, err := c.watch(c.within(time.Minute), a, id, nil)
	if err == nil && !isEnded(all.last()) {
		err = fmt.Errorf("the watch ended with it %v", all.last().GetState())
	}
	return err
}

// calls makes one call over a connection of its own.
func (c *cluster) calls(r *lab.Replica, config *tls.Config) error {
	conn, err := c.DialAs(r, config)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err = debvisorv1.NewNodeServiceClient(conn).ListNodes(ctx, &debvisorv1.Empty{})
	return err
}

// refusedAs fails the test where a certificate is refused, or is not.
func (c *cluster) refusedAs(want error, config *tls.Config, when string) {
	c.t.Helper()
	for _, r := range c.Replicas {
		if err := c.calls(r, config); (err == nil) != (want == nil) {
			c.t.Errorf("%s, %s: %v", when, r.Name, err)
		}
	}
}

// callLoad is calls without an end.
type callLoad struct {
	c     *cluster
	who   atomic.Pointer[tls.Config]
	stop  chan struct{}
	calls atomic.Int64
	group sync.WaitGroup

	mu     sync.Mutex
	failed []error
}

// load calls every replica, over a standing connection and over a new one each time.
func (c *cluster) load(who *tls.Config) *callLoad {
	l := &callLoad{c: c, stop: make(chan struct{})}
	l.who.Store(who)
	for _, r := range c.Replicas {
		l.group.Go(func() { l.standing(r) })
		l.group.Go(func() { l.anew(r) })
	}
	return l
}

// as has the load go on as somebody else.
func (l *callLoad) as(who *tls.Config) { l.who.Store(who) }

func (l *callLoad) done(what string, err error) {
	l.calls.Add(1)
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.failed = append(l.failed, fmt.Errorf("%s at %s: %w", what, time.Now().Format("15:04:05.000"), err))
	}
}

func (l *callLoad) goesOn() bool {
	select {
	case <-l.stop:
		return false
	case <-time.After(20 * time.Millisecond):
		return true
	}
}

func (l *callLoad) standing(r *lab.Replica) {
	for l.goesOn() {
		who := l.who.Load()
		conn, err := l.c.DialAs(r, who)
		if err != nil {
			l.done("dialling "+r.Name, err)
			continue
		}
		for l.goesOn() && l.who.Load() == who {
			l.done("a standing connection to "+r.Name, listsNodes(conn))
		}
		_ = conn.Close()
	}
}

func (l *callLoad) anew(r *lab.Replica) {
	for l.goesOn() {
		l.done("a new connection to "+r.Name, l.c.calls(r, l.who.Load()))
	}
}

func listsNodes(conn grpc.ClientConnInterface) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := debvisorv1.NewNodeServiceClient(conn).ListNodes(ctx, &debvisorv1.Empty{})
	return err
}

// end ends the load, and tells how many calls there were and which failed: the first few.
func (l *callLoad) end() (calls int64, failed []error) {
	close(l.stop)
	l.group.Wait()
	return l.calls.Load(), l.failed[:min(len(l.failed), 5)]
}

// cutOff revokes a node's agent and a principal that watches, and measures how long both go on.
func (c *cluster) cutOff(leader *lab.Replica) {
	c.t.Helper()
	conn, err := c.Dial(leader)
	c.must(err)
	defer func() { _ = conn.Close() }()
	ctx := c.within(time.Minute)
	_, err = debvisorv1.NewAccessServiceClient(conn).SetPrincipal(ctx, &debvisorv1.Principal{Name: "watcher", Roles: []string{"viewer"}})
	c.must(err)
	dir := c.t.TempDir()
	_, err = c.Hvctl(ctx, leader, "cert", "issue", "watcher", "--out", dir)
	c.must(err)
	certPEM, err := os.ReadFile(filepath.Join(dir, "watcher.pem"))
	c.must(err)
	keyPEM, err := os.ReadFile(filepath.Join(dir, "watcher-key.pem"))
	c.must(err)
	config, err := c.TLSWith(certPEM, keyPEM)
	c.must(err)
	watcher, err := c.DialAs(leader, config)
	c.must(err)
	defer func() { _ = watcher.Close() }()
	stream, err := debvisorv1.NewEventServiceClient(watcher).Watch(ctx, &debvisorv1.EventFilter{})
	c.must(err)
	_, err = stream.Header()
	c.must(err)

	begin := time.Now()
	_, err = c.Hvctl(ctx, leader, "cert", "revoke", "principal/watcher", "--reason", "test")
	c.must(err)
	for err == nil {
		_, err = stream.Recv()
	}
	if took := time.Since(begin); took > 5*time.Second || status.Code(err) != codes.Unauthenticated {
		c.t.Errorf("the principal's stream ended after %v: %v", took, err)
	} else {
		c.t.Logf("the revoked principal's stream was cut after %v", took.Round(time.Millisecond))
	}

	n := c.Nodes[0]
	log := c.mark(leader.LogFile())
	begin = time.Now()
	_, err = c.Hvctl(ctx, leader, "cert", "revoke", "node/"+n.Name, "--reason", "test")
	c.must(err)
	c.eventually(5*time.Second, "the session of "+n.Name+" is cut", func() error {
		if len(log.lines("session ended", "node="+n.Name)) == 0 {
			return errors.New("it goes on")
		}
		return nil
	})
	c.t.Logf("the revoked agent's session was cut after %v", time.Since(begin).Round(time.Millisecond))
	c.log(n.Agent.LogFile()).says("no session")
	again := c.mark(leader.LogFile())
	again.says("refused", n.Name)
}

// formerSerial is the serial of the operator's other live certificate than that in a directory.
func (c *cluster) formerSerial(dir string) string {
	c.t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "operator.pem"))
	c.must(err)
	leaves, err := certs.ParseCertificates(data)
	c.must(err)
	now := certs.Serial(leaves[0])
	conn, err := c.Dial(c.Replicas[0])
	c.must(err)
	defer func() { _ = conn.Close() }()
	list, err := debvisorv1.NewCertificateServiceClient(conn).ListCertificates(c.within(10*time.Second), &debvisorv1.CertificateFilter{
		Holder: debvisorv1.CertificateHolder_CERTIFICATE_HOLDER_PRINCIPAL, Name: "operator",
	})
	c.must(err)
	for _, cert := range list.GetCertificates() {
		if cert.GetSerial() != now {
			return cert.GetSerial()
		}
	}
	c.t.Fatalf("the operator's first certificate is not noted: %v", list)
	return ""
}
