package members

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/enroll"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// Tokens consumes join tokens: enroll.Ledger.
type Tokens interface {
	Consume(ctx context.Context, use enroll.Use) (time.Time, error)
}

// Door lets replicas join. Any replica can serve it.
type Door struct {
	// Member is this replica.
	Member *Member
	Tokens Tokens
	// Etcd is the embedded cluster's membership; nil with an outside cluster,
	// whose members are not ours to add.
	Etcd clientv3.Cluster
	Log  hclog.Logger
}

// Join gives a joiner with a replica's token what it needs: both CAs, their
// keys sealed to its seal key, the cluster's name and members. Its etcd is
// added as a learner first. Called again with the same seal key, name and peer
// URL it answers again.
func (d *Door) Join(ctx context.Context, req *agentv1.JoinReplicaRequest, remote string) (*agentv1.JoinReplicaResponse, error) {
	if err := checkJoin(req); err != nil {
		return nil, err
	}
	// The peer URL is part of what the token is bound to: one token, one member.
	hash := sha256.Sum256(append(slices.Clone(req.GetSealKey()), req.GetPeerUrl()...))
	if _, err := d.Tokens.Consume(ctx, enroll.Use{
		Token: req.GetToken(), Kind: storev1.JoinTokenKind_JOIN_TOKEN_KIND_REPLICA,
		Name: req.GetName(), KeyHash: hash[:], Remote: remote,
		Also: func(*cluster.Snapshot, *storev1.JoinToken, time.Time) (store.Change, error) {
			return store.Change{}, d.free(ctx, req)
		},
		Again: func(*cluster.Snapshot, *storev1.JoinToken) error { return nil },
	}); err != nil {
		return nil, err
	}
	initial, err := d.admit(ctx, req)
	if err != nil {
		d.Log.Warn("replica not added to etcd", "name", req.GetName(), "remote", remote, "reason", err)
		return nil, err
	}
	resp, err := d.Member.handOver(req.GetSealKey())
	if err != nil {
		return nil, err
	}
	resp.InitialCluster = initial
	d.Log.Info("replica joined", "name", req.GetName(), "peer_url", req.GetPeerUrl(), "remote", remote)
	return resp, nil
}

func checkJoin(req *agentv1.JoinReplicaRequest) error {
	if certs.CheckName("name", req.GetName()) != nil {
		return errdefs.Field("name", req.GetName(), "1 to 63 letters, digits, '.', '_' or '-', first and last a letter or digit")
	}
	if checkPeerURL(req.GetPeerUrl()) != nil {
		return errdefs.Field("peer_url", req.GetPeerUrl(), "https://host:port")
	}
	if len(req.GetSealKey()) != 32 {
		return errdefs.Field("seal_key", fmt.Sprintf("%d bytes", len(req.GetSealKey())), "an X25519 public key of 32 bytes")
	}
	return nil
}

// free refuses a name or peer URL that another member has, before the token is
// spent on it.
func (d *Door) free(ctx context.Context, req *agentv1.JoinReplicaRequest) error {
	if d.Etcd == nil {
		return nil
	}
	list, err := d.Etcd.MemberList(ctx)
	if err != nil {
		return unavailable("ask etcd for its members", err)
	}
	for _, m := range list.Members {
		// One that was let in but never started has no name, and may try again.
		taken := m.Name != "" && slices.Contains(m.PeerURLs, req.GetPeerUrl())
		if m.Name == req.GetName() || taken {
			return errdefs.New(errdefs.AlreadyExists, "REPLICA_EXISTS",
				"a replica %q with peer URL %s exists; choose another name and address, or remove it first",
				m.Name, strings.Join(m.PeerURLs, " ")).With("replica", m.Name)
		}
	}
	return nil
}

// admit adds the joiner as a learner unless it is a member already, and gives
// the initial cluster for its first start.
func (d *Door) admit(ctx context.Context, req *agentv1.JoinReplicaRequest) (string, error) {
	if d.Etcd == nil {
		return "", nil
	}
	list, err := d.Etcd.MemberList(ctx)
	if err != nil {
		return "", unavailable("ask etcd for its members", err)
	}
	all := list.Members
	if !hasURL(all, req.GetPeerUrl()) {
		if err := nobodyAbsent(all); err != nil {
			return "", err
		}
		added, err := d.Etcd.MemberAddAsLearner(ctx, []string{req.GetPeerUrl()})
		if err != nil {
			return "", addError(err)
		}
		all = added.Members
	}
	return initialCluster(all, req.GetName(), req.GetPeerUrl()), nil
}

// nobodyAbsent refuses to let in a second replica before the one let in before
// has been started: etcd's first start fails when the members have become more
// since the list of them was handed out.
func nobodyAbsent(list []*etcdserverpb.Member) error {
	for _, m := range list {
		if m.Name == "" {
			return errdefs.New(errdefs.FailedPrecondition, "REPLICA_JOINING",
				"the replica at %s was let in and has not been started yet; start it, then repeat", strings.Join(m.PeerURLs, " ")).
				WithRetry(2 * time.Second)
		}
	}
	return nil
}

func hasURL(list []*etcdserverpb.Member, peerURL string) bool {
	return slices.ContainsFunc(list, func(m *etcdserverpb.Member) bool { return slices.Contains(m.PeerURLs, peerURL) })
}

// initialCluster lists the members as etcd's first start wants them. One that
// has never started has no name yet; etcd goes by the URLs, so any will do.
func initialCluster(list []*etcdserverpb.Member, joiner, peerURL string) string {
	var parts []string
	for _, m := range list {
		name := cmp.Or(m.Name, fmt.Sprintf("member-%x", m.ID))
		if slices.Contains(m.PeerURLs, peerURL) {
			name = joiner
		}
		for _, u := range m.PeerURLs {
			parts = append(parts, name+"="+u)
		}
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

func addError(err error) error {
	switch {
	case errors.Is(err, rpctypes.ErrTooManyLearners):
		return errdefs.New(errdefs.FailedPrecondition, "REPLICA_JOINING",
			"another replica is joining; start it and wait until it votes, then repeat").WithCause(err).WithRetry(5 * time.Second)
	case errors.Is(err, rpctypes.ErrUnhealthy), errors.Is(err, rpctypes.ErrMemberNotEnoughStarted):
		return errdefs.New(errdefs.Unavailable, "REPLICAS_UNHEALTHY",
			"not all replicas are well; a new one is let in when they are").WithCause(err).WithRetry(5 * time.Second)
	default:
		return unavailable("add the replica to etcd", err)
	}
}

func unavailable(what string, err error) error {
	return errdefs.New(errdefs.Unavailable, "ETCD_UNAVAILABLE", "etcd does not answer; try again").
		WithCause(fmt.Errorf("%s: %w", what, err)).WithRetry(time.Second)
}
