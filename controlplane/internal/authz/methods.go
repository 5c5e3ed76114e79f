package authz

import (
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
}

// Permissions of which a handler asks beyond its method's row.
const (
	// JoinReplica is needed to make a token that admits a replica, which gets
	// the keys of the CA.
	JoinReplica = "replica:join"
	// EvacuateNode is needed to carry out a plan that empties a node: it cordons
	// the node for everybody.
	EvacuateNode = "node:evacuate"
)

// Methods is the one table of who may call what, by full method name as
// routed. A method without a row is denied to everybody.
func Methods() map[string]Rule {
	read := func(permission string) Rule { return Rule{Permission: permission} }
	change := func(permission string) Rule { return Rule{Permission: permission, Change: true} }
	open := Rule{Open: true, Change: true}
	health := Rule{Open: true, Stale: true, Quiet: true}
	return map[string]Rule{
		debvisorv1.NodeService_RegisterNode_FullMethodName:    {Permission: "node:register", Agent: true, Change: true},
		debvisorv1.NodeService_Heartbeat_FullMethodName:       {Permission: "node:heartbeat", Agent: true},
		debvisorv1.NodeService_ListNodes_FullMethodName:       read("node:list"),
		debvisorv1.NodeService_GetNode_FullMethodName:         read("node:get"),
		debvisorv1.NodeService_CordonNode_FullMethodName:      change("node:cordon"),
		debvisorv1.NodeService_UncordonNode_FullMethodName:    change("node:uncordon"),
		debvisorv1.NodeService_EvacuateNode_FullMethodName:    change(EvacuateNode),
		debvisorv1.NodeService_RestoreNode_FullMethodName:     change("node:restore"),
		debvisorv1.NodeService_ConfirmNodeOff_FullMethodName:  change("node:confirm-off"),
		debvisorv1.NodeService_SetNodeLimits_FullMethodName:   change("node:limit"),
		debvisorv1.NodeService_CreateJoinToken_FullMethodName: change("token:create"),
		debvisorv1.NodeService_ListJoinTokens_FullMethodName:  read("token:list"),
		debvisorv1.NodeService_RevokeJoinToken_FullMethodName: change("token:revoke"),

		debvisorv1.ClusterService_GetCluster_FullMethodName: read("cluster:get"),

		debvisorv1.VMService_ListVMs_FullMethodName:        read("vm:list"),
		debvisorv1.VMService_GetVM_FullMethodName:          read("vm:get"),
		debvisorv1.VMService_SetVMPolicy_FullMethodName:    change("vm:policy"),
		debvisorv1.VMService_SetVMAutostart_FullMethodName: change("vm:autostart"),
		debvisorv1.VMService_StartVM_FullMethodName:        change("vm:start"),
		debvisorv1.VMService_ShutdownVM_FullMethodName:     change("vm:shutdown"),
		debvisorv1.VMService_DestroyVM_FullMethodName:      change("vm:destroy"),

		debvisorv1.OperationService_GetOperation_FullMethodName:    read("operation:get"),
		debvisorv1.OperationService_ListOperations_FullMethodName:  read("operation:list"),
		debvisorv1.OperationService_WatchOperation_FullMethodName:  read("operation:get"),
		debvisorv1.OperationService_CancelOperation_FullMethodName: change("operation:cancel"),

		debvisorv1.MigrationService_PrepareMigration_FullMethodName: read("migration:plan"),
		debvisorv1.MigrationService_MigrateVM_FullMethodName:        change("migration:execute"),
		debvisorv1.MigrationService_FailoverVM_FullMethodName:       change("migration:failover"),
		debvisorv1.MigrationService_PlanEvacuation_FullMethodName:   read("migration:plan"),
		debvisorv1.MigrationService_PlanRebalance_FullMethodName:    read("migration:plan"),
		debvisorv1.MigrationService_GetPlan_FullMethodName:          read("migration:plan"),
		debvisorv1.MigrationService_ListPlans_FullMethodName:        read("migration:plan"),
		debvisorv1.MigrationService_ExecutePlan_FullMethodName:      change("migration:execute"),

		debvisorv1.StorageService_CreateSnapshot_FullMethodName:            change("storage:snapshot:create"),
		debvisorv1.StorageService_PruneSnapshots_FullMethodName:            change("storage:snapshot:delete"),
		debvisorv1.StorageService_PlanZfsReplication_FullMethodName:        change("storage:replication:plan"),
		debvisorv1.StorageService_RunZfsReplication_FullMethodName:         change("storage:replication:execute"),
		debvisorv1.StorageService_GetReplicationStatus_FullMethodName:      read("storage:replication:status"),
		debvisorv1.StorageService_CreateRbdTemplateSnapshot_FullMethodName: change("storage:clone:template"),
		debvisorv1.StorageService_CloneRbdFromTemplate_FullMethodName:      change("storage:clone:create"),

		agentv1.EnrollService_Enroll_FullMethodName:      open,
		agentv1.EnrollService_JoinReplica_FullMethodName: open,
		agentv1.EnrollService_Renew_FullMethodName:       {Agent: true, Expired: true, Change: true},
		agentv1.SessionService_Connect_FullMethodName:    {Agent: true},

		healthv1.Health_Check_FullMethodName: health,
		healthv1.Health_Watch_FullMethodName: health,
		healthv1.Health_List_FullMethodName:  health,

		reflectionv1.ServerReflection_ServerReflectionInfo_FullMethodName:      read("reflection:get"),
		reflectionv1alpha.ServerReflection_ServerReflectionInfo_FullMethodName: read("reflection:get"),
	}
}
