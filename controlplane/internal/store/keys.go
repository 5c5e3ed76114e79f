package store

import "strings"

// prefix begins every key of the control plane.
const prefix = "/debvisor/rpc/"

// The collections: what follows the prefix up to the next slash.
const (
	nodes      = "nodes/"
	statuses   = "nodestatus/"
	healths    = "nodehealth/"
	vms        = "vms/"
	goneVMs    = "gonevms/"
	operations = "operations/"
	tasks      = "tasks/"
	plans      = "plans/"
	inUse      = "inuse/"
	joinTokens = "jointokens/"
	revoked    = "revoked/"
	principals = "principals/"
	roles      = "roles/"
	tenants    = "tenants/"
	apiKeys    = "apikeys/"
	keyUses    = "keyuse/"
	auditHeads = "audit/"
	replicas   = "replicas/"
	nodeZFS    = "zfs/"
	nodeCeph   = "ceph/"
	// definitions are of VMs, by UUID; lostCopies by UUID and node.
	definitions = "definitions/"
	lostCopies  = "lostcopies/"
	// replications holds replication jobs.
	replications = "replication/"
	policies     = "policies/"
	election     = "election/"
	restored     = "restore"
	lastBackup   = "lastbackup"
	certificates = "certificates/"
	// replicaStatuses are what replicas say of themselves.
	replicaStatuses = "replicastatus/"
)

// NodeKey is where a node's identity and wishes are.
func NodeKey(id string) string { return prefix + nodes + id }

// StatusKey is where the leader notes what it last knew of a node.
func StatusKey(node string) string { return prefix + statuses + node }

// HealthKey is where what the unary Heartbeat last said of a node is.
func HealthKey(node string) string { return prefix + healths + node }

// VMKey is where a VM is.
func VMKey(uuid string) string { return prefix + vms + uuid }

// GoneVMKey is where what is ours of a VM is that no node has any more.
func GoneVMKey(uuid string) string { return prefix + goneVMs + uuid }

// OperationKey is where an operation is.
func OperationKey(id string) string { return prefix + operations + id }

// TaskKey is where a task is; its id may hold slashes.
func TaskKey(id string) string { return prefix + tasks + id }

// PlanKey is where a plan is.
func PlanKey(id string) string { return prefix + plans + id }

// NodeZFSKey is where a node's ZFS is, as last reported.
func NodeZFSKey(node string) string { return prefix + nodeZFS + node }

// NodeCephKey is where a node's view of its Ceph cluster is, as last reported.
func NodeCephKey(node string) string { return prefix + nodeCeph + node }

// DefinitionKey is where libvirt's definition of a VM is.
func DefinitionKey(uuid string) string { return prefix + definitions + uuid }

// LostCopyKey is where a copy of a VM is noted that a lost node has.
func LostCopyKey(uuid, node string) string { return prefix + lostCopies + uuid + "/" + node }

// ReplicationKey is where a replication job is.
func ReplicationKey(job string) string { return prefix + replications + job }

// RetentionPolicyKey is where a retention policy is.
func RetentionPolicyKey(name string) string { return prefix + policies + retentionPolicies + name }

// ReplicationPolicyKey is where a replication policy is.
func ReplicationPolicyKey(name string) string { return prefix + policies + replicationPolicies + name }

// The two kinds under policies/.
const (
	retentionPolicies   = "retention/"
	replicationPolicies = "replication/"
)

// InUseKey is where the id of the operation that holds a resource is.
func InUseKey(resource string) string { return prefix + inUse + resource }

// JoinTokenKey is where a join token is.
func JoinTokenKey(id string) string { return prefix + joinTokens + id }

// RevokedKey is where a certificate's serial is noted as revoked.
func RevokedKey(serial string) string { return prefix + revoked + serial }

// PrincipalKey is where a principal is, in JSON.
func PrincipalKey(name string) string { return prefix + principals + name }

// RoleKey is where a role is, in JSON.
func RoleKey(name string) string { return prefix + roles + name }

// TenantKey is where a tenant is, in JSON.
func TenantKey(name string) string { return prefix + tenants + name }

// APIKeyKey is where an API key's record is, in JSON.
func APIKeyKey(id string) string { return prefix + apiKeys + id }

// KeyUseKey is where an API key's last use is.
func KeyUseKey(id string) string { return prefix + keyUses + id }

// AuditHeadKey is where the end of a replica's audit log is.
func AuditHeadKey(replica string) string { return prefix + auditHeads + replica }

// ReplicaKey is where a replica says how it is reached.
func ReplicaKey(name string) string { return prefix + replicas + name }

// ReplicaStatusKey is where a replica says how it is.
func ReplicaStatusKey(name string) string { return prefix + replicaStatuses + name }

// CertificateKey is where a certificate that was issued is noted, by serial.
func CertificateKey(serial string) string { return prefix + certificates + serial }

// CAKey is where the cluster's CAs are while and since they are exchanged.
func CAKey() string { return prefix + ca }

// ca follows the prefix.
const ca = "ca"

// ElectionPrefix is the directory of the election, without the last slash, as
// package concurrency wants it.
func ElectionPrefix() string { return prefix + strings.TrimSuffix(election, "/") }

// AccessTurnKey is what every change of who may do what, made by a call,
// writes and requires to be unchanged.
func AccessTurnKey() string { return prefix + "accessturn" }

// EpochKey is where the cluster's epoch is, a decimal number.
func EpochKey() string { return prefix + "epoch" }

// RestoreKey is where it stands which backup the cluster was restored from.
func RestoreKey() string { return prefix + restored }

// LastBackupKey is where the last backup is noted.
func LastBackupKey() string { return prefix + lastBackup }

// SchemaKey is where the version of the records' form is, a decimal number.
func SchemaKey() string { return prefix + "schema" }
