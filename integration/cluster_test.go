package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// cluster is a shared lab in the hands of one test, whole at its beginning.
type cluster struct {
	*lab.Lab
	t      *testing.T
	shared *shared
	etcds  map[*lab.Replica]*clientv3.Client
	apis   map[*lab.Replica]*api
}

// use takes the lab for a test, and makes whole first what another test may have left broken. When the test fails, all logs are
// saved.
func (s *shared) use(t *testing.T) *cluster {
	t.Helper()
	err := s.start()
	if s.lab != nil {
		t.Cleanup(func() { s.keepLogs(t) })
	}
	if err != nil {
		t.Fatalf("the lab: %v", err)
	}
	c := &cluster{Lab: s.lab, t: t, shared: s, etcds: map[*lab.Replica]*clientv3.Client{}, apis: map[*lab.Replica]*api{}}
	if err := c.repair(c.within(time.Minute)); err != nil {
		t.Fatalf("the lab is not whole: %v", err)
	}
	return c
}

// keepLogs saves the logs of a failed test under build/lab-logs.
func (s *shared) keepLogs(t *testing.T) {
	if !t.Failed() {
		return
	}
	dir := filepath.Join("..", "build", "lab-logs", strings.ReplaceAll(t.Name(), "/", "-"))
	if err := errors.Join(os.RemoveAll(dir), s.lab.SaveLogs(dir)); err != nil {
		t.Error(err)
		return
	}
	t.Logf("the logs of the lab are in %s", dir)
}

// within gives a context for one thing to happen in.
func (c *cluster) within(limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(c.t.Context(), limit)
	c.t.Cleanup(cancel)
	return ctx
}

// eventually waits for a condition, and ends the test when it does not come.
func (c *cluster) eventually(limit time.Duration, what string, f func() error) {
	c.t.Helper()
	if err := lab.Eventually(c.within(limit), what, f); err != nil {
		c.t.Fatal(err)
	}
}

// must ends the test on an error.
func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// repair starts what does not run, wakes what stands still, and waits until all replicas agree on a leader and the agents of all
// nodes are heard.
func (c *cluster) repair(ctx context.Context) error {
	for _, r := range c.Replicas {
		if err := revive(r.Process, r.Start); err != nil {
			return err
		}
	}
	if c.Ceph != nil {
		if err := c.Ceph.Revive(ctx); err != nil {
			return err
		}
	}
	for _, n := range c.AllNodes() {
		if !n.On() {
			if err := n.PowerOn(ctx); err != nil {
				return err
			}
		}
		if n.Machine != nil {
			if err := n.Continue(); err != nil {
				return err
			}
		}
		start := func() error { return n.StartLibvirt(ctx) }
		if err := errors.Join(revive(n.Libvirt, start), revive(n.Agent.Process, n.Agent.Start)); err != nil {
			return err
		}
	}
	for _, r := range c.Replicas {
		if err := r.Serving(ctx); err != nil {
			return err
		}
	}
	return errors.Join(c.whole(ctx), c.cephAnswers(ctx))
}

// cephAnswers waits until every node's agent is answered by Ceph, where the lab has one.
func (c *cluster) cephAnswers(ctx context.Context) error {
	if c.Ceph == nil {
		return nil
	}
	conn, err := c.Dial(c.running())
	if err != nil {
		return err
	}
	for _, n := range c.Nodes {
		err = errors.Join(err, lab.Eventually(ctx, "Ceph answers "+n.Name, func() error {
			_, err := debvisorv1.NewStorageServiceClient(conn).ListImages(ctx, &debvisorv1.ImageFilter{Pool: c.Ceph.Pools()[0], Node: nodeNamed(n)})
			return err
		}))
	}
	return errors.Join(err, conn.Close())
}

func revive(p *lab.Process, start func() error) error {
	if p.Alive() {
		return p.Cont()
	}
	return start()
}

// whole waits until all replicas agree on a leader and show all of the lab's nodes online and well.
func (c *cluster) whole(ctx context.Context) error {
	if _, err := c.Leader(ctx); err != nil {
		return err
	}
	for _, r := range c.Replicas {
		conn, err := c.Dial(r)
		if err != nil {
			return err
		}
		err = lab.Eventually(ctx, r.Name+" shows all nodes online", func() error { return c.online(ctx, conn) })
		if err := errors.Join(err, conn.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) online(ctx context.Context, conn *grpc.ClientConn) error {
	nodes, err := debvisorv1.NewNodeServiceClient(conn).ListNodes(ctx, &debvisorv1.Empty{})
	if err != nil {
		return err
	}
	for _, n := range c.AllNodes() {
		s := find(nodes, n.Name)
		if s.GetState() != debvisorv1.NodeState_NODE_STATE_ONLINE || len(s.GetHealth().GetProblems()) > 0 {
			return fmt.Errorf("node %s is %v: %v", n.Name, s.GetState(), s.GetHealth())
		}
	}
	return nil
}

func find(nodes *debvisorv1.NodeList, id string) *debvisorv1.NodeSummary {
	for _, s := range nodes.GetNodes() {
		if s.GetInfo().GetId().GetId() == id {
			return s
		}
	}
	return nil
}

// api is the operator's clients of one replica.
type api struct {
	replica    *lab.Replica
	nodes      debvisorv1.NodeServiceClient
	vms        debvisorv1.VMServiceClient
	migrations debvisorv1.MigrationServiceClient
	operations debvisorv1.OperationServiceClient
	cluster    debvisorv1.ClusterServiceClient
	storage    debvisorv1.StorageServiceClient
}

// api is the operator's connection to a replica, one for the whole test.
func (c *cluster) api(r *lab.Replica) *api {
	c.t.Helper()
	if c.apis[r] == nil {
		conn, err := c.Dial(r)
		c.must(err)
		c.t.Cleanup(func() { _ = conn.Close() })
		c.apis[r] = newAPI(r, conn)
	}
	return c.apis[r]
}

func newAPI(r *lab.Replica, conn grpc.ClientConnInterface) *api {
	return &api{
		replica:    r,
		nodes:      debvisorv1.NewNodeServiceClient(conn),
		vms:        debvisorv1.NewVMServiceClient(conn),
		migrations: debvisorv1.NewMigrationServiceClient(conn),
		operations: debvisorv1.NewOperationServiceClient(conn),
		cluster:    debvisorv1.NewClusterServiceClient(conn),
		storage:    debvisorv1.NewStorageServiceClient(conn),
	}
}

// follower gives the API of a replica that does not lead, and the leader.
func (c *cluster) follower() (*api, *lab.Replica) {
	c.t.Helper()
	follower, leader, err := c.Follower(c.within(30 * time.Second))
	c.must(err)
	return c.api(follower), leader
}

// others are the replicas besides one.
func (c *cluster) others(than *lab.Replica) []*lab.Replica {
	var all []*lab.Replica
	for _, r := range c.Replicas {
		if r != than {
			all = append(all, r)
		}
	}
	return all
}

// keyPrefix begins every key of the control plane in etcd.
const keyPrefix = "/debvisor/rpc/"

// etcd is a connection to the etcd of a replica past the control plane, one for the whole test.
func (c *cluster) etcd(r *lab.Replica) *clientv3.Client {
	c.t.Helper()
	if c.etcds[r] == nil {
		cli, err := clientv3.New(clientv3.Config{
			Endpoints: []string{"unix://" + r.EtcdSocket()}, DialTimeout: 5 * time.Second, Context: c.t.Context(), Logger: zap.NewNop(),
		})
		c.must(err)
		c.t.Cleanup(func() { _ = cli.Close() })
		c.etcds[r] = cli
	}
	return c.etcds[r]
}

// revisions are the keys below a prefix of a replica's etcd, each with the revision of its last change.
func (c *cluster) revisions(r *lab.Replica, prefixes ...string) map[string]int64 {
	c.t.Helper()
	cli, all := c.etcd(r), map[string]int64{}
	for _, p := range prefixes {
		got, err := cli.Get(c.within(10*time.Second), keyPrefix+p, clientv3.WithPrefix(), clientv3.WithKeysOnly())
		c.must(err)
		for _, kv := range got.Kvs {
			all[string(kv.Key)] = kv.ModRevision
		}
	}
	return all
}
