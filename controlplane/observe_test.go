package controlplane

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/obs"
)

// get asks one of the listeners for HTTPS, without an identity.
func (r *replicaUnderTest) get(c *http.Client, method, url string) string {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.within(), method, "https://"+url, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return fmt.Sprint(resp.StatusCode, " ", string(body))
}

// The service manager and those who watch over a replica are told how it is,
// from its start to its end.
func TestAReplicaSaysHowItIs(t *testing.T) {
	r := newReplica(t)
	socket := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = manager.Close() })
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "2000000")
	r.cfg.MetricsListen, r.cfg.GatewayListen, r.cfg.Notify = storetest.FreeAddress(t), storetest.FreeAddress(t), obs.NewNotifier()
	stop := r.start()
	told := make(chan string, 1000)
	go func() {
		defer close(told)
		b := make([]byte, 4096)
		for {
			n, err := manager.Read(b)
			if err != nil {
				return
			}
			told <- string(b[:n])
		}
	}()
	// What is ready first, the replica or the daemon, is not said.
	var heard []string
	expect := func(want string, times int) {
		t.Helper()
		late := time.After(patience)
		for {
			n := 0
			for _, got := range heard {
				if strings.HasPrefix(got, want) {
					n++
				}
			}
			if n >= times {
				return
			}
			select {
			case got := <-told:
				heard = append(heard, got)
			case <-late:
				t.Fatalf("the service manager is told %q, and not %q; log:\n%s", heard, want, r.log)
			}
		}
	}
	expect("READY=1", 1)
	operator := r.dial(r.cfg.Listen, r.home.Operator())
	r.awaitLeader(operator)
	expect("STATUS=ready", 1)
	expect("WATCHDOG=1", 3) // by looks at the replica itself

	client := r.https(certs.Pair{})
	for _, c := range []struct{ method, url, want string }{
		{"GET", r.cfg.MetricsListen + "/healthz", "200 ok"},
		{"GET", r.cfg.MetricsListen + "/readyz", "200 ready"},
		{"GET", r.cfg.GatewayListen + "/readyz", "200 ready"},
		{"POST", r.cfg.MetricsListen + "/readyz", "405"},
		{"POST", r.cfg.GatewayListen + "/readyz", "405"},
		{"GET", r.cfg.MetricsListen + "/", "404"},
		{"GET", r.cfg.MetricsListen + "/metrics", "40"},
	} {
		if got := r.get(client, c.method, c.url); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s %s: %q, want %q", c.method, c.url, got, c.want)
		}
	}
	health := healthv1.NewHealthClient(operator)
	for _, service := range []string{"", debvisorv1.NodeService_ServiceDesc.ServiceName, "debvisor.agent.v1.EnrollService"} {
		answer, err := health.Check(r.within(), &healthv1.HealthCheckRequest{Service: service})
		if err != nil || answer.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("%q is %s, %v", service, answer.GetStatus(), err)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	expect("STOPPING=1", 1)
	_ = manager.Close()
	for late := range told {
		t.Errorf("told after STOPPING: %q", late)
	}
}

func TestHowAReplicaReachesItself(t *testing.T) {
	for addr, want := range map[string]string{"0.0.0.0:7443": "localhost:7443", "[::]:7443": "localhost:7443", "192.0.2.1:7443": "192.0.2.1:7443"} {
		parsed, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := reachable(parsed); got != want {
			t.Errorf("%s is reached at %s, want %s", addr, got, want)
		}
	}
}

// ledView is a view in which somebody leads, or nobody.
type ledView struct{ at *cluster.Snapshot }

func (v *ledView) Current() *cluster.Snapshot { return v.at }

// TestNoLeaderIsNotReady: a replica that knows of no leader is not ready, and a change of leaders is no reason to say so.
func TestNoLeaderIsNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nobody := cluster.Empty()
		d := nobody.Draft()
		d.PutCandidate("e", &storev1.Leader{Name: "r2"}, 1)
		somebody := d.Snapshot(1)
		view := &ledView{nobody}
		why := leaderKnown(view)
		if why() == nil {
			t.Error("ready before anybody was known to lead")
		}
		view.at = somebody
		if err := why(); err != nil {
			t.Errorf("somebody leads: %v", err)
		}
		view.at = nobody
		time.Sleep(leaderless)
		if err := why(); err != nil {
			t.Errorf("%s after the last leader: %v", leaderless, err)
		}
		time.Sleep(time.Millisecond)
		if err := why(); err == nil || !strings.Contains(err.Error(), "no replica is known to lead") {
			t.Errorf("longer than %s after the last leader: %v", leaderless, err)
		}
		view.at = somebody
		if err := why(); err != nil {
			t.Errorf("somebody leads again: %v", err)
		}
	})
}
