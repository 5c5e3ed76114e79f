package inventory

import (
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// node is the leader's memory of one node.
type node struct {
	id       string
	heard    time.Time // or when this leader's clock began
	heardNow bool      // heard by this leader at all
	lastSeen time.Time // zero: never
	liveness storev1.NodeLiveness

	facts        Facts
	health       *debvisorv1.Health
	capacity     *debvisorv1.NodeCapacity
	capabilities *debvisorv1.NodeCapabilities
	libvirtDown  bool

	// known tells that this leader was told all of the node's domains; until
	// then listed holds the UUIDs that the record names.
	known   bool
	domains map[string]domain
	listed  []string
	cpus    cpus
	// definitions are of domains.
	definitions definitions
	zfs         zfs
	ceph        ceph

	// startedBoot is the boot after which its VMs were started, or were found
	// started; empty: it was never looked at.
	startedBoot string
	// trust is what its agent last said that it trusts and shows; nil: nothing.
	trust *agentv1.Trust
	// foreign are the tasks, unknown to the records, that its agent was at when its
	// session began, at foreignSince, and has not ended.
	foreign      map[string]bool
	foreignSince time.Time

	dirty  bool // something to write within 30 s
	urgent bool // something to write now
}

// domain is one domain as its node reports it.
type domain struct {
	*agentv1.Domain
	encoded []byte
	at      time.Time // when this leader was told
}

// newNode begins with what the record holds; nil: there is none.
func newNode(id string, s *storev1.NodeStatus, now time.Time) *node {
	n := &node{id: id, heard: now, domains: map[string]domain{}}
	if s == nil {
		return n
	}
	n.liveness = s.GetLiveness()
	if t := s.GetLastSeen(); t != nil {
		n.lastSeen = t.AsTime()
	}
	n.facts = Facts{
		AgentVersion: s.GetAgentVersion(), PeerAddress: s.GetPeerAddress(),
		JournalID: s.GetJournalId(), BootID: s.GetBootId(), Term: task.TermOf(s.GetAcknowledgedTerm()),
	}
	n.health = decode(s.GetHealth(), &debvisorv1.Health{})
	n.capacity = decode(s.GetCapacity(), &debvisorv1.NodeCapacity{})
	n.capabilities = decode(s.GetCapabilities(), &debvisorv1.NodeCapabilities{})
	n.listed, n.libvirtDown = s.GetDomains(), s.GetLibvirtDown()
	n.startedBoot = s.GetStartedBootId()
	if len(s.GetTrustedCas()) > 0 {
		n.trust = &agentv1.Trust{
			Cas: s.GetTrustedCas(), Serial: s.GetCertificateSerial(), Issuer: s.GetCertificateCa(), ExpiresAt: s.GetCertificateExpiresAt().GetSeconds(),
		}
	}
	n.firstSeen(n.facts.BootID)
	return n
}

// decode gives nil for what is absent or cannot be read: the node's next
// report replaces it.
func decode[M proto.Message](b []byte, m M) M {
	var none M
	if len(b) == 0 || proto.Unmarshal(b, m) != nil {
		return none
	}
	return m
}

// hear notes that the agent lives.
func (n *node) hear(now time.Time, log hclog.Logger) {
	n.heard, n.lastSeen, n.heardNow, n.dirty = now, now, true, true
	n.become(storev1.NodeLiveness_NODE_LIVENESS_ONLINE, log)
}

// become changes the liveness.
func (n *node) become(l storev1.NodeLiveness, log hclog.Logger) {
	if n.liveness == l {
		return
	}
	level := hclog.Warn
	if l == storev1.NodeLiveness_NODE_LIVENESS_ONLINE {
		level = hclog.Info
	}
	log.Log(level, "node liveness", "node", n.id, "from", n.liveness, "to", l, "last_seen", n.lastSeen)
	n.liveness, n.urgent = l, true
}

// report takes an inventory.
func (n *node) report(inv *agentv1.Inventory) {
	n.dirty = true
	if inv.GetCapacity() != nil {
		n.capacity = inv.GetCapacity()
	}
	if inv.GetCapabilities() != nil {
		if !proto.Equal(n.capabilities, inv.GetCapabilities()) {
			n.urgent = true
		}
		n.capabilities = inv.GetCapabilities()
	}
	if n.libvirtDown != inv.GetLibvirtDown() {
		n.libvirtDown, n.urgent = inv.GetLibvirtDown(), true
	}
	n.cpus.take(inv)
	n.zfs.take(inv, time.Now())
	n.ceph.take(inv, time.Now())
	defer func() { n.definitions.take(inv, n.domains) }()
	if inv.GetLibvirtDown() {
		return // domains stay as last seen
	}
	before, now := n.uuids(), time.Now()
	if inv.GetComplete() {
		n.known, n.listed = true, nil
		clear(n.domains)
	}
	for _, d := range inv.GetDomains() {
		n.domains[d.GetUuid()] = domain{d, encode(d), now}
	}
	for _, uuid := range inv.GetGone() {
		delete(n.domains, uuid)
	}
	n.urgent = n.urgent || !slices.Equal(before, n.uuids())
}

func (n *node) forgetDomains() {
	n.listed = n.uuids()
	n.known = false
	clear(n.domains)
	clear(n.definitions)
}

// uuids are those of the domains as last told.
func (n *node) uuids() []string {
	if !n.known {
		return n.listed
	}
	return slices.Sorted(maps.Keys(n.domains))
}

func (n *node) reachable() bool {
	return n.liveness == storev1.NodeLiveness_NODE_LIVENESS_ONLINE || n.liveness == storev1.NodeLiveness_NODE_LIVENESS_SUSPECT
}

// mayHold tells whether the domain may be on the node, as far as is known.
func (n *node) mayHold(uuid string) bool {
	if n.known {
		_, has := n.domains[uuid]
		return has
	}
	return n.reachable() || slices.Contains(n.listed, uuid)
}

func (n *node) record() *storev1.NodeStatus {
	s := &storev1.NodeStatus{
		Id: n.id, Liveness: n.liveness,
		AgentVersion: n.facts.AgentVersion, PeerAddress: n.facts.PeerAddress,
		JournalId: n.facts.JournalID, BootId: n.facts.BootID,
		Domains: n.uuids(), LibvirtDown: n.libvirtDown, StartedBootId: n.startedBoot,
	}
	if t := n.trust; t != nil {
		s.TrustedCas, s.CertificateSerial, s.CertificateCa = t.GetCas(), t.GetSerial(), t.GetIssuer()
		s.CertificateExpiresAt = &timestamppb.Timestamp{Seconds: t.GetExpiresAt()}
	}
	if !n.lastSeen.IsZero() {
		s.LastSeen = timestamppb.New(n.lastSeen)
	}
	if !n.facts.Term.IsZero() {
		s.AcknowledgedTerm = n.facts.Term.Record()
	}
	if n.health != nil {
		s.Health = encode(n.health)
	}
	if n.capacity != nil {
		s.Capacity = encode(n.capacity)
	}
	if n.capabilities != nil {
		s.Capabilities = encode(n.capabilities)
	}
	return s
}
