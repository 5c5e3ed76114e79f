package events

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// everybody may know of nodes.
func everybody() Owner { return Owner{Everybody: true} }

// nodeFacts are those of a node's identity and of what is wanted of it.
func nodeFacts(d *derivation, c store.Changed, was, is *storev1.Node) {
	tell := func(t told) {
		t.owner, t.about = everybody(), []string{"node/" + c.ID}
		d.tell(t)
	}
	switch {
	case !c.Has:
		tell(told{kind: "node.removed", message: fmt.Sprintf("node %s was removed", c.ID)})
		return
	case !c.Had:
		tell(told{kind: "node.registered", at: is.GetRegisteredAt(), message: fmt.Sprintf("node %s was registered", c.ID), details: map[string]string{"hostname": is.GetHostname()}})
	case appeared(was.GetEnrolledAt(), is.GetEnrolledAt()):
		tell(told{kind: "node.reenrolled", at: is.GetEnrolledAt(), message: fmt.Sprintf("node %s was enrolled anew: certificates that it had before are not renewed", c.ID)})
	}
	switch {
	case is.GetCordoned() && !was.GetCordoned():
		tell(told{kind: "node.cordoned", message: fmt.Sprintf("node %s takes no further VMs", c.ID), why: is.GetCordonReason()})
	case was.GetCordoned() && !is.GetCordoned():
		tell(told{kind: "node.uncordoned", message: fmt.Sprintf("node %s takes VMs again", c.ID)})
	}
	if appeared(was.GetOffConfirmedAt(), is.GetOffConfirmedAt()) {
		tell(told{
			kind: "node.off-confirmed", at: is.GetOffConfirmedAt(), message: fmt.Sprintf("node %s was said to be powered off", c.ID),
			why: is.GetOffReason(), by: is.GetOffConfirmedBy(),
		})
	}
}

// statusFacts are those of what the leader last knew of a node.
func statusFacts(d *derivation, c store.Changed, was, is *storev1.NodeStatus) {
	if !c.Has {
		return
	}
	tell := func(kind string, details map[string]string, format string, args ...any) {
		d.tell(told{kind: kind, owner: everybody(), about: []string{"node/" + c.ID}, details: details, message: fmt.Sprintf(format, args...)})
	}
	if from, to := was.GetLiveness(), is.GetLiveness(); from != to {
		details := map[string]string{"to": word(to, "NODE_LIVENESS_")}
		if c.Had {
			details["from"] = word(from, "NODE_LIVENESS_")
		}
		switch to {
		case storev1.NodeLiveness_NODE_LIVENESS_ONLINE:
			tell("node.online", details, "node %s is online", c.ID)
		case storev1.NodeLiveness_NODE_LIVENESS_SUSPECT:
			tell("node.suspect", details, "node %s has missed heartbeats", c.ID)
		case storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE:
			tell("node.unreachable", details, "node %s is not heard any more", c.ID)
		}
	}
	changed := func(kind, from, to, what string) {
		if from != "" && to != "" && from != to {
			tell(kind, map[string]string{"from": from, "to": to}, what, c.ID)
		}
	}
	changed("node.booted", was.GetBootId(), is.GetBootId(), "node %s has booted")
	changed("node.journal-replaced", was.GetJournalId(), is.GetJournalId(), "the agent of node %s has another journal: what it had noted before is lost")
	changed("node.agent-version", was.GetAgentVersion(), is.GetAgentVersion(), "the agent of node %s is another version")
	switch {
	case is.GetLibvirtDown() && !was.GetLibvirtDown() && c.Had: // of a node just heard it is not known yet
		tell("node.libvirt-down", nil, "libvirt on node %s does not answer", c.ID)
	case was.GetLibvirtDown() && !is.GetLibvirtDown():
		tell("node.libvirt-up", nil, "libvirt on node %s answers again", c.ID)
	}
}

// zfsFacts are changes of the health of a node's pools. Tenants may own pools, so
// that only callers whom no tenant confines see them.
func zfsFacts(d *derivation, c store.Changed, was, is *storev1.NodeZFS) {
	if !c.Has || !c.Had {
		return
	}
	before, now := &agentv1.ZfsInventory{}, &agentv1.ZfsInventory{}
	if proto.Unmarshal(was.GetInventory(), before) != nil || proto.Unmarshal(is.GetInventory(), now) != nil {
		return
	}
	const healthy = "ONLINE"
	health := map[string]string{}
	for _, pool := range before.GetPools() {
		health[pool.GetName()] = pool.GetHealth()
	}
	told := told{about: nil}
	for i, pool := range now.GetPools() {
		from, known := health[pool.GetName()]
		if !known || from == pool.GetHealth() || i >= perChange {
			continue
		}
		told.kind = "node.pool-degraded"
		if pool.GetHealth() == healthy {
			told.kind = "node.pool-healthy"
		}
		told.at, told.about = is.GetReportedAt(), []string{"node/" + c.ID, "zfs/" + c.ID + "/" + pool.GetName()}
		told.details = map[string]string{"from": from, "to": pool.GetHealth(), "pool": pool.GetName()}
		told.message = fmt.Sprintf("pool %s on node %s is %s", pool.GetName(), c.ID, pool.GetHealth())
		d.tell(told)
	}
}
