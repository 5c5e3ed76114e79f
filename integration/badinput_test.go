package integration

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// wrongCall is a call that must be refused.
type wrongCall struct {
	name string
	call func(context.Context, *api, *mover) error
	want codes.Code
	says string // in the message
}

func vmRef(id string) *debvisorv1.VMRef { return &debvisorv1.VMRef{VmId: id} }

func wrongCalls() []wrongCall {
	move := func(spec func(*mover) *debvisorv1.VMMigrateSpec) func(context.Context, *api, *mover) error {
		return func(ctx context.Context, a *api, g *mover) error {
			_, err := a.migrations.MigrateVM(ctx, spec(g))
			return err
		}
	}
	register := func(info *debvisorv1.NodeInfo) func(context.Context, *api, *mover) error {
		return func(ctx context.Context, a *api, _ *mover) error {
			_, err := a.nodes.RegisterNode(ctx, info)
			return err
		}
	}
	health := func(h *debvisorv1.Health) func(context.Context, *api, *mover) error {
		return func(ctx context.Context, a *api, _ *mover) error {
			_, err := a.nodes.Heartbeat(ctx, h)
			return err
		}
	}
	n1 := &debvisorv1.NodeId{Id: "n1"}
	return []wrongCall{
		{"unknown VM", move(func(g *mover) *debvisorv1.VMMigrateSpec {
			return &debvisorv1.VMMigrateSpec{Vm: vmRef("3f5c2c6e-0000-4000-8000-000000000000"), Target: node(g.to.Name)}
		}), codes.NotFound, "3f5c2c6e"},
		{"unknown target", move(func(g *mover) *debvisorv1.VMMigrateSpec {
			return &debvisorv1.VMMigrateSpec{Vm: vmRef(g.UUID), Target: node("nowhere")}
		}), codes.NotFound, "nowhere"},
		{"unknown source", move(func(g *mover) *debvisorv1.VMMigrateSpec {
			return &debvisorv1.VMMigrateSpec{Vm: vmRef(g.UUID), Source: node("nowhere"), Target: node(g.to.Name)}
		}), codes.NotFound, "nowhere"},
		{"unknown VM in a plan", func(ctx context.Context, a *api, _ *mover) error {
			_, err := a.migrations.PrepareMigration(ctx, &debvisorv1.VMMigratePlan{Vm: vmRef("none")})
			return err
		}, codes.NotFound, "none"},
		{"no VM", move(func(g *mover) *debvisorv1.VMMigrateSpec {
			return &debvisorv1.VMMigrateSpec{Target: node(g.to.Name)}
		}), codes.InvalidArgument, "vm"},
		{"empty VM", move(func(g *mover) *debvisorv1.VMMigrateSpec {
			return &debvisorv1.VMMigrateSpec{Vm: vmRef(""), Target: node(g.to.Name)}
		}), codes.InvalidArgument, "vm.vm_id"},
		{"endless VM", move(func(g *mover) *debvisorv1.VMMigrateSpec {
			return &debvisorv1.VMMigrateSpec{Vm: vmRef(strings.Repeat("x", 300)), Target: node(g.to.Name)}
		}), codes.InvalidArgument, "vm.vm_id"},
		{"not where it is", move(func(g *mover) *debvisorv1.VMMigrateSpec {
			return &debvisorv1.VMMigrateSpec{Vm: vmRef(g.UUID), Source: node(g.to.Name), Target: node(g.from.Name)}
		}), codes.FailedPrecondition, "is on"},
		{"to where it is", move(func(g *mover) *debvisorv1.VMMigrateSpec {
			return &debvisorv1.VMMigrateSpec{Vm: vmRef(g.UUID), Source: node(g.from.Name), Target: node(g.from.Name)}
		}), codes.FailedPrecondition, "already there"},
		{"node without an id", register(&debvisorv1.NodeInfo{Hostname: "x"}), codes.InvalidArgument, "id"},
		{"malformed node id", register(&debvisorv1.NodeInfo{Id: &debvisorv1.NodeId{Id: "Not A Name"}}), codes.InvalidArgument, "id"},
		{"malformed address", register(&debvisorv1.NodeInfo{Id: &debvisorv1.NodeId{Id: "fine"}, Ip: "10.0.0"}), codes.InvalidArgument, "ip"},
		{"node that is there", register(&debvisorv1.NodeInfo{Id: n1}), codes.AlreadyExists, "n1"},
		{"heartbeat of nobody", health(&debvisorv1.Health{NodeId: &debvisorv1.NodeId{Id: "nobody"}}), codes.NotFound, "nobody"},
		{"heartbeat without a node", health(&debvisorv1.Health{}), codes.InvalidArgument, "node_id"},
		{"more than all memory", health(&debvisorv1.Health{NodeId: n1, MemUsedPct: 101}), codes.InvalidArgument, "mem_used_pct"},
		{"unknown status", health(&debvisorv1.Health{NodeId: n1, Overall: 9}), codes.InvalidArgument, "overall"},
		{"unknown node shown", func(ctx context.Context, a *api, _ *mover) error {
			_, err := a.nodes.GetNode(ctx, node("nowhere"))
			return err
		}, codes.NotFound, "nowhere"},
		{"unknown node cordoned", func(ctx context.Context, a *api, _ *mover) error {
			_, err := a.nodes.CordonNode(ctx, &debvisorv1.CordonRequest{Node: node("nowhere")})
			return err
		}, codes.NotFound, "nowhere"},
		{"unknown operation", func(ctx context.Context, a *api, _ *mover) error {
			_, err := a.operations.GetOperation(ctx, &debvisorv1.OperationRef{Id: "op-none"})
			return err
		}, codes.NotFound, "op-none"},
		{"unknown operation cancelled", func(ctx context.Context, a *api, _ *mover) error {
			_, err := a.operations.CancelOperation(ctx, &debvisorv1.OperationRef{Id: "op-none"})
			return err
		}, codes.NotFound, "op-none"},
	}
}

// TestBadInput sends calls that must be refused to a replica that does not lead.
func TestBadInput(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	a, _ := c.follower()
	for _, w := range wrongCalls() {
		t.Run(w.name, func(t *testing.T) {
			begin := time.Now()
			err := w.call(c.within(10*time.Second), a, g)
			refused(t, err, w.want)
			if !holds(status.Convert(err).Message(), w.says) {
				t.Errorf("%v does not name %q", err, w.says)
			}
			if took := time.Since(begin); took > 2*time.Second {
				t.Errorf("the refusal took %v", took)
			}
		})
	}
	g.stayed()
}

// TestViewer may look and not touch.
func TestViewer(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	a, _ := c.follower()
	dir := filepath.Join(c.Dir, "viewer")
	_, err := c.Operator.Run(c.within(20*time.Second), c.Program("debvisor-rpcd"), "client", "--data-dir", c.Replicas[0].Data,
		"--name", "vera", "--out", dir)
	c.must(err)
	_, err = c.etcd(a.replica).Put(c.within(10*time.Second), keyPrefix+"principals/vera", `{"type": "user", "roles": ["viewer"]}`)
	c.must(err)
	certPEM, err := os.ReadFile(filepath.Join(dir, "vera.pem"))
	c.must(err)
	keyPEM, err := os.ReadFile(filepath.Join(dir, "vera-key.pem"))
	c.must(err)
	config, err := c.TLSWith(certPEM, keyPEM)
	c.must(err)
	conn, err := c.DialAs(a.replica, config)
	c.must(err)
	defer func() { _ = conn.Close() }()
	vera, ctx := newAPI(a.replica, conn), c.within(30*time.Second)

	c.eventually(10*time.Second, "a viewer may list nodes", func() error { // once this replica has seen the principal
		_, err := vera.nodes.ListNodes(ctx, &debvisorv1.Empty{})
		return err
	})
	_, err = vera.vms.ListVMs(ctx, &debvisorv1.VMFilter{})
	c.must(err)
	plan, err := vera.migrations.PrepareMigration(ctx, &debvisorv1.VMMigratePlan{Vm: vmRef(g.UUID), Target: node(g.to.Name)})
	c.must(err)
	if !plan.GetAllowed() {
		t.Errorf("the plan is %v", plan)
	}
	_, err = vera.migrations.MigrateVM(ctx, g.spec())
	refused(t, err, codes.PermissionDenied)
	_, err = vera.nodes.CordonNode(ctx, &debvisorv1.CordonRequest{Node: node(g.to.Name)})
	refused(t, err, codes.PermissionDenied)
	c.log(a.replica.Audit()).says("permission_denied", "vera", "MigrateVM")
	g.stayed()
}

// TestNoLeader stops two of three replicas: the third answers every call in time, or says when to come back.
func TestNoLeader(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	last := c.Replicas[0]
	a := c.api(last)
	for _, r := range c.others(last) {
		c.must(r.Stop(c.within(10 * time.Second)))
	}
	calls := map[string]func(context.Context) error{
		"MigrateVM": func(ctx context.Context) error { _, err := a.migrations.MigrateVM(ctx, g.spec()); return err },
		"CordonNode": func(ctx context.Context) error {
			_, err := a.nodes.CordonNode(ctx, &debvisorv1.CordonRequest{Node: node(g.to.Name)})
			return err
		},
		"CreateJoinToken": func(ctx context.Context) error {
			_, err := a.nodes.CreateJoinToken(ctx, &debvisorv1.JoinTokenRequest{Kind: debvisorv1.JoinTokenKind_JOIN_TOKEN_KIND_NODE})
			return err
		},
		"ListNodes": func(ctx context.Context) error { _, err := a.nodes.ListNodes(ctx, &debvisorv1.Empty{}); return err },
	}
	// Each again and again, from when the leader was just lost until the replica knows that it sees nothing any more.
	for name, call := range calls {
		refusals := 0
		c.eventually(40*time.Second, name+" is refused", func() error {
			begin := time.Now()
			err := call(c.within(20 * time.Second))
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("%s took %v: %v", name, took, err)
			}
			if err == nil {
				return context.DeadlineExceeded // of what was just lost it may not know yet
			}
			if _, retry := details(err); status.Code(err) != codes.Unavailable || retry <= 0 {
				t.Errorf("%s: %v, try again in %v", name, err, retry)
			}
			if refusals++; refusals < 2 {
				return err
			}
			return nil
		})
	}
	for _, r := range c.others(last) {
		c.must(r.Cont())
	}
	c.must(c.whole(c.within(time.Minute)))
	// What was asked while nobody led came to nothing, or to an end that is known.
	c.eventually(30*time.Second, "the cluster takes calls again", func() error {
		_, err := a.nodes.UncordonNode(c.within(10*time.Second), node(g.to.Name))
		return err
	})
}
