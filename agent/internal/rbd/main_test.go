//go:build ceph_preview

package rbd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/integration/ceph"
	"github.com/debvisor/debvisor/integration/scratch"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// TestMain is also the child process: a test binary with "ceph" as its first
// argument, the failpoint at which it is to die as its second, and as its third the
// file whose removal is the death of one child only.
func TestMain(m *testing.M) {
	if len(os.Args) > 3 && os.Args[1] == "ceph" {
		point, once := os.Args[2], os.Args[3]
		err := run(os.Args[4:], os.Stdin, os.Stdout, func(passed string) {
			if passed == point && os.Remove(once) == nil {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if shared.cluster != nil {
		_ = shared.cluster.Stop()
		_ = shared.dir.Remove()
	}
	os.Exit(code)
}

// shared is the cluster of all tests that do it no harm.
var shared struct {
	sync.Mutex
	cluster *ceph.Cluster
	dir     *scratch.Dir
}

func sharedCluster(t *testing.T) *ceph.Cluster {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.cluster != nil {
		return shared.cluster
	}
	dir, err := ceph.Scratch()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cluster, err := ceph.Start(ctx, ceph.Options{Dir: dir.Path, Pools: []string{"vms", "fast"}})
	if err != nil {
		t.Fatal(err)
	}
	shared.cluster, shared.dir = cluster, dir
	return cluster
}

// room is a namespace of a test's own, in both pools.
type room struct {
	*Client
	t       testing.TB
	cluster *ceph.Cluster
	space   string
}

func newRoom(t *testing.T) *room {
	t.Helper()
	return enter(t, sharedCluster(t))
}

func enter(t testing.TB, cluster *ceph.Cluster) *room {
	t.Helper()
	r := &room{t: t, cluster: cluster, space: strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))}
	for _, pool := range cluster.Pools() {
		r.admin("rbd", "namespace", "create", "--pool", pool, "--namespace", r.space)
	}
	r.Client = r.client("")
	return r
}

// client is one whose first child dies at a point.
func (r *room) client(point string) *Client {
	r.t.Helper()
	c := New(Config{
		Conf: r.cluster.Conf(), User: ceph.Agent, Command: childCommand(r.t, point),
		Log: hclog.New(&hclog.LoggerOptions{Output: r.t.Output(), Level: hclog.Debug}),
	})
	r.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			r.t.Error(err)
		}
	})
	return c
}

// childCommand starts a child that dies at a point, once; empty: at none.
func childCommand(t testing.TB, point string) []string {
	t.Helper()
	once := filepath.Join(t.TempDir(), "once")
	if err := os.WriteFile(once, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{os.Args[0], "ceph", point, once}
}

func (r *room) admin(program string, args ...string) string {
	r.t.Helper()
	out, err := r.cluster.Admin(r.t.Context(), program, args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func (r *room) id(pool, name string) *agentv1.RbdImageID {
	return &agentv1.RbdImageID{Pool: pool, Namespace: r.space, Name: name}
}

// disk makes an image.
func (r *room) disk(name string, more ...string) *agentv1.RbdImageID {
	r.t.Helper()
	id := r.id("vms", name)
	r.admin("rbd", append([]string{"create", "--size", "16M", Shown(id)}, more...)...)
	return id
}

func (r *room) snapshot(id *agentv1.RbdImageID, name, operation string) *agentv1.RbdSnapshotID {
	r.t.Helper()
	s, err := r.CreateSnapshot(r.t.Context(), SnapshotSpec{Image: id, Name: name, Operation: operation})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// refused checks that an error has a code.
func refused(t *testing.T, err error, code string) {
	t.Helper()
	if !has(err, code) {
		t.Errorf("error %v, want %s", err, code)
	}
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
