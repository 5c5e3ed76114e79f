package integration

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// python is Debian's, for which its grpc packages are.
const python = "/usr/bin/python3"

// told is what the foreign client prints.
type told struct {
	Register        int    `json:"register"`
	RegisterAgain   string `json:"register_again"`
	Heartbeat       int    `json:"heartbeat"`
	HeartbeatNobody string `json:"heartbeat_nobody"`
	Nodes           map[string]struct {
		IP      string  `json:"ip"`
		Rack    string  `json:"rack"`
		Overall int     `json:"overall"`
		Ceph    string  `json:"ceph"`
		CPULoad float64 `json:"cpu_load"`
		Mem     float64 `json:"mem"`
	} `json:"nodes"`
	Plan        verdict `json:"plan"`
	PlanInPlace verdict `json:"plan_in_place"`
	Migrate     verdict `json:"migrate"`
	MigrateNone string  `json:"migrate_none"`
	HasDetails  bool    `json:"has_details"`
}

type verdict struct {
	Status  int    `json:"status"`
	Allowed bool   `json:"allowed"`
	Message string `json:"message"`
}

// TestForeignClient generates a client from the contract as another hand wrote it down, with another language's tools, and lets
// it do the main things.
func TestForeignClient(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	a, _ := c.follower()
	generated := t.TempDir()
	contract, err := filepath.Abs("contract")
	c.must(err)
	client, err := filepath.Abs("foreign/client.py")
	c.must(err)
	ctx := c.within(2 * time.Minute)
	_, err = c.Operator.Run(ctx, python, "-m", "grpc_tools.protoc", "-I"+contract, "--python_out="+generated, "--grpc_python_out="+generated,
		"contract.proto")
	c.must(err)
	first := c.Replicas[0]
	out, err := c.Operator.RunInput(ctx, []string{"PYTHONPATH=" + generated, "PYTHONDONTWRITEBYTECODE=1"}, nil, python, client,
		a.replica.Callers(), first.PKI("ca.pem"), first.PKI("operator.pem"), first.PKI("operator-key.pem"), "foreign", g.UUID, g.from.Name, g.to.Name)
	c.must(err)
	var got told
	c.must(json.Unmarshal([]byte(out), &got))

	ok, failed := int(debvisorv1.StatusCode_STATUS_OK), int(debvisorv1.StatusCode_STATUS_ERROR)
	if got.Register != ok || got.RegisterAgain != "ALREADY_EXISTS" {
		t.Errorf("registering: %d, then %q", got.Register, got.RegisterAgain)
	}
	if got.Heartbeat != ok || got.HeartbeatNobody != "NOT_FOUND" {
		t.Errorf("heartbeats: %d, of a node that is not there %q", got.Heartbeat, got.HeartbeatNobody)
	}
	if n := got.Nodes["foreign"]; n.IP != "192.0.2.7" || n.Rack != "r1" || n.Overall != int(debvisorv1.StatusCode_STATUS_WARN) ||
		n.Ceph != "HEALTH_OK" || n.CPULoad != 0.5 || n.Mem != 12.5 {
		t.Errorf("its node is listed as %+v", n)
	}
	for _, n := range c.Nodes {
		if s, there := got.Nodes[n.Name]; !there || s.Overall != ok || s.Mem <= 0 {
			t.Errorf("node %s is listed as %+v", n.Name, s)
		}
	}
	if got.Plan.Status != ok || !got.Plan.Allowed {
		t.Errorf("the plan: %+v", got.Plan)
	}
	if got.PlanInPlace.Status != failed || got.PlanInPlace.Allowed || !strings.Contains(got.PlanInPlace.Message, "already there") {
		t.Errorf("the plan to move to where it is: %+v", got.PlanInPlace)
	}
	if got.Migrate.Status != ok {
		t.Errorf("the move: %+v", got.Migrate)
	}
	if got.MigrateNone != "NOT_FOUND" || !got.HasDetails {
		t.Errorf("moving a VM that is not there: %q, details %t", got.MigrateNone, got.HasDetails)
	}
	g.arrived()
}
