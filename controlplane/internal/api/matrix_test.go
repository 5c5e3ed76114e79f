package api_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// fixture is how the matrix calls one method: so that an allowed call shows that
// it was, and changes nothing that another call of the matrix depends on.
type fixture struct {
	request func(o *objects) proto.Message
	// found is what comes of a call of something that the caller may touch.
	found codes.Code
	// scoped methods are about a thing that belongs to a tenant, or to nobody.
	scoped bool
	// missing is what comes of a thing that does not exist for a caller that no
	// tenant confines; OK: NotFound.
	missing codes.Code
}

// reached is for methods of which other tests say what comes of them: anything
// but a refusal at the door.
const reached = codes.Code(100)

// fixtures has every method but those that only agents may call.
func fixtures() map[string]fixture {
	all := map[string]fixture{}
	for _, some := range []map[string]fixture{nodeFixtures(), vmFixtures(), moveFixtures(), storageFixtures(), accessFixtures(), certificateFixtures(), otherFixtures()} {
		maps.Copy(all, some)
	}
	return all
}

// always makes the same request whatever it is to be about.
func always(m proto.Message) func(*objects) proto.Message {
	return func(*objects) proto.Message { return m }
}

func nodeFixtures() map[string]fixture {
	spare, empty := nodeRef("spare"), always(&debvisorv1.Empty{})
	return map[string]fixture{
		debvisorv1.NodeService_RegisterNode_FullMethodName: {
			request: always(&debvisorv1.NodeInfo{Id: &debvisorv1.NodeId{Id: "spare"}}), found: codes.AlreadyExists,
		},
		debvisorv1.NodeService_Heartbeat_FullMethodName:  {request: always(&debvisorv1.Health{NodeId: &debvisorv1.NodeId{Id: "spare"}})},
		debvisorv1.NodeService_ListNodes_FullMethodName:  {request: empty},
		debvisorv1.NodeService_GetNode_FullMethodName:    {request: always(nodeRef("a"))},
		debvisorv1.NodeService_CordonNode_FullMethodName: {request: always(&debvisorv1.CordonRequest{Node: spare})},
		debvisorv1.NodeService_UncordonNode_FullMethodName: {
			request: always(spare),
		},
		debvisorv1.NodeService_EvacuateNode_FullMethodName: {
			request: always(&debvisorv1.EvacuateRequest{Node: nodeRef("a")}), found: codes.Aborted,
		},
		debvisorv1.NodeService_RestoreNode_FullMethodName: {
			request: always(&debvisorv1.RestoreRequest{Node: nodeRef("a")}), found: codes.Aborted,
		},
		debvisorv1.NodeService_ConfirmNodeOff_FullMethodName: {
			request: always(&debvisorv1.NodeOffRequest{Node: spare, Reason: "seen"}), found: codes.FailedPrecondition,
		},
		debvisorv1.NodeService_SetNodeLimits_FullMethodName: {
			request: always(&debvisorv1.NodeLimitsRequest{Node: spare, Limits: &debvisorv1.NodeLimits{}}),
		},
		debvisorv1.NodeService_CreateJoinToken_FullMethodName: {
			request: always(&debvisorv1.JoinTokenRequest{Kind: debvisorv1.JoinTokenKind_JOIN_TOKEN_KIND_NODE}),
		},
		debvisorv1.NodeService_ListJoinTokens_FullMethodName:  {request: empty},
		debvisorv1.NodeService_RevokeJoinToken_FullMethodName: {request: always(&debvisorv1.JoinTokenRef{Id: "none"}), found: reached},
		debvisorv1.ClusterService_GetCluster_FullMethodName:   {request: empty},

		debvisorv1.ClusterService_GetClusterStatus_FullMethodName: {request: empty},
		debvisorv1.ClusterService_Backup_FullMethodName: {
			request: always(&debvisorv1.BackupRequest{RecoveryKey: make([]byte, 32)}), found: reached,
		},
		debvisorv1.ClusterService_RemoveReplica_FullMethodName:  {request: always(&debvisorv1.RemoveReplicaRequest{Name: "matrix-none"}), found: reached},
		debvisorv1.ClusterService_ConfirmRestore_FullMethodName: {request: always(&debvisorv1.RestoreConfirmation{Epoch: 1, Reason: "seen"}), found: reached},
	}
}

// The VMs are in use, so that nothing is begun.
func vmFixtures() map[string]fixture {
	ref := func(o *objects) proto.Message { return &debvisorv1.VMRef{VmId: o.vm} }
	operation := func(o *objects) proto.Message { return &debvisorv1.OperationRef{Id: o.operation} }
	return map[string]fixture{
		debvisorv1.VMService_ListVMs_FullMethodName: {request: always(&debvisorv1.VMFilter{})},
		debvisorv1.VMService_GetVM_FullMethodName:   {request: ref, scoped: true},
		debvisorv1.VMService_SetVMPolicy_FullMethodName: {
			request: func(o *objects) proto.Message {
				return &debvisorv1.VMPolicyRequest{Vm: &debvisorv1.VMRef{VmId: o.vm}, Policy: &debvisorv1.VMPolicy{Priority: 1}}
			},
			scoped: true, found: codes.Aborted,
		},
		debvisorv1.VMService_SetVMAutostart_FullMethodName: {
			request: func(o *objects) proto.Message {
				return &debvisorv1.VMAutostartRequest{Vm: &debvisorv1.VMRef{VmId: o.vm}}
			},
			scoped: true, found: codes.Aborted,
		},
		debvisorv1.VMService_StartVM_FullMethodName: {request: ref, scoped: true, found: codes.Aborted},
		debvisorv1.VMService_ShutdownVM_FullMethodName: {
			request: func(o *objects) proto.Message {
				return &debvisorv1.VMShutdownRequest{Vm: &debvisorv1.VMRef{VmId: o.vm}}
			},
			scoped: true, found: codes.Aborted,
		},
		debvisorv1.VMService_DestroyVM_FullMethodName:             {request: ref, scoped: true, found: codes.Aborted},
		debvisorv1.OperationService_GetOperation_FullMethodName:   {request: operation, scoped: true},
		debvisorv1.OperationService_WatchOperation_FullMethodName: {request: operation, scoped: true},
		debvisorv1.OperationService_CancelOperation_FullMethodName: {
			request: operation, scoped: true, found: codes.FailedPrecondition, // it is too late
		},
		debvisorv1.OperationService_ListOperations_FullMethodName: {request: always(&debvisorv1.OperationFilter{})},
	}
}

func moveFixtures() map[string]fixture {
	plan := func(o *objects) proto.Message { return &debvisorv1.PlanRef{PlanId: o.plan} }
	return map[string]fixture{
		debvisorv1.MigrationService_PrepareMigration_FullMethodName: {
			request: func(o *objects) proto.Message {
				return &debvisorv1.VMMigratePlan{Vm: &debvisorv1.VMRef{VmId: o.vm}}
			},
			scoped: true,
		},
		debvisorv1.MigrationService_MigrateVM_FullMethodName: {
			request: func(o *objects) proto.Message {
				return &debvisorv1.VMMigrateSpec{Vm: &debvisorv1.VMRef{VmId: o.vm}}
			},
			scoped: true, found: codes.Aborted,
		},
		debvisorv1.MigrationService_FailoverVM_FullMethodName: {
			request: func(o *objects) proto.Message { return &debvisorv1.VMRef{VmId: o.vm} },
			scoped:  true, found: codes.Aborted,
		},
		debvisorv1.MigrationService_PlanFailover_FullMethodName: {
			request: func(o *objects) proto.Message {
				return &debvisorv1.FailoverRequest{Vm: &debvisorv1.VMRef{VmId: o.vm}}
			},
			scoped: true,
		},
		debvisorv1.MigrationService_ExecuteFailover_FullMethodName: {
			request: func(o *objects) proto.Message {
				return &debvisorv1.FailoverRequest{Vm: &debvisorv1.VMRef{VmId: o.vm}, NodeIsOff: true}
			},
			scoped: true, found: codes.Aborted,
		},
		debvisorv1.MigrationService_ListLostCopies_FullMethodName: {request: always(&debvisorv1.Empty{})},
		debvisorv1.MigrationService_ReverseReplication_FullMethodName: {
			request: func(o *objects) proto.Message {
				return &debvisorv1.LostCopyRef{Vm: &debvisorv1.VMRef{VmId: o.vm}, Node: nodeRef("lost")}
			},
			scoped: true, found: codes.FailedPrecondition, // the copy is not gone
		},
		debvisorv1.MigrationService_PlanEvacuation_FullMethodName: {request: always(&debvisorv1.EvacuationPlanRequest{Node: nodeRef("a")})},
		debvisorv1.MigrationService_PlanRebalance_FullMethodName:  {request: always(&debvisorv1.RebalancePlanRequest{})},
		debvisorv1.MigrationService_ListPlans_FullMethodName:      {request: always(&debvisorv1.Empty{})},
		debvisorv1.MigrationService_GetPlan_FullMethodName:        {request: plan, scoped: true},
		debvisorv1.MigrationService_ExecutePlan_FullMethodName:    {request: plan, scoped: true, found: codes.Aborted},
	}
}

// d/x and the job are in use, so that nothing is begun.
func storageFixtures() map[string]fixture {
	rules := &debvisorv1.RetentionPolicy{KeepLast: 1}
	ref := func(o *objects, name string) *debvisorv1.DatasetRef {
		return &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_ZFS, Pool: o.pool, Name: name}
	}
	about := func(found codes.Code, request func(*debvisorv1.DatasetRef) proto.Message) fixture {
		return fixture{request: func(o *objects) proto.Message { return request(ref(o, "d/x")) }, scoped: true, found: found}
	}
	image := func(found codes.Code, request func(*debvisorv1.DatasetRef) proto.Message) fixture {
		return about(found, func(d *debvisorv1.DatasetRef) proto.Message {
			d.Backend = debvisorv1.StorageBackend_BACKEND_RBD
			return request(d)
		})
	}
	snapshot := func(d *debvisorv1.DatasetRef) *debvisorv1.SnapshotRef {
		return &debvisorv1.SnapshotRef{Dataset: d, SnapshotName: "s1"}
	}
	job := func(found codes.Code) fixture {
		return fixture{request: func(o *objects) proto.Message { return &debvisorv1.JobRef{JobId: o.job} }, scoped: true, found: found}
	}
	policy := fixture{request: always(&debvisorv1.StoragePolicyRef{Name: "matrix-none"}), found: codes.NotFound}
	return map[string]fixture{
		debvisorv1.StorageService_CreateSnapshot_FullMethodName: about(codes.Aborted, func(d *debvisorv1.DatasetRef) proto.Message {
			return &debvisorv1.SnapshotRequest{Dataset: d}
		}),
		debvisorv1.StorageService_CreateSnapshotSet_FullMethodName: about(codes.Aborted, func(d *debvisorv1.DatasetRef) proto.Message {
			return &debvisorv1.SnapshotSetRequest{Datasets: []*debvisorv1.DatasetRef{d}}
		}),
		debvisorv1.StorageService_ListSnapshots_FullMethodName: about(codes.OK, func(d *debvisorv1.DatasetRef) proto.Message {
			return &debvisorv1.SnapshotFilter{Dataset: d}
		}),
		debvisorv1.StorageService_GetSnapshot_FullMethodName: about(codes.OK, func(d *debvisorv1.DatasetRef) proto.Message { return snapshot(d) }),
		debvisorv1.StorageService_DeleteSnapshots_FullMethodName: about(codes.Aborted, func(d *debvisorv1.DatasetRef) proto.Message {
			return &debvisorv1.DeleteSnapshotsRequest{Snapshots: []*debvisorv1.SnapshotRef{snapshot(d)}}
		}),
		debvisorv1.StorageService_PruneSnapshots_FullMethodName: about(codes.Aborted, func(d *debvisorv1.DatasetRef) proto.Message {
			return &debvisorv1.PruneRequest{Dataset: d, Policy: rules}
		}),
		debvisorv1.StorageService_PlanPrune_FullMethodName: about(codes.OK, func(d *debvisorv1.DatasetRef) proto.Message {
			return &debvisorv1.PruneRequest{Dataset: d, Policy: rules}
		}),
		debvisorv1.StorageService_PlanZfsReplication_FullMethodName: about(codes.OK, func(d *debvisorv1.DatasetRef) proto.Message {
			return &debvisorv1.ZfsReplicationPlan{Dataset: d, Target: nodeRef("b")}
		}),
		debvisorv1.StorageService_CreateRbdTemplateSnapshot_FullMethodName: image(codes.Aborted, func(d *debvisorv1.DatasetRef) proto.Message {
			return &debvisorv1.RbdTemplateRequest{Image: d}
		}),
		debvisorv1.StorageService_CloneRbdFromTemplate_FullMethodName: image(codes.FailedPrecondition, func(d *debvisorv1.DatasetRef) proto.Message {
			return &debvisorv1.RbdCloneRequest{TemplateSnapshot: snapshot(d), NewImage: d}
		}),
		debvisorv1.StorageService_PlanClone_FullMethodName: image(codes.OK, func(d *debvisorv1.DatasetRef) proto.Message {
			return &debvisorv1.RbdCloneRequest{TemplateSnapshot: snapshot(d), NewImage: d}
		}),
		debvisorv1.StorageService_ListImages_FullMethodName: {request: always(&debvisorv1.ImageFilter{})},
		debvisorv1.StorageService_FlattenImage_FullMethodName: image(codes.FailedPrecondition, func(d *debvisorv1.DatasetRef) proto.Message {
			return &debvisorv1.ImageRef{Image: d}
		}),
		debvisorv1.StorageService_DeleteImage_FullMethodName: image(codes.FailedPrecondition, func(d *debvisorv1.DatasetRef) proto.Message {
			return &debvisorv1.ImageRef{Image: d}
		}),
		debvisorv1.StorageService_RunZfsReplication_FullMethodName:     job(codes.Aborted),
		debvisorv1.StorageService_DeleteReplication_FullMethodName:     job(codes.Aborted),
		debvisorv1.StorageService_GetReplicationStatus_FullMethodName:  job(codes.OK),
		debvisorv1.StorageService_ListReplications_FullMethodName:      {request: always(&debvisorv1.ReplicationFilter{})},
		debvisorv1.StorageService_ListStorage_FullMethodName:           {request: always(&debvisorv1.StorageFilter{})},
		debvisorv1.StorageService_ListRetentionPolicies_FullMethodName: {request: always(&debvisorv1.Empty{})},
		debvisorv1.StorageService_SetRetentionPolicy_FullMethodName: {request: func(o *objects) proto.Message {
			return &debvisorv1.RetentionPolicySpec{Name: "matrix", Rules: rules, Datasets: []*debvisorv1.DatasetRef{ref(o, "d/y")}}
		}, found: reached},
		debvisorv1.StorageService_ListReplicationPolicies_FullMethodName: {request: always(&debvisorv1.Empty{})},
		debvisorv1.StorageService_SetReplicationPolicy_FullMethodName: {request: func(o *objects) proto.Message {
			return &debvisorv1.ReplicationPolicySpec{
				Name: "matrix", Datasets: []*debvisorv1.DatasetRef{ref(o, "d/y")}, Targets: []*debvisorv1.ReplicationTarget{{Node: nodeRef("b")}},
			}
		}, found: reached},
		debvisorv1.StorageService_DeleteRetentionPolicy_FullMethodName:   policy,
		debvisorv1.StorageService_DeleteReplicationPolicy_FullMethodName: policy,
	}
}

// What who may do what is kept by belongs to all; package access has the tests
// of what comes of it.
func accessFixtures() map[string]fixture {
	all := map[string]fixture{
		debvisorv1.AccessService_WhoAmI_FullMethodName:      {request: always(&debvisorv1.Empty{})},
		debvisorv1.AccessService_CheckAccess_FullMethodName: {request: always(&debvisorv1.AccessCheck{Permission: "vm:list"})},
	}
	none := &debvisorv1.PrincipalRef{Name: "matrix-none"}
	for method, request := range map[string]proto.Message{
		debvisorv1.AccessService_CreateKey_FullMethodName:               &debvisorv1.KeyRequest{Principal: none.GetName()},
		debvisorv1.AccessService_ListKeys_FullMethodName:                &debvisorv1.KeyFilter{},
		debvisorv1.AccessService_RotateKey_FullMethodName:               &debvisorv1.KeyRotation{Id: "0123456789abcdef"},
		debvisorv1.AccessService_RevokeKey_FullMethodName:               &debvisorv1.KeyRef{Id: "0123456789abcdef"},
		debvisorv1.AccessService_RevokeCertificate_FullMethodName:       &debvisorv1.CertificateRevocation{Serial: "ABCDEF"},
		debvisorv1.AccessService_ListRevokedCertificates_FullMethodName: &debvisorv1.Empty{},
		debvisorv1.AccessService_ListRoles_FullMethodName:               &debvisorv1.Empty{},
		debvisorv1.AccessService_GetRole_FullMethodName:                 &debvisorv1.RoleRef{Name: "operator"},
		debvisorv1.AccessService_SetRole_FullMethodName:                 &debvisorv1.Role{Name: "matrix", Permissions: []string{"vm:get"}},
		debvisorv1.AccessService_DeleteRole_FullMethodName:              &debvisorv1.RoleRef{Name: "matrix-none"},
		debvisorv1.AccessService_ListPrincipals_FullMethodName:          &debvisorv1.PrincipalFilter{},
		debvisorv1.AccessService_GetPrincipal_FullMethodName:            none,
		debvisorv1.AccessService_SetPrincipal_FullMethodName:            &debvisorv1.Principal{Name: "matrix"},
		debvisorv1.AccessService_SetPrincipalLimit_FullMethodName:       &debvisorv1.PrincipalLimit{Name: none.GetName()},
		debvisorv1.AccessService_DeletePrincipal_FullMethodName:         none,
		debvisorv1.AccessService_ListTenants_FullMethodName:             &debvisorv1.Empty{},
		debvisorv1.AccessService_SetTenant_FullMethodName:               &debvisorv1.Tenant{Name: "matrix"},
		debvisorv1.AccessService_DeleteTenant_FullMethodName:            &debvisorv1.TenantRef{Name: "matrix-none"},
	} {
		all[method] = fixture{request: always(request), found: reached}
	}
	return all
}

// Package pki has the tests of what comes of them.
func certificateFixtures() map[string]fixture {
	return map[string]fixture{
		debvisorv1.CertificateService_IssueCertificate_FullMethodName: {
			request: always(&debvisorv1.CertificateRequest{Principal: "matrix-none", Csr: []byte("none")}), found: codes.InvalidArgument,
		},
		debvisorv1.CertificateService_ListCertificates_FullMethodName: {request: always(&debvisorv1.CertificateFilter{})},
		debvisorv1.CertificateService_RevokeHolder_FullMethodName: {
			request: always(&debvisorv1.HolderRevocation{Holder: debvisorv1.CertificateHolder_CERTIFICATE_HOLDER_PRINCIPAL, Name: "matrix-none"}),
			found:   codes.NotFound,
		},
		debvisorv1.CertificateService_GetCA_FullMethodName: {request: always(&debvisorv1.Empty{})},
		debvisorv1.CertificateService_RotateCA_FullMethodName: {
			request: always(&debvisorv1.CARotationRequest{Action: debvisorv1.CAAction_CA_ACTION_FINISH}), found: codes.FailedPrecondition,
		},
	}
}

func otherFixtures() map[string]fixture {
	health := fixture{request: always(&healthv1.HealthCheckRequest{})}
	return map[string]fixture{
		debvisorv1.EventService_Watch_FullMethodName: {request: always(&debvisorv1.EventFilter{After: "oldest", UntilNow: true})},

		healthv1.Health_Check_FullMethodName: health,
		healthv1.Health_Watch_FullMethodName: health,
		healthv1.Health_List_FullMethodName:  {request: always(&healthv1.HealthListRequest{})},
		reflectionv1.ServerReflection_ServerReflectionInfo_FullMethodName: {
			request: always(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}),
		},
		reflectionv1alpha.ServerReflection_ServerReflectionInfo_FullMethodName: {
			request: always(&reflectionv1alpha.ServerReflectionRequest{ //nolint:staticcheck // deprecated, and served for older clients
				MessageRequest: &reflectionv1alpha.ServerReflectionRequest_ListServices{},
			}),
		},
		agentv1.EnrollService_Enroll_FullMethodName:           {request: always(&agentv1.EnrollRequest{}), found: reached},
		agentv1.EnrollService_JoinReplica_FullMethodName:      {request: always(&agentv1.JoinReplicaRequest{}), found: reached},
		agentv1.EnrollService_Renew_FullMethodName:            {request: always(&agentv1.RenewRequest{})},
		debvisorv1.AuditService_SearchAudit_FullMethodName:    {request: always(&debvisorv1.AuditQuery{}), found: reached},
		debvisorv1.AuditService_VerifyAudit_FullMethodName:    {request: always(&debvisorv1.Empty{}), found: reached},
		debvisorv1.AuditService_ListAuditHeads_FullMethodName: {request: always(&debvisorv1.Empty{}), found: reached},
	}
}

// roles are the built-in ones, as the contract has them.
func roles() map[string]func(permission string) bool {
	return map[string]func(string) bool{
		"operator": func(string) bool { return true },
		"developer": func(p string) bool {
			return p == "node:list" || p == "storage:snapshot:create" || p == "storage:snapshot:list" || strings.HasPrefix(p, "storage:clone:")
		},
		"monitor": func(p string) bool { return p == "node:list" || p == "node:heartbeat" },
		"viewer": func(p string) bool {
			return strings.HasSuffix(p, ":list") || strings.HasSuffix(p, ":get") || p == "migration:plan" || p == "storage:replication:status"
		},
	}
}

// caller is one who calls everything.
type caller struct {
	role, tenant string
	conn         *grpc.ClientConn
}

// verdict says what the design has come of a call: the code, and where it is
// refused at the door, by which rule.
func (c caller) verdict(rule authz.Rule, f fixture, about *objects) (codes.Code, string) {
	switch {
	case rule.Open:
		return f.found, ""
	case rule.Permission == "" && !rule.Anyone:
		return codes.PermissionDenied, "AGENTS_ONLY"
	case rule.Scope == authz.ScopeCluster && c.tenant != "":
		return codes.PermissionDenied, "CONFINED"
	case !rule.Anyone && !roles()[c.role](rule.Permission):
		return codes.PermissionDenied, "PERMISSION_DENIED"
	case !f.scoped || about.exist && (c.tenant == "" || c.tenant == about.tenant):
		return f.found, ""
	case c.tenant == "" && f.missing != codes.OK:
		return f.missing, ""
	}
	return codes.NotFound, ""
}

// TestEveryRPCAndRoleAndTenant calls every method that is registered, as every
// built-in role, confined to each of two tenants and to none, about what is its
// own, another tenant's, nobody's, and what does not exist.
func TestEveryRPCAndRoleAndTenant(t *testing.T) {
	w := startWorld(t)
	methods := registered(t, w.server)
	var wg sync.WaitGroup
	defer wg.Wait()
	for role := range roles() {
		for _, tenant := range []string{w.of["acme"].tenant, w.of["globex"].tenant, ""} {
			c := w.caller(role, tenant)
			wg.Go(func() {
				for _, m := range methods {
					w.callAll(t, c, m)
				}
			})
		}
	}
}

// callAll makes all the calls of one method by one caller.
func (w *world) callAll(t *testing.T, c caller, m method) {
	f := fixtures()[m.name]
	rule := authz.Methods()[m.name]
	if rule.Open && (c.role != "operator" || c.tenant != "") && !rule.Quiet {
		return // who calls is no matter, and failures are counted by address
	}
	refusals := map[string]string{} // what a thing is for the caller → how it is refused
	for _, kind := range []string{"acme", "globex", "nobody", "none"} {
		about := w.of[kind]
		_, err := m.call(t.Context(), c.conn, f.request(about))
		want, rule := c.verdict(rule, f, about)
		e := cmp.Or(errdefs.FromStatus(err), &errdefs.Error{})
		delete(e.Context, "trace_id")
		got := status.Code(err)
		refused := got == codes.PermissionDenied || got == codes.Unauthenticated && m.name != agentv1.EnrollService_Enroll_FullMethodName
		if want == reached && (refused || got == codes.Internal || got == codes.Unknown) || want != reached && got != want || rule != "" && e.Code != rule {
			t.Errorf("%s of %s's %s about %s: %v, want %v %s", m.name, c.tenant, c.role, kind, err, want, rule)
		}
		if !f.scoped {
			return
		}
		if c.tenant != "" && about.tenant != c.tenant && err != nil {
			refusals[about.disguise(fmt.Sprintln(status.Code(err), e.Code, e.Message, e.Context))] = kind
		}
	}
	if len(refusals) > 1 {
		t.Errorf("%s of %s's %s tells what is another's from what is not there: %v", m.name, c.tenant, c.role, refusals)
	}
}

// method is one of those that a server has.
type method struct {
	name            string
	sends, receives bool // streams of the caller, of the server
	answer          protoreflect.MessageType
}

// registered gives every method of a server. Each must have a fixture.
func registered(t *testing.T, server *grpc.Server) []method {
	t.Helper()
	has := fixtures()
	var all []method
	for service, info := range server.GetServiceInfo() {
		descriptor, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range info.Methods {
			name := "/" + service + "/" + m.Name
			if _, ok := has[name]; !ok {
				t.Fatalf("%s has no fixture: say here how it is called, and what belongs to tenants in it", name)
			}
			answer, err := protoregistry.GlobalTypes.FindMessageByName(
				descriptor.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(m.Name)).Output().FullName())
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, method{name, m.IsClientStream, m.IsServerStream, answer})
		}
	}
	slices.SortFunc(all, func(a, b method) int { return strings.Compare(a.name, b.name) })
	return all
}

// call makes one call, which waits for no operation's end, and gives all that
// comes back: of a stream the first message. Plans take their time where the
// tests of other packages run, too.
func (m method) call(ctx context.Context, conn *grpc.ClientConn, request proto.Message) (*reply, error) {
	for patience := time.Now().Add(time.Minute); ; {
		back, err := m.once(ctx, conn, request)
		if status.Code(err) != codes.Unavailable || time.Now().After(patience) {
			return back, err
		}
	}
}

func (m method) once(ctx context.Context, conn *grpc.ClientConn, request proto.Message) (*reply, error) {
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "debvisor-wait", "none"), 20*time.Second)
	defer cancel()
	back := &reply{message: m.answer.New().Interface()}
	if !m.sends && !m.receives {
		err := conn.Invoke(ctx, m.name, request, back.message, grpc.Header(&back.header), grpc.Trailer(&back.trailer))
		return back, err
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: m.receives, ClientStreams: m.sends}, m.name)
	if err != nil {
		return back, err
	}
	if err := stream.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return back, err
	}
	if !m.sends {
		if err := stream.CloseSend(); err != nil {
			return back, err
		}
	}
	if err = stream.RecvMsg(back.message); errors.Is(err, io.EOF) {
		return back, nil // an empty stream
	}
	return back, err
}

// reply is what came of a call.
type reply struct {
	message         proto.Message
	header, trailer metadata.MD
}

// caller makes a principal of a role and a tenant.
func (w *world) caller(role, tenant string) caller {
	name := role + "-of-" + cmp.Or(tenant, "nobody")
	w.put(store.PutJSON(store.PrincipalKey(name), &storev1.Principal{Roles: []string{role}, Tenant: tenant}))
	return caller{role, tenant, w.principal(name)}
}
