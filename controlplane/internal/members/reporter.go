package members

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

const (
	// reportEvery is how often a replica says how it is though nothing has changed.
	reportEvery = 10 * time.Second
	// SilentAfter is the silence after which a replica is not heard any more: three
	// reports were missed.
	SilentAfter = 30 * time.Second
	// askTimeout is how long its own etcd may take to say how it is.
	askTimeout = 2 * time.Second
)

// Reporter writes how this replica is.
type Reporter struct {
	Member *Member
	Store  *store.Store
	// Etcd is asked how it is.
	Etcd *clientv3.Client
	// Embedded tells whether that is this replica's own.
	Embedded bool
	// Ready gives why the replica is not ready, nothing where it is, and a channel
	// that is closed when that changes.
	Ready func() (reasons []string, changed <-chan struct{})
	Log   hclog.Logger
}

// Run writes it at every change of readiness or of the CAs, and every 10 s, until
// ctx ends; it then returns nil. What etcd does not take is written later.
func (r *Reporter) Run(ctx context.Context) error {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		trust := r.Member.Changed()
		reasons, changed := r.Ready()
		if err := r.write(ctx, reasons); err != nil && ctx.Err() == nil {
			r.Log.Debug("how this replica is, is written later", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-changed:
		case <-trust:
		}
	}
}

func (r *Reporter) write(ctx context.Context, reasons []string) error {
	trusted, signing := r.Member.Trust()
	s := &storev1.ReplicaStatus{
		Name: r.Member.Record().Name, At: timestamppb.Now(), Ready: len(reasons) == 0, Reasons: reasons,
		TrustedCas: slices.Sorted(slices.Values(trusted)), SigningCa: signing,
		CertificateExpiresAt: timestamppb.New(r.Member.Server().Leaf().NotAfter),
	}
	asking, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	// One that does not answer is told of by the reasons.
	if status, err := r.Etcd.Status(asking, r.Etcd.Endpoints()[0]); err == nil {
		s.EtcdDbBytes, s.EtcdRaftIndex = uint64(status.DbSize), status.RaftIndex
		if r.Embedded {
			s.EtcdMember, s.Learner = fmt.Sprintf("%x", status.Header.GetMemberId()), status.IsLearner
		}
	}
	_, err := r.Store.Commit(ctx, store.Change{Puts: []store.Put{store.PutProto(store.ReplicaStatusKey(s.GetName()), s)}})
	return err
}
