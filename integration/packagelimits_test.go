package integration

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// hostPid is our number of a process that a host knows by another.
func (h *hosts) hostPid(n *lab.Node, pid int) int {
	h.t.Helper()
	all, err := n.Tasks()
	h.must(err)
	for _, task := range all {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", task.Pid))
		if err != nil {
			continue // it has just ended
		}
		for line := range strings.Lines(string(raw)) {
			if f := strings.Fields(line); len(f) > 2 && f[0] == "NSpid:" && f[len(f)-1] == fmt.Sprint(pid) {
				return task.Pid
			}
		}
	}
	h.t.Fatalf("no process %d on %s", pid, n.Name)
	return 0
}

// groups are the control groups that a process is in, by controller; all in one with the newer kind, whose controller is "".
type groups map[string]string

func controlGroup(t *testing.T, pid int) groups {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	g := groups{}
	for line := range strings.Lines(string(raw)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		g[f[1]] = f[2]
	}
	return g
}

// read reads what the kernel says of a process's group, by the name that it has in the older kind of control groups or in the newer.
func (g groups) read(t *testing.T, older, newer string) string {
	t.Helper()
	controller, _, _ := strings.Cut(older, ".")
	path := filepath.Join("/sys/fs/cgroup", controller, g[controller], older)
	if _, isOlder := g[controller]; !isOlder {
		path = filepath.Join("/sys/fs/cgroup", g[""], newer)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(raw))
}

// load has callers ask the first host's replica for a while, as fast as they can, and returns how often it
// answered.
func (h *hosts) load(d time.Duration, callers int) int64 {
	h.t.Helper()
	// The calls' own deadline comes after the load's end: a server may tell of a call's a moment before its caller knows.
	ctx, cancel := context.WithTimeout(h.t.Context(), d+30*time.Second)
	defer cancel()
	until := time.Now().Add(d)
	config := h.operatorTLS()
	var answered atomic.Int64
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			conn, err := h.DialTo(h.a.Addr+":7443", config)
			if err != nil {
				h.t.Error(err)
				return
			}
			defer func() { _ = conn.Close() }()
			nodes := debvisorv1.NewNodeServiceClient(conn)
			for time.Now().Before(until) {
				if _, err := nodes.ListNodes(ctx, &debvisorv1.Empty{}); err != nil {
					h.t.Errorf("a call under load: %v", err)
					return
				}
				answered.Add(1)
			}
		})
	}
	group.Wait()
	return answered.Load()
}

// operatorTLS is what init's operator shows and trusts.
func (h *hosts) operatorTLS() *tls.Config {
	h.t.Helper()
	read := func(name string) []byte {
		raw, err := os.ReadFile(h.a.HostFile("/var/lib/debvisor/rpcd/pki/" + name))
		h.must(err)
		return raw
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(read("ca.pem"))
	cert, err := tls.X509KeyPair(read("operator.pem"), read("operator-key.pem"))
	h.must(err)
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: []tls.Certificate{cert}}
}
