package authz

import (
	"maps"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// Rule says who may call a method, and what kind of call it is.
type Rule struct {
	// Permission is what a principal needs; empty: no principal may call it.
	Permission string
	// Agent lets agents call it, for their own node; the handler sees to that.
	Agent bool
	// Replica is for replicas alone.
	Replica bool
	// Open needs no identity: the call itself carries the proof, or needs none.
	Open bool
	// Expired lets an agent call it whose certificate has ended.
	Expired bool
	// Change marks what changes the cluster: it waits for the audit log.
	Change bool
	// Stale may be answered by a replica that has lost sight of etcd.
	Stale bool
	// Quiet is neither audited nor limited.
	Quiet bool
	// Anyone with an identity that is a principal may call it.
	Anyone bool
	// Scope says what a caller that is confined to a tenant meets.
	Scope Scope
}

// Scope says what a caller that is confined to a tenant meets in a method.
type Scope int

// The scopes. The zero value is the strictest.
const (
	// ScopeCluster is for callers that no tenant confines: what it reads or
	// changes belongs to all.
	ScopeCluster Scope = iota
	// ScopeTenant shows and touches only the tenant's own; all else does not
	// exist.
	ScopeTenant
	// ScopeShared is the same for everybody: it tells nothing of any tenant.
	ScopeShared
)

// Permissions of which a handler asks beyond its method's row.
const (
	// JoinReplica is needed to make a token that admits a replica, which gets
	// the keys of the CA.
	JoinReplica = "replica:join"
	// EvacuateNode is needed to carry out a plan that empties a node: it cordons
	// the node for everybody.
	EvacuateNode = "node:evacuate"
	// ListSnapshots is in the contract, which has no method for it.
	ListSnapshots = "storage:snapshot:list"
	// ReadMetrics is needed by whoever scrapes a replica's metrics.
	ReadMetrics = "metrics:get"
)

// handlers gives these permissions with whom each is for.
func handlers() map[string]Scope {
	return map[string]Scope{JoinReplica: ScopeCluster, EvacuateNode: ScopeCluster, ReadMetrics: ScopeCluster, ListSnapshots: ScopeTenant}
}

// Methods is the one table of who may call what, by full method name as
// routed. A method without a row is denied to everybody.
func Methods() map[string]Rule {
	all := map[string]Rule{}
	for _, some := range []map[string]Rule{clusterMethods(), accessMethods(), tenantMethods(), otherMethods()} {
		maps.Copy(all, some)
	}
	return all
}

func read(permission string) Rule { return Rule{Permission: permission} }

func change(permission string) Rule { return Rule{Permission: permission, Change: true} }

func ownRead(permission string) Rule { return Rule{Permission: permission, Scope: ScopeTenant} }

func ownChange(permission string) Rule {
	return Rule{Permission: permission, Change: true, Scope: ScopeTenant}
}

func shared(permission string) Rule { return Rule{Permission: permission, Scope: ScopeShared} }

// clusterMethods are about what belongs to all.
func clusterMethods() map[string]Rule {
	return map[string]Rule{
		debvisorv1.NodeService_RegisterNode_FullMethodName:    {Permission: "node:register", Agent: true, Change: true},
		debvisorv1.NodeService_Heartbeat_FullMethodName:       {Permission: "node:heartbeat", Agent: true},
		debvisorv1.NodeService_ListNodes_FullMethodName:       shared("node:list"),
		debvisorv1.NodeService_GetNode_FullMethodName:         shared("node:get"),
		debvisorv1.NodeService_CordonNode_FullMethodName:      change("node:cordon"),
		debvisorv1.NodeService_UncordonNode_FullMethodName:    change("node:uncordon"),
		debvisorv1.NodeService_EvacuateNode_FullMethodName:    change(EvacuateNode),
		debvisorv1.NodeService_RestoreNode_FullMethodName:     change("node:restore"),
		debvisorv1.NodeService_ConfirmNodeOff_FullMethodName:  change("node:confirm-off"),
		debvisorv1.NodeService_SetNodeLimits_FullMethodName:   change("node:limit"),
		debvisorv1.NodeService_CreateJoinToken_FullMethodName: change("token:create"),
		debvisorv1.NodeService_ListJoinTokens_FullMethodName:  read("token:list"),
		debvisorv1.NodeService_RevokeJoinToken_FullMethodName: change("token:revoke"),

		debvisorv1.ClusterService_GetCluster_FullMethodName:       read("cluster:get"),
		debvisorv1.ClusterService_GetClusterStatus_FullMethodName: read("cluster:get"),
		// It holds the keys of the CA, as what a joining replica gets: no role that was made when "cluster:*" read only has it.
		debvisorv1.ClusterService_Backup_FullMethodName:         change("replica:backup"),
		debvisorv1.ClusterService_RemoveReplica_FullMethodName:  change("cluster:member:remove"),
		debvisorv1.ClusterService_ConfirmRestore_FullMethodName: change("cluster:restore:confirm"),

		// Who issues certificates is whoever they like: not for roles of "certificate:*" that were made when it was to revoke and list.
		debvisorv1.CertificateService_IssueCertificate_FullMethodName: change("ca:issue"),
		debvisorv1.CertificateService_ListCertificates_FullMethodName: read("certificate:list"),
		debvisorv1.CertificateService_RevokeHolder_FullMethodName:     change("certificate:revoke"),
		debvisorv1.CertificateService_GetCA_FullMethodName:            read("ca:get"),
		debvisorv1.CertificateService_RotateCA_FullMethodName:         change("ca:rotate"),
	}
}

// accessMethods are about who may do what, and who did.
func accessMethods() map[string]Rule {
	return map[string]Rule{
		debvisorv1.AccessService_WhoAmI_FullMethodName:                  {Anyone: true, Scope: ScopeShared},
		debvisorv1.AccessService_CheckAccess_FullMethodName:             {Anyone: true, Scope: ScopeTenant},
		debvisorv1.AccessService_CreateKey_FullMethodName:               change("key:create"),
		debvisorv1.AccessService_ListKeys_FullMethodName:                read("key:list"),
		debvisorv1.AccessService_RotateKey_FullMethodName:               change("key:rotate"),
		debvisorv1.AccessService_RevokeKey_FullMethodName:               change("key:revoke"),
		debvisorv1.AccessService_RevokeCertificate_FullMethodName:       change("certificate:revoke"),
		debvisorv1.AccessService_ListRevokedCertificates_FullMethodName: read("certificate:list"),
		debvisorv1.AccessService_ListRoles_FullMethodName:               read("role:list"),
		debvisorv1.AccessService_GetRole_FullMethodName:                 read("role:get"),
		debvisorv1.AccessService_SetRole_FullMethodName:                 change("role:set"),
		debvisorv1.AccessService_DeleteRole_FullMethodName:              change("role:delete"),
		debvisorv1.AccessService_ListPrincipals_FullMethodName:          read("principal:list"),
		debvisorv1.AccessService_GetPrincipal_FullMethodName:            read("principal:get"),
		debvisorv1.AccessService_SetPrincipal_FullMethodName:            change("principal:set"),
		debvisorv1.AccessService_SetPrincipalLimit_FullMethodName:       change("principal:limit"),
		debvisorv1.AccessService_DeletePrincipal_FullMethodName:         change("principal:delete"),
		debvisorv1.AccessService_ListTenants_FullMethodName:             read("tenant:list"),
		debvisorv1.AccessService_SetTenant_FullMethodName:               change("tenant:set"),
		debvisorv1.AccessService_DeleteTenant_FullMethodName:            change("tenant:delete"),

		debvisorv1.AuditService_SearchAudit_FullMethodName:    read("audit:read"),
		debvisorv1.AuditService_VerifyAudit_FullMethodName:    read("audit:verify"),
		debvisorv1.AuditService_ListAuditHeads_FullMethodName: read("audit:verify"),
	}
}

// tenantMethods are about what may belong to a tenant.
func tenantMethods() map[string]Rule {
	return map[string]Rule{
		debvisorv1.VMService_ListVMs_FullMethodName:        ownRead("vm:list"),
		debvisorv1.VMService_GetVM_FullMethodName:          ownRead("vm:get"),
		debvisorv1.VMService_SetVMPolicy_FullMethodName:    ownChange("vm:policy"),
		debvisorv1.VMService_SetVMAutostart_FullMethodName: ownChange("vm:autostart"),
		debvisorv1.VMService_StartVM_FullMethodName:        ownChange("vm:start"),
		debvisorv1.VMService_ShutdownVM_FullMethodName:     ownChange("vm:shutdown"),
		debvisorv1.VMService_DestroyVM_FullMethodName:      ownChange("vm:destroy"),

		debvisorv1.OperationService_GetOperation_FullMethodName:    ownRead("operation:get"),
		debvisorv1.OperationService_ListOperations_FullMethodName:  ownRead("operation:list"),
		debvisorv1.OperationService_WatchOperation_FullMethodName:  ownRead("operation:get"),
		debvisorv1.OperationService_CancelOperation_FullMethodName: ownChange("operation:cancel"),

		debvisorv1.EventService_Watch_FullMethodName: ownRead("event:list"),

		debvisorv1.MigrationService_PrepareMigration_FullMethodName:   ownRead("migration:plan"),
		debvisorv1.MigrationService_MigrateVM_FullMethodName:          ownChange("migration:execute"),
		debvisorv1.MigrationService_FailoverVM_FullMethodName:         ownChange("migration:failover"),
		debvisorv1.MigrationService_PlanFailover_FullMethodName:       ownRead("migration:plan"),
		debvisorv1.MigrationService_ExecuteFailover_FullMethodName:    ownChange("migration:failover"),
		debvisorv1.MigrationService_ListLostCopies_FullMethodName:     ownRead("migration:lost:list"),
		debvisorv1.MigrationService_ReverseReplication_FullMethodName: ownChange("storage:replication:plan"),
		debvisorv1.MigrationService_PlanEvacuation_FullMethodName:     ownRead("migration:plan"),
		debvisorv1.MigrationService_PlanRebalance_FullMethodName:      read("migration:plan"),
		debvisorv1.MigrationService_GetPlan_FullMethodName:            ownRead("migration:plan"),
		debvisorv1.MigrationService_ListPlans_FullMethodName:          ownRead("migration:plan"),
		debvisorv1.MigrationService_ExecutePlan_FullMethodName:        ownChange("migration:execute"),

		debvisorv1.StorageService_CreateSnapshot_FullMethodName:            ownChange("storage:snapshot:create"),
		debvisorv1.StorageService_PruneSnapshots_FullMethodName:            ownChange("storage:snapshot:delete"),
		debvisorv1.StorageService_PlanZfsReplication_FullMethodName:        ownChange("storage:replication:plan"),
		debvisorv1.StorageService_RunZfsReplication_FullMethodName:         ownChange("storage:replication:execute"),
		debvisorv1.StorageService_GetReplicationStatus_FullMethodName:      ownRead("storage:replication:status"),
		debvisorv1.StorageService_ListStorage_FullMethodName:               ownRead("storage:list"),
		debvisorv1.StorageService_CreateSnapshotSet_FullMethodName:         ownChange("storage:snapshot:create"),
		debvisorv1.StorageService_ListSnapshots_FullMethodName:             ownRead(ListSnapshots),
		debvisorv1.StorageService_GetSnapshot_FullMethodName:               ownRead(ListSnapshots),
		debvisorv1.StorageService_DeleteSnapshots_FullMethodName:           ownChange("storage:snapshot:delete"),
		debvisorv1.StorageService_PlanPrune_FullMethodName:                 ownRead(ListSnapshots),
		debvisorv1.StorageService_SetRetentionPolicy_FullMethodName:        change("storage:retention:set"),
		debvisorv1.StorageService_ListRetentionPolicies_FullMethodName:     read("storage:retention:list"),
		debvisorv1.StorageService_DeleteRetentionPolicy_FullMethodName:     change("storage:retention:delete"),
		debvisorv1.StorageService_SetReplicationPolicy_FullMethodName:      change("storage:replication:policy"),
		debvisorv1.StorageService_ListReplicationPolicies_FullMethodName:   read("storage:replication:list"),
		debvisorv1.StorageService_DeleteReplicationPolicy_FullMethodName:   change("storage:replication:policy"),
		debvisorv1.StorageService_ListReplications_FullMethodName:          ownRead("storage:replication:list"),
		debvisorv1.StorageService_DeleteReplication_FullMethodName:         ownChange("storage:replication:delete"),
		debvisorv1.StorageService_CreateRbdTemplateSnapshot_FullMethodName: ownChange("storage:clone:template"),
		debvisorv1.StorageService_CloneRbdFromTemplate_FullMethodName:      ownChange("storage:clone:create"),
		debvisorv1.StorageService_PlanClone_FullMethodName:                 ownRead("storage:image:list"),
		debvisorv1.StorageService_ListImages_FullMethodName:                ownRead("storage:image:list"),
		debvisorv1.StorageService_FlattenImage_FullMethodName:              ownChange("storage:clone:flatten"),
		debvisorv1.StorageService_DeleteImage_FullMethodName:               ownChange("storage:clone:delete"),
	}
}

// otherMethods are those of agents and of who is not anyone yet, and what any
// gRPC server has.
func otherMethods() map[string]Rule {
	open := Rule{Open: true, Change: true, Scope: ScopeShared}
	health := Rule{Open: true, Stale: true, Quiet: true, Scope: ScopeShared}
	return map[string]Rule{
		agentv1.EnrollService_Enroll_FullMethodName:      open,
		agentv1.EnrollService_JoinReplica_FullMethodName: open,
		agentv1.EnrollService_Renew_FullMethodName:       {Agent: true, Expired: true, Change: true},
		agentv1.SessionService_Connect_FullMethodName:    {Agent: true},
		agentv1.RelayService_AskNode_FullMethodName:      {Replica: true},

		healthv1.Health_Check_FullMethodName: health,
		healthv1.Health_Watch_FullMethodName: health,
		healthv1.Health_List_FullMethodName:  health,

		reflectionv1.ServerReflection_ServerReflectionInfo_FullMethodName:      shared("reflection:get"),
		reflectionv1alpha.ServerReflection_ServerReflectionInfo_FullMethodName: shared("reflection:get"),
	}
}
