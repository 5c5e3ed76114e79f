package integration

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/integration/lab"
	"github.com/debvisor/debvisor/integration/scratch"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// issuer signs the JWTs of the panel's users: every replica of the plain lab is told its public key.
var issuer = func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err) // the system's randomness does not fail
	}
	return key
}()

// nightly is the key of a principal that stands, hashed, in the access file of every replica of the plain lab.
const nightly = "nightly-backup-key-0b6e3f0d5a"

// The files that furnished makes.
const (
	issuerFile = "issuer.pem"
	accessFile = "access.yaml"
)

// furnished makes the directory of what the plain lab's replicas are told: the issuer's public key, and an access file.
func furnished() (*scratch.Dir, error) {
	public, err := x509.MarshalPKIXPublicKey(issuer.Public())
	if err != nil {
		return nil, err
	}
	dir, err := scratch.Make("debvisor-frontdoor-")
	if err != nil {
		return nil, err
	}
	access := fmt.Sprintf("principals:\n  nightly:\n    type: service\n    roles: [monitor]\nkeys:\n  nightly-1:\n    principal: nightly\n    sha256: %x\n",
		sha256.Sum256([]byte(nightly)))
	return dir, errors.Join(
		os.WriteFile(filepath.Join(dir.Path, issuerFile), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), 0o600),
		os.WriteFile(filepath.Join(dir.Path, accessFile), []byte(access), 0o600),
	)
}

// panelToken is what the panel's issuer gives a user.
func (c *cluster) panelToken(user string, key *rsa.PrivateKey) string {
	c.t.Helper()
	text, err := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{
		"iss": "debvisor-auth", "aud": "debvisor-rpc", "user_id": user, "exp": time.Now().Add(10 * time.Minute).Unix(),
	}).SignedString(key)
	c.must(err)
	c.secret(text[strings.LastIndexByte(text, '.')+1:])
	return text
}

// hvctl runs hvctl as the operator against a replica, and gives what it prints.
func (c *cluster) hvctl(at *lab.Replica, args ...string) string {
	c.t.Helper()
	out, err := c.Hvctl(c.within(time.Minute), at, args...)
	if err != nil {
		c.t.Fatalf("hvctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(out)
}

// visitor is a caller other than the operator, at one replica.
type visitor struct {
	*api
	c      *cluster
	name   string
	bearer string
}

// ctx is the context of one of its calls.
func (v *visitor) ctx() context.Context {
	ctx := v.c.within(time.Minute)
	if v.bearer != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+v.bearer)
	}
	return ctx
}

// visitor connects with a bearer and no certificate, or with a certificate of the cluster's CA.
func (c *cluster) visitor(at *lab.Replica, name, bearer string) *visitor {
	c.t.Helper()
	config, err := c.OperatorTLS()
	c.must(err)
	if bearer != "" {
		config.Certificates, config.GetClientCertificate = nil, nil
	} else {
		certPEM, keyPEM, err := lab.Issue(c.ca(), certs.ClientLeaf(name, time.Hour), time.Now())
		c.must(err)
		config, err = c.TLSWith(certPEM, keyPEM)
		c.must(err)
	}
	conn, err := c.DialAs(at, config)
	c.must(err)
	c.t.Cleanup(func() { _ = conn.Close() })
	return &visitor{api: newAPI(at, conn), c: c, name: name, bearer: bearer}
}

// refusal checks that a call was refused so, and gives what the caller was told.
func (v *visitor) refusal(what string, err error, want codes.Code) string {
	v.c.t.Helper()
	if status.Code(err) != want {
		v.c.t.Errorf("%s, %s: %v, want %v", v.name, what, err, want)
	}
	return status.Convert(err).Message()
}

// names are those of the VMs that it is shown.
func (v *visitor) vmNames() []string {
	v.c.t.Helper()
	list, err := v.vms.ListVMs(v.ctx(), &debvisorv1.VMFilter{})
	v.c.must(err)
	var names []string
	for _, vm := range list.GetVms() {
		names = append(names, vm.GetName())
	}
	slices.Sort(names)
	return names
}

// premises is a lab whose two guests belong to two tenants.
type premises struct {
	*cluster
	leader, follower *lab.Replica
	acme, beta       *mover
}

// TestFrontDoor lets a CI job with an API key, a panel's user with a JWT and a service with a certificate do what their roles
// and tenants allow, and nothing else. What the audit logs say of it is the proof.
func TestFrontDoor(t *testing.T) {
	c := plain.use(t)
	follower, leader := c.follower()
	p := &premises{cluster: c, leader: leader, follower: follower.replica, acme: c.guest("web"), beta: c.powered("beta-db")}
	p.furnish()
	key := c.hvctl(p.follower, "key", "create", "ci", "--description", "front door")
	c.secret(key)
	ci := c.visitor(p.follower, "ci", key)
	operation := p.job(ci)
	p.panel()
	p.service()
	p.byHand()
	p.revoked(ci)
	p.proof(operation)
}

// furnish makes tenants, roles and principals, and gives the guests away until the test ends.
func (p *premises) furnish() {
	p.t.Helper()
	at := p.follower
	p.hvctl(at, "tenant", "set", "acme")
	p.hvctl(at, "tenant", "set", "beta")
	p.hvctl(at, "role", "set", "mover", "--permission", "migration:*", "--permission", "vm:list", "--permission", "vm:get",
		"--permission", "operation:get", "--permission", "operation:list", "--permission", "node:list")
	p.hvctl(at, "principal", "set", "ci", "--type", "service", "--role", "mover", "--tenant", "acme")
	p.hvctl(at, "principal", "set", "ada", "--type", "user", "--role", "viewer", "--tenant", "beta")
	p.hvctl(at, "principal", "set", "metrics", "--type", "service", "--role", "monitor")
	for _, g := range []struct {
		*mover
		tenant string
	}{{p.acme, "acme"}, {p.beta, "beta"}} {
		p.hvctl(at, "vm", "policy", "set", g.UUID, "--tenant", g.tenant)
		p.t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // the test's own has ended
			defer cancel()
			if out, err := p.Hvctl(ctx, at, "vm", "policy", "set", g.UUID, "--clear"); err != nil {
				p.t.Errorf("taking %s back: %v\n%s", g.Name, err, out)
			}
		})
	}
}

// job is the CI job's: it moves its tenant's VM, and does not learn that others exist.
func (p *premises) job(ci *visitor) (operation string) {
	p.t.Helper()
	if got := ci.vmNames(); !slices.Equal(got, []string{p.acme.Name}) {
		p.t.Errorf("the CI job is shown the VMs %v", got)
	}
	moved, err := ci.migrations.MigrateVM(ci.ctx(), &debvisorv1.VMMigrateSpec{Vm: vmRef(p.acme.Name), Target: node(p.acme.to.Name)})
	p.must(err)
	p.acme.arrived()
	p.acme.from, p.acme.to = p.acme.to, p.acme.from

	const nobody = "3f5c2c6e-0000-4000-8000-000000000000"
	get := func(id string) error {
		_, err := ci.vms.GetVM(ci.ctx(), vmRef(id))
		return err
	}
	move := func(id string) error {
		_, err := ci.migrations.MigrateVM(ci.ctx(), &debvisorv1.VMMigrateSpec{Vm: vmRef(id), Target: node(p.beta.to.Name)})
		return err
	}
	for what, call := range map[string]func(string) error{"looking at another's VM": get, "moving another's VM": move} {
		none := ci.refusal(what, call(nobody), codes.NotFound)
		for _, id := range []string{p.beta.UUID, p.beta.Name} {
			if told := ci.refusal(what, call(id), codes.NotFound); strings.ReplaceAll(told, id, nobody) != none {
				p.t.Errorf("%s is told %q, of one that does not exist %q", what, told, none)
			}
		}
	}
	_, err = ci.nodes.CordonNode(ci.ctx(), &debvisorv1.CordonRequest{Node: node(p.beta.from.Name)})
	ci.refusal("cordoning a node", err, codes.PermissionDenied)
	p.must(p.beta.runsOnly(p.beta.from))
	list, err := ci.operations.ListOperations(ci.ctx(), &debvisorv1.OperationFilter{Limit: 1000})
	p.must(err)
	if len(list.GetOperations()) == 0 {
		p.t.Error("the CI job is not shown its own operation")
	}
	for _, op := range list.GetOperations() {
		if strings.Contains(op.String(), p.beta.UUID) || strings.Contains(op.String(), p.beta.Name) {
			p.t.Errorf("the CI job is shown %v", op)
		}
	}
	return moved.GetOperationId()
}

// panel is the panel's user's: it looks, and changes nothing.
func (p *premises) panel() {
	p.t.Helper()
	ada := p.visitor(p.leader, "ada", p.panelToken("ada", issuer))
	if got := ada.vmNames(); !slices.Equal(got, []string{p.beta.Name}) {
		p.t.Errorf("the panel's user is shown the VMs %v", got)
	}
	_, err := ada.migrations.MigrateVM(ada.ctx(), &debvisorv1.VMMigrateSpec{Vm: vmRef(p.beta.UUID), Target: node(p.beta.to.Name)})
	ada.refusal("moving its VM", err, codes.PermissionDenied)
	_, err = ada.vms.GetVM(ada.ctx(), vmRef(p.acme.UUID))
	ada.refusal("looking at another's VM", err, codes.NotFound)

	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	p.must(err)
	forged := p.visitor(p.leader, "forged", p.panelToken("operator", stranger))
	_, err = forged.nodes.ListNodes(forged.ctx(), &debvisorv1.Empty{})
	forged.refusal("listing nodes", err, codes.Unauthenticated)
}

// service is the monitoring's: nodes, and nothing of VMs.
func (p *premises) service() {
	p.t.Helper()
	metrics := p.visitor(p.leader, "metrics", "")
	_, err := metrics.nodes.ListNodes(metrics.ctx(), &debvisorv1.Empty{})
	p.must(err)
	_, err = metrics.vms.ListVMs(metrics.ctx(), &debvisorv1.VMFilter{})
	metrics.refusal("listing VMs", err, codes.PermissionDenied)
}

// byHand sets a key up as the contract says, with etcdctl's words: it is taken at once, and its text is gone from both records.
// Another stands in the access file.
func (p *premises) byHand() {
	p.t.Helper()
	const plainKey = "by-hand-5e1f6b7c88d94a13"
	p.secret(plainKey)
	p.secret(nightly)
	cli := p.etcd(p.leader)
	keys := []string{keyPrefix + "apikeys/ci-system", keyPrefix + "principals/ci-system"}
	p.t.Cleanup(func() {
		for _, key := range keys {
			_, err := p.etcd(p.leader).Delete(context.WithoutCancel(p.t.Context()), key)
			if err != nil {
				p.t.Error(err)
			}
		}
	})
	_, err := cli.Put(p.within(10*time.Second), keys[0], plainKey)
	p.must(err)
	_, err = cli.Put(p.within(10*time.Second), keys[1],
		`{"type": "service", "apikey_id": "`+plainKey+`", "permissions": ["node:list", "storage:snapshot:list"]}`)
	p.must(err)
	for name, bearer := range map[string]string{"ci-system": plainKey, "nightly": nightly} {
		v := p.visitor(p.follower, name, bearer)
		p.eventually(5*time.Second, name+"'s key is taken", func() error {
			_, err := v.nodes.ListNodes(v.ctx(), &debvisorv1.Empty{})
			return err
		})
		_, err = v.vms.ListVMs(v.ctx(), &debvisorv1.VMFilter{})
		v.refusal("listing VMs", err, codes.PermissionDenied)
	}
	p.eventually(5*time.Second, "the key's text is gone", func() error {
		for _, key := range keys {
			got, err := cli.Get(p.within(10*time.Second), key)
			p.must(err)
			if len(got.Kvs) != 1 || strings.Contains(string(got.Kvs[0].Value), plainKey) {
				return fmt.Errorf("%s is %q", key, got.Kvs)
			}
		}
		return nil
	})
	if list := p.hvctl(p.follower, "key", "list", "-o", "wide"); !strings.Contains(list, "ci-system") || !strings.Contains(list, "rotate") {
		p.t.Errorf("the list of keys asks for no rotation:\n%s", list)
	}
}

// revoked ends the CI job's key while it watches a migration: the watch ends within a second, every replica refuses the key
// within five, and the migration, which is not its caller's any more, goes on.
func (p *premises) revoked(ci *visitor) {
	p.t.Helper()
	g := p.acme
	p.must(g.from.SetMigrateSpeed(g.UUID, slow))
	p.t.Cleanup(func() { _ = g.from.SetMigrateSpeed(g.UUID, full) })
	var header metadata.MD
	ctx := metadata.AppendToOutgoingContext(ci.ctx(), "debvisor-wait", "none")
	_, err := ci.migrations.MigrateVM(ctx, &debvisorv1.VMMigrateSpec{Vm: vmRef(g.UUID), Target: node(g.to.Name)}, grpc.Header(&header))
	p.must(err)
	id := header.Get("debvisor-operation")[0]
	watch, err := ci.operations.WatchOperation(ci.ctx(), &debvisorv1.OperationRef{Id: id})
	p.must(err)
	_, err = watch.Recv()
	p.must(err)

	keyID, _, _ := strings.Cut(strings.TrimPrefix(ci.bearer, "dvk_"), "_")
	p.hvctl(p.leader, "key", "revoke", keyID)
	begun := time.Now()
	for err == nil {
		_, err = watch.Recv()
	}
	if took := time.Since(begun); status.Code(err) != codes.Unauthenticated || took > time.Second {
		p.t.Errorf("the watch ended after %s with %v", took, err)
	}
	for _, r := range p.Replicas {
		v := p.visitor(r, "ci", ci.bearer)
		p.eventually(5*time.Second, r.Name+" refuses the key", func() error {
			_, err := v.vms.ListVMs(v.ctx(), &debvisorv1.VMFilter{})
			if status.Code(err) != codes.Unauthenticated {
				return errors.Join(errors.New("it is taken"), err)
			}
			return nil
		})
	}
	p.must(g.from.SetMigrateSpeed(g.UUID, full))
	p.eventually(time.Minute, "the migration ends", func() error {
		op, err := p.api(p.leader).operations.GetOperation(p.within(10*time.Second), &debvisorv1.OperationRef{Id: id})
		if err == nil && op.GetState() != debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED {
			err = errors.New(op.GetState().String())
		}
		return err
	})
	g.arrived()
}

// proof reads the replicas' audit logs: what was done and what was refused stands there, by whom, and the chains are whole.
func (p *premises) proof(operation string) {
	p.t.Helper()
	p.eventually(10*time.Second, "the audit logs tell it all", func() error {
		events, missing := p.events(), []error(nil)
		for _, want := range []audited{
			{"rpc_result", "ci", debvisorv1.MigrationService_MigrateVM_FullMethodName, "OK", operation},
			{"system_action", "system:migrate", "migrate", "SUCCEEDED", operation},
			{"rpc_result", "ci", debvisorv1.VMService_GetVM_FullMethodName, "NOT_FOUND", ""},
			{"permission_denied", "ci", debvisorv1.NodeService_CordonNode_FullMethodName, "PERMISSION_DENIED", ""},
			{"rpc_result", "ada", debvisorv1.VMService_ListVMs_FullMethodName, "OK", ""},
			{"permission_denied", "ada", debvisorv1.MigrationService_MigrateVM_FullMethodName, "PERMISSION_DENIED", ""},
			{"authentication_failure", "", debvisorv1.NodeService_ListNodes_FullMethodName, "UNAUTHENTICATED", ""},
			{"rpc_result", "metrics", debvisorv1.NodeService_ListNodes_FullMethodName, "OK", ""},
			{"permission_denied", "metrics", debvisorv1.VMService_ListVMs_FullMethodName, "PERMISSION_DENIED", ""},
			{"rpc_result", "operator", debvisorv1.AccessService_RevokeKey_FullMethodName, "OK", ""},
		} {
			if !slices.ContainsFunc(events, func(e audited) bool {
				e.Operation = e.Operation[:min(len(e.Operation), len(want.Operation))]
				return e == want
			}) {
				missing = append(missing, fmt.Errorf("no audit log has %+v", want))
			}
		}
		return errors.Join(missing...)
	})
	p.hvctl(p.follower, "audit", "verify")
}

// audited is what a line of an audit log says.
type audited struct{ Event, Principal, Method, Code, Operation string }

// events are those of all replicas' audit logs.
func (p *premises) events() []audited {
	p.t.Helper()
	var events []audited
	for _, r := range p.Replicas {
		raw, err := os.ReadFile(r.Audit())
		p.must(err)
		for line := range strings.Lines(string(raw)) {
			var e audited
			if json.Unmarshal([]byte(line), &e) == nil {
				events = append(events, e)
			}
		}
	}
	return events
}
