package events

import (
	"strings"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// Kind is a kind of event.
type Kind struct {
	Name     string
	Severity debvisorv1.EventSeverity
	// Meaning is for people who read of it.
	Meaning string
	// For says who sees it besides callers whom no tenant confines.
	For Audience
}

// Audience is who may see events of a kind.
type Audience string

// The audiences.
const (
	// ForEverybody is for what belongs to all.
	ForEverybody Audience = "everybody"
	// ForTenant is for what may belong to a tenant: its callers see their own.
	ForTenant Audience = "its tenant"
	// ForOperators is for callers whom no tenant confines only.
	ForOperators Audience = "nobody else"
)

// Bookmark is the kind of what is no event, but tells how far a watch has come.
const Bookmark = "cursor"

const (
	info     = debvisorv1.EventSeverity_EVENT_SEVERITY_INFO
	warning  = debvisorv1.EventSeverity_EVENT_SEVERITY_WARNING
	critical = debvisorv1.EventSeverity_EVENT_SEVERITY_CRITICAL
)

// table is every kind there is.
var table = map[string]Kind{ //nolint:gochecknoglobals // constant
	"node.registered":       {"", info, "A hypervisor has enrolled for the first time.", ForEverybody},
	"node.reenrolled":       {"", warning, "A node was enrolled anew; its former certificates are not renewed.", ForEverybody},
	"node.removed":          {"", warning, "A node's record was removed.", ForEverybody},
	"node.online":           {"", info, "The leader hears the node's agent.", ForEverybody},
	"node.suspect":          {"", warning, "Heartbeats are missing.", ForEverybody},
	"node.unreachable":      {"", critical, "The agent is not heard any more. Its VMs may still run.", ForEverybody},
	"node.booted":           {"", info, "The node has booted since it was last heard.", ForEverybody},
	"node.agent-version":    {"", info, "Another version of the agent runs.", ForEverybody},
	"node.journal-replaced": {"", warning, "The agent has lost its journal; what was open is observed. It was let in once the former had been silent for 10 s, or at once where the node was enrolled anew.", ForEverybody},
	"node.libvirt-down":     {"", critical, "libvirt on the node does not answer its agent.", ForEverybody},
	"node.libvirt-up":       {"", info, "libvirt answers again.", ForEverybody},
	"node.cordoned":         {"", info, "The node takes no further VMs.", ForEverybody},
	"node.uncordoned":       {"", info, "The node takes VMs again.", ForEverybody},
	"node.off-confirmed":    {"", warning, "An operator has given the word that the node is powered off.", ForEverybody},
	"node.pool-degraded":    {"", critical, "A ZFS pool's health is not ONLINE any more.", ForOperators},
	"node.pool-healthy":     {"", info, "A ZFS pool's health is ONLINE again.", ForOperators},

	"vm.appeared":             {"", info, "A node reports a VM that was on none.", ForTenant},
	"vm.gone":                 {"", warning, "No node has the VM any more.", ForTenant},
	"vm.moved":                {"", info, "The VM belongs to another node.", ForTenant},
	"vm.renamed":              {"", info, "The VM has another name.", ForTenant},
	"vm.state":                {"", info, "Its node reports another state.", ForTenant},
	"vm.crashed":              {"", critical, "QEMU ended without the guest having asked for it.", ForTenant},
	"vm.conflict":             {"", critical, "Several nodes report the VM running; every operation on it is refused.", ForTenant},
	"vm.conflict-resolved":    {"", info, "One node only reports it running again.", ForTenant},
	"vm.policy-changed":       {"", info, "The VM has another VM policy. Who owns it may have changed: it is told to its tenant of now.", ForTenant},
	"vm.autostart-changed":    {"", info, "Whether it is started after a boot of its node has changed.", ForTenant},
	"vm.brought-back":         {"", warning, "The VM of a lost node was brought back elsewhere.", ForTenant},
	"vm.lost-copy-discarding": {"", info, "The lost node is back; its former copy is being destroyed.", ForTenant},
	"vm.lost-copy-gone":       {"", info, "The former copy is destroyed.", ForTenant},

	"operation.submitted":        {"", info, "Somebody has asked for something.", ForTenant},
	"operation.started":          {"", info, "The leader has begun it.", ForTenant},
	"operation.succeeded":        {"", info, "It has come to a good end.", ForTenant},
	"operation.failed":           {"", warning, "It has failed.", ForTenant},
	"operation.cancelled":        {"", info, "It was cancelled.", ForTenant},
	"operation.cancel-requested": {"", info, "Its end was asked for.", ForTenant},

	"replication.created":    {"", info, "A replication job was made.", ForTenant},
	"replication.deleted":    {"", info, "A replication job was deleted.", ForTenant},
	"replication.succeeded":  {"", info, "A run has brought the copy up to date.", ForTenant},
	"replication.failed":     {"", warning, "A run has failed.", ForTenant},
	"replication.rpo-missed": {"", critical, "The copy is older than the job's RPO allows.", ForTenant},
	"replication.recovered":  {"", info, "The RPO is kept again.", ForTenant},

	"policy.set":     {"", info, "A retention or replication policy was made or changed.", ForOperators},
	"policy.deleted": {"", info, "A retention or replication policy was deleted.", ForOperators},
	"policy.ran":     {"", info, "A policy was due: snapshots, prunings or replications have begun.", ForOperators},
	"policy.skipped": {"", warning, "A policy was due and found its datasets in use, or nobody led.", ForOperators},

	"leader.changed":    {"", info, "Another replica leads.", ForOperators},
	"leader.lost":       {"", critical, "Nobody leads: nothing is begun until somebody does.", ForOperators},
	"replica.joined":    {"", info, "A replica has joined.", ForOperators},
	"replica.removed":   {"", warning, "A replica was removed.", ForOperators},
	"replica.version":   {"", info, "A replica runs another version.", ForOperators},
	"replica.ready":     {"", info, "A replica is ready to serve.", ForOperators},
	"replica.not-ready": {"", warning, "A replica says of itself that it is not ready, and why.", ForOperators},

	"certificate.issued":  {"", info, "A certificate was issued or renewed.", ForOperators},
	"certificate.revoked": {"", warning, "A certificate was revoked.", ForOperators},
	"ca.phase":            {"", warning, "The exchange of the cluster's CA has come to another phase.", ForOperators},
	"token.created":       {"", info, "A join token was made.", ForOperators},
	"token.used":          {"", info, "A join token was used.", ForOperators},
	"backup.taken":        {"", info, "A backup was taken whole.", ForOperators},
	"restore.begun":       {"", critical, "The cluster was restored from a backup; agents wait for the operator's word.", ForOperators},
	"restore.confirmed":   {"", warning, "The operator's word was given.", ForOperators},
	"restore.nodes-heard": {"", info, "What these nodes run was taken over.", ForOperators},
	"restore.reconciled":  {"", info, "The records are what the nodes run.", ForOperators},

	"access.principal-set":     {"", warning, "A principal was made or changed.", ForOperators},
	"access.principal-deleted": {"", warning, "A principal was deleted.", ForOperators},
	"access.role-set":          {"", warning, "A role was made or changed.", ForOperators},
	"access.role-deleted":      {"", warning, "A role was deleted.", ForOperators},
	"access.tenant-set":        {"", warning, "A tenant was made or changed.", ForOperators},
	"access.tenant-deleted":    {"", warning, "A tenant was deleted.", ForOperators},
	"access.key-set":           {"", warning, "An API key was made, rotated or replaced.", ForOperators},
	"access.key-deleted":       {"", warning, "An API key was revoked.", ForOperators},
}

func kinds() map[string]Kind { return table }

// Match tells whether a kind is one of those that a caller asks for: exactly, or
// all below a word, "node.*". None asked for: it is.
func Match(asked []string, kind string) bool {
	for _, a := range asked {
		if below, ok := strings.CutSuffix(a, "*"); a == kind || ok && strings.HasPrefix(kind, below) {
			return true
		}
	}
	return len(asked) == 0
}

// CheckKinds refuses what no event can ever match.
func CheckKinds(asked []string) error {
	for _, a := range asked {
		found := false
		for name := range table {
			found = found || Match([]string{a}, name)
		}
		if !found {
			return errdefs.Field("kinds", a, `a kind of event, such as "vm.moved", or all of a family, such as "node.*"; docs/events.md has them all`)
		}
	}
	return nil
}
