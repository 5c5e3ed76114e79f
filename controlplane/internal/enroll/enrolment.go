package enroll

import (
	"context"
	"crypto"
	"errors"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/pki"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
)

// Config says what enrolment works with.
type Config struct {
	Cluster string
	// Ring gives the CAs: one signs, and while it is exchanged another one is
	// trusted as well.
	Ring func() *certs.Ring
	// AgentLife is the life of agents' certificates; 0: certs.AgentLife.
	AgentLife time.Duration
	// AgentsAddress is this replica's agents' listener, host:port, for when no
	// replica has noted its own yet.
	AgentsAddress string
	View          View
	Store         Committer
	Log           hclog.Logger
}

// Enrolment exchanges tokens and old certificates for new ones.
type Enrolment struct {
	cfg    Config
	ledger Ledger
}

// New makes an Enrolment.
func New(cfg Config) *Enrolment {
	return &Enrolment{cfg: cfg, ledger: Ledger{View: cfg.View, Store: cfg.Store, Log: cfg.Log}}
}

// Enrol exchanges a token and a CSR for the certificate of a node's agent, and
// makes the node's record when there is none. Called again with the same key
// it answers again. Its errors are InvalidArgument, Unauthenticated (the token)
// and AlreadyExists (the node, without a token to replace it).
func (e *Enrolment) Enrol(ctx context.Context, req *agentv1.EnrollRequest, remote string) (*agentv1.EnrollResponse, error) {
	node := req.GetNodeId()
	if err := certs.CheckName("node_id", node); err != nil {
		return nil, errdefs.Field("node_id", node, "1 to 63 letters, digits, '.', '_' or '-', first and last a letter or digit")
	}
	pub, err := certs.ParseRequest(req.GetCsr())
	if err != nil {
		return nil, badCSR(err)
	}
	hash, err := certs.KeyHash(pub)
	if err != nil {
		return nil, err
	}
	var made issued
	enrolled, err := e.ledger.Consume(ctx, Use{
		Token: req.GetToken(), Kind: storev1.JoinTokenKind_JOIN_TOKEN_KIND_NODE,
		Name: node, KeyHash: hash, Remote: remote,
		Also: func(snap *cluster.Snapshot, token *storev1.JoinToken, now time.Time) (store.Change, error) {
			c, err := nodeChange(snap, token, req, now)
			if err != nil {
				return c, err
			}
			made, err = e.issue(pub, node, now, time.Now())
			c.Puts = append(c.Puts, made.put)
			return c, err
		},
		Again: func(snap *cluster.Snapshot, token *storev1.JoinToken) error {
			made = issued{} // of a try that came too late
			return sameEnrolment(snap, token)
		},
	})
	if err != nil {
		return nil, err
	}
	if made.certPEM == nil {
		if made, err = e.again(ctx, pub, node, enrolled); err != nil {
			return nil, err
		}
	}
	e.cfg.Log.Info("node enrolled", "node", node, "remote", remote)
	return &agentv1.EnrollResponse{
		Certificate: made.certPEM, Ca: made.bundle, Cluster: e.cfg.Cluster, Servers: e.servers(),
	}, nil
}

// nodeChange makes the node's record, or renews that of a node which may be
// enrolled: it was never enrolled and the token names it, or the token replaces.
func nodeChange(snap *cluster.Snapshot, token *storev1.JoinToken, req *agentv1.EnrollRequest, now time.Time) (store.Change, error) {
	id := req.GetNodeId()
	entry, exists := snap.Nodes[id]
	registeredOnly := exists && entry.Value.GetEnrolledAt() == nil && token.GetNodeId() == id
	if exists && !token.GetReplace() && !registeredOnly {
		return store.Change{}, errdefs.New(errdefs.AlreadyExists, "NODE_EXISTS",
			"node %q exists; to enrol it anew, use a token made for it with --replace", id).With("node", id)
	}
	node := &storev1.Node{Id: id, RegisteredAt: timestamppb.New(now)}
	if exists {
		node, _ = proto.Clone(entry.Value).(*storev1.Node)
	}
	node.Hostname, node.Ip, node.Version = req.GetHostname(), req.GetIp(), req.GetAgentVersion()
	node.EnrolledAt = timestamppb.New(now)
	key := store.NodeKey(id)
	return store.Change{
		Require: []store.Condition{store.Unchanged(key, entry.ModRevision)},
		Puts:    []store.Put{store.PutProto(key, node)},
	}, nil
}

// sameEnrolment refuses to repeat an answer when the node has been removed, or
// enrolled anew with another token, since.
func sameEnrolment(snap *cluster.Snapshot, token *storev1.JoinToken) error {
	node, ok := snap.Nodes[token.GetUsedByNode()]
	if ok && node.Value.GetEnrolledAt().AsTime().Equal(token.GetUsedAt().AsTime()) {
		return nil
	}
	return errdefs.New(errdefs.Unauthenticated, "JOIN_TOKEN_USED",
		"the join token was used, and node %q has been removed or replaced since; ask for a new one", token.GetUsedByNode()).
		With("token", token.GetId())
}

// Renew gives an agent a new certificate for the key of its CSR. The agent's
// present one may have expired at most certs.RenewalGrace ago; it must not be
// revoked, and not be of a time before its node was last enrolled: etcd is asked
// whether that still is so, since a snapshot may be seconds old, and the new
// certificate is dated from before the question. Its refusals are
// Unauthenticated and are logged.
func (e *Enrolment) Renew(ctx context.Context, agent identity.AgentIdentity, csr []byte, remote string) (*agentv1.RenewResponse, error) {
	log := e.cfg.Log.With("node", agent.Node, "serial", agent.Serial, "remote", remote)
	pub, err := certs.ParseRequest(csr)
	if err != nil {
		return nil, badCSR(err)
	}
	made, err := e.renew(ctx, agent, pub)
	if err != nil {
		log.Warn("renewal refused", "reason", err)
		return nil, err
	}
	log.Info("agent's certificate renewed")
	return &agentv1.RenewResponse{Certificate: made.certPEM, Ca: made.bundle}, nil
}

// renew issues a certificate and notes it in the transaction that asks whether
// the agent may still have one.
func (e *Enrolment) renew(ctx context.Context, agent identity.AgentIdentity, pub crypto.PublicKey) (made issued, err error) {
	for range consumeTries {
		changed := e.cfg.View.Changed()
		snap := e.cfg.View.Current()
		at := time.Now()
		if err := mayRenew(snap, agent, at); err != nil {
			return made, err
		}
		node := snap.Nodes[agent.Node]
		if made, err = e.issue(pub, agent.Node, node.Value.GetEnrolledAt().AsTime(), at); err != nil {
			return made, err
		}
		_, err := e.cfg.Store.Commit(ctx, store.Change{
			Require: []store.Condition{
				store.Unchanged(store.NodeKey(agent.Node), node.ModRevision), store.Absent(store.RevokedKey(agent.Serial)),
			},
			Puts: []store.Put{made.put},
		})
		var conflict *store.ConflictError
		if !errors.As(err, &conflict) {
			return made, err
		}
		if err := wait(ctx, changed, settle); err != nil {
			return made, err
		}
	}
	return made, errdefs.New(errdefs.Aborted, "CONFLICT", "the records keep changing; try again").WithRetry(time.Second)
}

// again issues another certificate for the key that a token was used with: the
// answer to the first use was lost.
func (e *Enrolment) again(ctx context.Context, pub crypto.PublicKey, node string, enrolled time.Time) (issued, error) {
	made, err := e.issue(pub, node, enrolled, time.Now())
	if err != nil {
		return made, err
	}
	_, err = e.cfg.Store.Commit(ctx, store.Change{
		Require: []store.Condition{store.Unchanged(store.NodeKey(node), e.cfg.View.Current().Nodes[node].ModRevision)},
		Puts:    []store.Put{made.put},
	})
	var conflict *store.ConflictError
	if errors.As(err, &conflict) {
		err = errdefs.New(errdefs.Aborted, "CONFLICT", "the node's record keeps changing; try again").WithRetry(time.Second)
	}
	return made, err
}

// issued is a certificate in the making: it is handed out once put is written.
type issued struct {
	certPEM, bundle []byte
	put             store.Put
}

// issue makes an agent's certificate, dated at a moment but never before the
// node's enrolment (which another replica's clock may have dated): it would
// count as replaced.
func (e *Enrolment) issue(pub crypto.PublicKey, node string, enrolled, at time.Time) (made issued, err error) {
	if enrolled.After(at) {
		at = enrolled
	}
	ring := e.cfg.Ring()
	if made.certPEM, err = ring.Issue(pub, certs.AgentLeaf(e.cfg.Cluster, node, e.cfg.AgentLife), at); err != nil {
		return made, err
	}
	made.bundle = ring.Bundle()
	made.put, _, err = pki.Issued(made.certPEM, pki.Holder{Kind: pki.Agent, Name: node}, "")
	return made, err
}

func mayRenew(snap *cluster.Snapshot, agent identity.AgentIdentity, now time.Time) error {
	refuse := func(code, format string, args ...any) error {
		return errdefs.New(errdefs.Unauthenticated, code, format, args...).With("node", agent.Node).With("serial", agent.Serial)
	}
	node, ok := snap.Nodes[agent.Node]
	_, revoked := snap.Revoked[agent.Serial]
	switch {
	case revoked:
		return refuse("CERTIFICATE_REVOKED", "the certificate was revoked")
	case !ok:
		return refuse("NODE_NOT_FOUND", "there is no node %q any more; enrol it anew", agent.Node)
	case now.After(agent.NotAfter.Add(certs.RenewalGrace)):
		return refuse("CERTIFICATE_EXPIRED", "the certificate expired at %s, too long ago to renew it; enrol the node anew with a --replace token",
			agent.NotAfter.UTC().Format(time.RFC3339))
	case agent.Replaced(node.Value.GetEnrolledAt().AsTime()):
		return refuse("NODE_REPLACED", "node %q was enrolled anew after this certificate was issued", agent.Node)
	}
	return nil
}

// servers gives the agents' listeners of all replicas.
func (e *Enrolment) servers() []string {
	var list []string
	for _, r := range e.cfg.View.Current().Replicas {
		if a := r.Value.GetAgentsAddress(); a != "" {
			list = append(list, a)
		}
	}
	if len(list) == 0 && e.cfg.AgentsAddress != "" {
		list = append(list, e.cfg.AgentsAddress)
	}
	slices.Sort(list)
	return list
}

func badCSR(err error) error {
	return errdefs.New(errdefs.InvalidArgument, "INVALID_FIELD", "csr: %v", err).With("field", "csr")
}
