package authz_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
)

const (
	migrate   = debvisorv1.MigrationService_MigrateVM_FullMethodName
	prepare   = debvisorv1.MigrationService_PrepareMigration_FullMethodName
	listNodes = debvisorv1.NodeService_ListNodes_FullMethodName
	register  = debvisorv1.NodeService_RegisterNode_FullMethodName
	heartbeat = debvisorv1.NodeService_Heartbeat_FullMethodName
	snapshot  = debvisorv1.StorageService_CreateSnapshot_FullMethodName
	prune     = debvisorv1.StorageService_PruneSnapshots_FullMethodName
	clone     = debvisorv1.StorageService_CloneRbdFromTemplate_FullMethodName
	connect   = agentv1.SessionService_Connect_FullMethodName
	renew     = agentv1.EnrollService_Renew_FullMethodName
	askNode   = agentv1.RelayService_AskNode_FullMethodName
	enrol     = agentv1.EnrollService_Enroll_FullMethodName
	token     = debvisorv1.NodeService_CreateJoinToken_FullMethodName
)

func principal(name string) *authn.Caller {
	return &authn.Caller{Name: name, Identity: identity.Identity{Principal: &identity.Principal{Name: name}}}
}

func replica(name string) *authn.Caller {
	return &authn.Caller{Name: "replica:" + name, Replica: name}
}

func agent(node string, ends time.Time) *authn.Caller {
	return &authn.Caller{Name: "agent:" + node, Identity: identity.Identity{Agent: &identity.AgentIdentity{Node: node, NotAfter: ends}}}
}

// TestEveryMethodHasARow looks at all services that our protos define, but for
// the one that agents serve to each other.
func TestEveryMethodHasARow(t *testing.T) {
	rows := authz.Methods()
	seen := map[string]bool{}
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		if !strings.HasPrefix(string(f.Package()), "debvisor.") {
			return true
		}
		for i := range f.Services().Len() {
			service := f.Services().Get(i)
			if service.FullName() == "debvisor.agent.v1.PeerService" {
				continue
			}
			for j := range service.Methods().Len() {
				method := "/" + string(service.FullName()) + "/" + string(service.Methods().Get(j).Name())
				seen[method] = true
				if _, ok := rows[method]; !ok {
					t.Errorf("%s has no row: nobody could call it", method)
				}
			}
		}
		return true
	})
	if len(seen) < 20 {
		t.Fatalf("only %d methods found", len(seen))
	}
	for method, rule := range rows {
		if strings.HasPrefix(method, "/debvisor.") && !seen[method] {
			t.Errorf("%s has a row and does not exist", method)
		}
		if rule.Permission == "" && !rule.Agent && !rule.Replica && !rule.Open && !rule.Anyone {
			t.Errorf("%s has a row that lets nobody in", method)
		}
		if rule.Replica && (rule.Permission != "" || rule.Agent || rule.Open || rule.Anyone) {
			t.Errorf("%s is for replicas and others", method)
		}
		if rule.Open && rule.Permission != "" {
			t.Errorf("%s is open and yet wants a permission", method)
		}
	}
}

func TestAuthorize(t *testing.T) {
	d := cluster.Empty().Draft()
	record := func(name string, roles, permissions []string) {
		d.Principals.Put(name, &storev1.Principal{Roles: roles, Permissions: permissions}, 1)
	}
	record("ops", []string{"operator"}, nil)
	record("dev", []string{"developer"}, nil)
	record("mon", []string{"monitor"}, nil)
	record("see", []string{"viewer"}, nil)
	record("two", []string{"monitor", "viewer"}, nil)
	record("exact", nil, []string{"migration:execute"})
	record("deep", nil, []string{"storage:snapshot:*"})
	record("all-storage", nil, []string{"storage:*"})
	record("tricky", nil, []string{"storage", "migration", "stor*", "node:", "*", ":*", "migration:execute:*"})
	record("none", nil, nil)
	record("custom", []string{"mover"}, nil)
	record("unknown-role", []string{"wizard"}, nil)
	record("demoted", nil, nil)
	d.Roles.Put("mover", &storev1.Role{Permissions: []string{"migration:*"}}, 1)
	s := d.Snapshot(1)
	now := time.Now()
	a := authz.New(authz.Config{Founders: []string{"operator", "demoted"}})
	for _, c := range []struct {
		caller  *authn.Caller
		methods string // each with + or - before it
	}{
		{principal("ops"), "+" + migrate + " +" + listNodes + " +" + prune + " +" + token + " -" + connect + " -" + renew + " -" + askNode},
		{principal("operator"), "+" + migrate + " +" + token},
		{principal("demoted"), "-" + migrate + " -" + listNodes},
		{principal("dev"), "+" + listNodes + " +" + snapshot + " +" + clone + " -" + prune + " -" + migrate + " -" + prepare},
		{principal("mon"), "+" + listNodes + " +" + heartbeat + " -" + register + " -" + prepare},
		{principal("see"), "+" + listNodes + " +" + prepare + " -" + heartbeat + " -" + migrate + " -" + token},
		{principal("two"), "+" + heartbeat + " +" + prepare + " -" + migrate},
		{principal("exact"), "+" + migrate + " -" + prepare},
		{principal("deep"), "+" + snapshot + " +" + prune + " -" + clone},
		{principal("all-storage"), "+" + snapshot + " +" + prune + " +" + clone + " -" + migrate},
		{principal("tricky"), "-" + snapshot + " -" + migrate + " -" + listNodes},
		{principal("none"), "-" + listNodes},
		{principal("custom"), "+" + migrate + " -" + listNodes},
		{principal("unknown-role"), "-" + listNodes},
		{principal("stranger"), "-" + listNodes + " +" + enrol},
		{agent("n1", now.Add(time.Hour)), "+" + connect + " +" + renew + " +" + register + " +" + heartbeat + " -" + listNodes + " -" + migrate + " -" + askNode},
		{replica("r1"), "+" + askNode + " +" + enrol + " -" + connect + " -" + renew + " -" + heartbeat + " -" + listNodes + " -" + migrate + " -" + debvisorv1.AccessService_WhoAmI_FullMethodName},
		{agent("n1", now.Add(-time.Hour)), "+" + renew + " -" + connect + " -" + heartbeat + " -" + register},
		{nil, "+" + enrol + " -" + listNodes + " -" + connect + " -" + askNode},
		{principal("ops"), "-/debvisor.v1.NodeService/Unknown -debvisor.v1.NodeService/ListNodes -"},
	} {
		for _, word := range strings.Fields(c.methods) {
			err := a.Authorize(s, c.caller, word[1:], now)
			if (err == nil) != (word[0] == '+') {
				t.Errorf("%+v %s: %v", c.caller, word, err)
			}
			if err != nil && !errdefs.Is(err, errdefs.PermissionDenied) && !errdefs.Is(err, errdefs.Unauthenticated) {
				t.Errorf("%s: %v is of kind %d", word, err, errdefs.KindOf(err))
			}
		}
	}
	for _, caller := range []*authn.Caller{agent("n1", now), replica("r1")} {
		if err := a.Require(s, caller, "node:list"); err == nil {
			t.Errorf("%s has a principal's permission", caller.Name)
		}
	}
}

// TestFormerRolesDoNotBecomeOperators: what lets a caller be anybody is not covered by what roles were given when it did not exist.
func TestFormerRolesDoNotBecomeOperators(t *testing.T) {
	d := cluster.Empty().Draft()
	d.Principals.Put("revoker", &storev1.Principal{Permissions: []string{"certificate:*", "cluster:*"}}, 1)
	s := d.Snapshot(1)
	a := authz.New(authz.Config{})
	for method, want := range map[string]bool{
		debvisorv1.CertificateService_RevokeHolder_FullMethodName:     true,
		debvisorv1.CertificateService_IssueCertificate_FullMethodName: false,
		debvisorv1.CertificateService_RotateCA_FullMethodName:         false,
		debvisorv1.ClusterService_Backup_FullMethodName:               false,
	} {
		if err := a.Authorize(s, principal("revoker"), method, time.Now()); (err == nil) != want {
			t.Errorf("%s: %v", method, err)
		}
	}
}
