package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	_ "google.golang.org/grpc/health" // clients heed it
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// serviceConfig is the one that docs/health.md recommends.
func serviceConfig(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile("../docs/health.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```json service-config\n(.*?)```").FindSubmatch(raw)
	if block == nil {
		t.Fatal("docs/health.md has no service config")
	}
	return string(block[1])
}

// balanced is a client of all replicas at once, as docs/health.md recommends it.
func (c *cluster) balanced() *grpc.ClientConn {
	c.t.Helper()
	config, err := c.OperatorTLS()
	c.must(err)
	replicas := manual.NewBuilderWithScheme("lab")
	var state resolver.State
	for _, r := range c.Replicas {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: r.Callers(), ServerName: r.Addr})
	}
	replicas.InitialState(state)
	conn, err := grpc.NewClient("lab:///replicas", grpc.WithResolvers(replicas), grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithDefaultServiceConfig(serviceConfig(c.t)),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return c.Operator.DialContext(ctx, "tcp", addr)
		}))
	c.must(err)
	c.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// load is calls at a steady rate, whatever becomes of them.
type load struct {
	calls, changes atomic.Int64
	mu             sync.Mutex
	failed         []string
	// took is for how long it was offered.
	took time.Duration
}

const (
	loadRate    = 500 // calls a second
	changeEvery = 20  // one call of so many changes something
	loadConns   = 8
)

// run calls until ctx ends, and returns when all calls have ended. It waits for no answer: a call that is late on a busy machine
// is made all the same, so that as many are offered as the time that has passed calls for.
func (l *load) run(ctx context.Context, conns []*grpc.ClientConn) {
	tick := time.NewTicker(time.Second / loadRate)
	defer tick.Stop()
	var group sync.WaitGroup
	defer group.Wait()
	began := time.Now()
	for i := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C: // it drops ticks that nobody takes
		}
		l.mu.Lock()
		l.took = time.Since(began)
		due := int(l.took * loadRate / time.Second)
		l.mu.Unlock()
		for ; i < due; i++ {
			group.Go(func() {
				begin := time.Now()
				if err := l.call(context.WithoutCancel(ctx), conns[i%len(conns)], i); err != nil {
					l.mu.Lock()
					l.failed = append(l.failed, fmt.Sprintf("call %d after %v: %v", i, time.Since(begin), err))
					l.mu.Unlock()
				}
			})
		}
	}
}

// offered is how many calls a second there were.
func (l *load) offered() float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return float64(l.calls.Load()) / l.took.Seconds()
}

func (l *load) call(ctx context.Context, conn *grpc.ClientConn, i int) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	l.calls.Add(1)
	if i%changeEvery == 0 {
		l.changes.Add(1)
		_, err := debvisorv1.NewAccessServiceClient(conn).SetPrincipal(withRequestID(ctx, requestID()), &debvisorv1.Principal{
			Name: fmt.Sprintf("loaded-%d", i/changeEvery%50), Type: "user", Roles: []string{"viewer"},
		})
		return err
	}
	_, err := debvisorv1.NewNodeServiceClient(conn).ListNodes(ctx, &debvisorv1.Empty{})
	return err
}

// TestRollingRestart restarts each replica in turn while callers call: none of them notices.
func TestRollingRestart(t *testing.T) {
	c := plain.use(t)
	conns := make([]*grpc.ClientConn, loadConns)
	for i := range conns {
		conns[i] = c.balanced()
	}
	ctx, stop := context.WithCancel(t.Context())
	l, ended := &load{}, make(chan struct{})
	go func() {
		defer close(ended)
		l.run(ctx, conns)
	}()
	defer func() {
		stop()
		<-ended
	}()
	c.eventually(20*time.Second, "calls flow", func() error {
		if l.calls.Load() < loadRate {
			return errors.New("they do not")
		}
		return nil
	})
	var resigned []time.Duration
	for _, r := range c.Replicas {
		leader, err := c.Leader(c.within(20 * time.Second))
		c.must(err)
		took := c.restart(r, leader)
		if r == leader {
			resigned = append(resigned, took)
		}
	}
	stop()
	<-ended
	for i, failure := range l.failed {
		if i < 10 {
			t.Error(failure)
		}
	}
	t.Logf("calls: %d, %.1f a second, of which changes: %d, failed: %d; the next leader after %v",
		l.calls.Load(), l.offered(), l.changes.Load(), len(l.failed), resigned)
	if got := l.offered(); got < 0.99*loadRate {
		t.Errorf("%.1f calls a second were offered, not %d", got, loadRate)
	}
	if len(l.failed) > 0 {
		t.Errorf("%d calls failed", len(l.failed))
	}
	if len(resigned) == 0 {
		t.Error("the leader was never restarted")
	}
	for _, took := range resigned {
		if took > time.Second {
			t.Errorf("the next leader came after %v, not within a second", took)
		}
	}
}

// restart stops a replica and starts it, and tells how long nobody led where it was the leader.
func (c *cluster) restart(r, leader *lab.Replica) (resigned time.Duration) {
	c.t.Helper()
	other := c.others(r)[0]
	told := c.watchHealth(r)
	asked := time.Now()
	ended := make(chan error, 1)
	go func() { ended <- r.Process.Terminate(c.within(30 * time.Second)) }()
	if r == leader {
		view := c.api(other)
		c.eventually(20*time.Second, "another leads", func() error {
			cluster, err := view.cluster.GetCluster(c.t.Context(), &debvisorv1.Empty{})
			if err == nil && (cluster.GetLeader() == "" || cluster.GetLeader() == r.Name) {
				err = fmt.Errorf("%q leads", cluster.GetLeader())
			}
			return err
		})
		resigned = time.Since(asked)
	}
	select {
	case <-told:
		c.t.Logf("%s was said to stop after %v", r.Name, time.Since(asked))
	case <-time.After(10 * time.Second):
		c.t.Errorf("who watched %s was not told that it stops", r.Name)
	}
	c.must(<-ended)
	c.t.Logf("%s stopped within %v", r.Name, time.Since(asked))
	c.must(r.Start())
	c.must(r.Serving(c.within(time.Minute)))
	c.eventually(30*time.Second, r.Name+" is ready", func() error {
		status, body, err := c.observe(r, "/readyz", "")
		if err == nil && status != http.StatusOK {
			err = errors.New(body)
		}
		return err
	})
	return resigned
}

// watchHealth gives a channel that is closed once the replica says that it does not serve.
func (c *cluster) watchHealth(r *lab.Replica) <-chan struct{} {
	c.t.Helper()
	conn, err := c.Dial(r)
	c.must(err)
	c.t.Cleanup(func() { _ = conn.Close() })
	stream, err := healthv1.NewHealthClient(conn).Watch(c.t.Context(), &healthv1.HealthCheckRequest{Service: "debvisor.v1.NodeService"})
	c.must(err)
	first, err := stream.Recv()
	c.must(err)
	if first.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		c.t.Errorf("%s begins as %s", r.Name, first.GetStatus())
	}
	told := make(chan struct{})
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			if m.GetStatus() == healthv1.HealthCheckResponse_NOT_SERVING {
				close(told)
				return
			}
		}
	}()
	return told
}

// observe asks a replica's metrics listener, without an identity.
func (c *cluster) observe(r *lab.Replica, path, accept string) (status int, body string, err error) {
	config, err := c.OperatorTLS()
	if err != nil {
		return 0, "", err
	}
	config.Certificates = nil
	transport := &http.Transport{
		TLSClientConfig: config, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return c.Operator.DialContext(ctx, network, addr)
		},
	}
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, "https://"+r.Metrics()+path, nil)
	if err != nil {
		return 0, "", err
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	resp, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(raw), err
}

// TestReadiness stops etcd's majority and sees the replica that is left say why it is not ready.
func TestReadiness(t *testing.T) {
	c := plain.use(t)
	r := c.Replicas[0]
	status, body, err := c.observe(r, "/healthz", "")
	c.must(err)
	if status != http.StatusOK || body != "ok\n" {
		t.Errorf("/healthz: %d %q", status, body)
	}
	for _, other := range c.others(r) {
		c.must(other.Stop(c.within(10 * time.Second)))
	}
	began := time.Now()
	c.eventually(20*time.Second, "not ready, and why", func() error {
		status, body, err := c.observe(r, "/readyz", "application/json")
		if err == nil && (status != http.StatusServiceUnavailable || !strings.Contains(body, `"check":"snapshot"`)) {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	})
	t.Logf("not ready %v after the majority was gone", time.Since(began))
	if status, _, err := c.observe(r, "/healthz", ""); err != nil || status != http.StatusOK {
		t.Errorf("/healthz without a majority: %d, %v: a restart would not help", status, err)
	}
	for _, other := range c.others(r) {
		c.must(other.Cont())
	}
	c.eventually(30*time.Second, "ready again", func() error {
		status, body, err := c.observe(r, "/readyz", "")
		if err == nil && status != http.StatusOK {
			err = errors.New(body)
		}
		return err
	})
}
