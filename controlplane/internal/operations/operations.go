// Package operations keeps what callers asked for: it submits operations, each
// at most once, follows them to their end, cancels them and forgets old ones.
// It knows no kind of operation; controllers advance them.
//
// An operation is written in one transaction with a key for each resource that
// it holds, so that no two hold one resource. Its id is made before anything is
// written, from the caller's request id where there is one: when a commit's
// outcome is unknown, the same id is tried again, and is either written then or
// found to be there.
package operations

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/obs"
)

const (
	// leaderWait is how long a submission waits for somebody to lead.
	leaderWait = 3 * time.Second
	// commitWait is how long a submission, leaderWait included, may take until
	// the caller is told that its outcome is unknown.
	commitWait = 4500 * time.Millisecond
	// attemptWait is how long one attempt may take: what a member of etcd has handed
	// on to a leader that resigns is lost without a word.
	attemptWait = 1200 * time.Millisecond
	// settleWait is how long the snapshot is given to show what a conflict
	// says is there.
	settleWait = 200 * time.Millisecond
)

// Operations submits and follows operations. It is safe for use by many
// goroutines.
type Operations struct {
	view  *store.View
	store Store
	// moving is closed by Move, leaving by Leave.
	moving, leaving chan struct{}
	move, leave     sync.Once
}

// Store is where changes are made (store.Store).
type Store interface {
	Commit(ctx context.Context, change store.Change) (revision int64, err error)
}

// New makes an Operations over the cluster's state.
func New(view *store.View, st Store) *Operations {
	return &Operations{view: view, store: st, moving: make(chan struct{}), leaving: make(chan struct{})}
}

// Move ends, for good, all that follows an operation by Watch: this replica is
// about to stop, and others tell the same.
func (o *Operations) Move() { o.move.Do(func() { close(o.moving) }) }

// Leave ends, for good, all that waits for an operation by Wait: this replica
// stops, and the operations go on.
func (o *Operations) Leave() { o.leave.Do(func() { close(o.leaving) }) }

// Spec is what is asked for.
type Spec struct {
	// Kind is what the operation is, such as "migrate".
	Kind string
	// Principal asks, by calling Method, confined to Tenant; empty: to none. Of
	// one whose caller is not confined the operation is the tenant's that all
	// VMs that it holds belong to.
	Principal, Tenant string
	Method            string
	// RequestID is the caller's own id of its request; empty: none. Two
	// requests of one principal of one tenant to one method with one id are one
	// operation.
	RequestID string
	// Request is what was asked, for telling whether it is the same.
	Request proto.Message
	// Resources are held until the operation ends, such as "vm/<uuid>".
	Resources []string
	// Owner is whose the operation is where the caller is not confined: the
	// tenant that all storage it is about belongs to; empty: nobody's.
	Owner string
	// The details of their kinds; at most one is set.
	Migrate   *storev1.Migrate
	Evacuate  *storev1.Evacuate
	Power     *storev1.Power
	Take      *storev1.TakeSnapshots
	Remove    *storev1.RemoveSnapshots
	Replicate *storev1.Replicate
	Failover  *storev1.Failover
	Clone     *storev1.CloneImage
	Change    *storev1.ChangeImage
	// TraceID is the call's, Traceparent what leads to it where that is recorded;
	// else empty.
	TraceID, Traceparent string
	// Begin, unless nil, is told the operation's id before Submit writes it: for
	// details that are named by it.
	Begin func(id string)
	// Also, unless nil, gives what Submit writes in the same transaction, and
	// under which conditions, for the operation of that id. Where a condition
	// does not hold nothing is written and Submit's error is the
	// *store.ConflictError.
	Also func(id string) store.Change
}

// idAlphabet is ULID's, in lower case.
const idAlphabet = "0123456789abcdefghjkmnpqrstvwxyz"

// id gives the operation's id: the same for the same request id, else new.
func (s *Spec) id() string {
	if s.RequestID == "" {
		return "op-" + strings.ToLower(ulid.Make().String())
	}
	parts := []string{s.Principal, s.Method, s.RequestID}
	if s.Tenant != "" {
		// What a principal did as another tenant's is not its own any more.
		parts = append(parts, s.Tenant)
	}
	h := sha256.New()
	for _, part := range parts {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		h.Write(length[:])
		h.Write([]byte(part))
	}
	return "op-" + base32.NewEncoding(idAlphabet).EncodeToString(h.Sum(nil))[:26]
}

// digest is SHA-256 of the request's deterministic encoding.
func (s *Spec) digest() ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(s.Request)
	if err != nil {
		return nil, fmt.Errorf("encoding the request of %s: %w", s.Method, err)
	}
	sum := sha256.Sum256(b)
	return sum[:], nil
}

// record is the operation as it is first written.
func (s *Spec) record(
	snapshot *cluster.Snapshot, id string, digest []byte, state storev1.OperationState, now time.Time,
) *storev1.Operation {
	op := &storev1.Operation{
		Id: id, Kind: s.Kind, State: state, Resources: s.Resources, Tenant: cmp.Or(s.Tenant, s.Owner, holders(snapshot, s.Resources)),
		Principal: s.Principal, Method: s.Method, RequestId: s.RequestID, RequestDigest: digest,
		CreatedAt: timestamppb.New(now), TraceId: s.TraceID, Traceparent: cmp.Or(s.Traceparent, obs.Unrecorded(s.TraceID, id)),
	}
	switch {
	case s.Migrate != nil:
		op.Detail = &storev1.Operation_Migrate{Migrate: s.Migrate}
	case s.Evacuate != nil:
		op.Detail = &storev1.Operation_Evacuate{Evacuate: s.Evacuate}
	case s.Power != nil:
		op.Detail = &storev1.Operation_Power{Power: s.Power}
	case s.Take != nil:
		op.Detail = &storev1.Operation_TakeSnapshots{TakeSnapshots: s.Take}
	case s.Remove != nil:
		op.Detail = &storev1.Operation_RemoveSnapshots{RemoveSnapshots: s.Remove}
	case s.Replicate != nil:
		op.Detail = &storev1.Operation_Replicate{Replicate: s.Replicate}
	case s.Failover != nil:
		op.Detail = &storev1.Operation_Failover{Failover: s.Failover}
	case s.Clone != nil:
		op.Detail = &storev1.Operation_CloneImage{CloneImage: s.Clone}
	case s.Change != nil:
		op.Detail = &storev1.Operation_ChangeImage{ChangeImage: s.Change}
	}
	return op
}

// holders is the tenant that all the VMs among resources belong to; empty where
// there is none, or more than one.
func holders(s *cluster.Snapshot, resources []string) string {
	tenant, first := "", true
	for _, resource := range resources {
		uuid, ok := strings.CutPrefix(resource, "vm/")
		if !ok {
			continue
		}
		of := cluster.TenantOf(s.VMs[uuid].Value)
		if !first && of != tenant {
			return ""
		}
		tenant, first = of, false
	}
	return tenant
}

// Get gives an operation as this replica knows it. The error is NotFound.
func (o *Operations) Get(id string) (*storev1.Operation, error) {
	return Find(o.view.Current().Within(""), id)
}

// Find gives an operation that is in a scope. The error is NotFound.
func Find(scope cluster.Scope, id string) (*storev1.Operation, error) {
	entry, ok := scope.Operation(id)
	if !ok {
		return nil, errdefs.New(errdefs.NotFound, "OPERATION_NOT_FOUND",
			"no operation %q; ended operations are kept for %d days", id, int(KeepFor.Hours()/24)).With("operation", id)
	}
	return entry.Value, nil
}

// Repeated gives the operation that an earlier request with the same request id
// made; nil where there is none yet. The error says that the id was used for
// something else.
func (o *Operations) Repeated(spec Spec) (*storev1.Operation, error) {
	if spec.RequestID == "" {
		return nil, nil
	}
	entry, ok := o.view.Current().Operations[spec.id()]
	if !ok {
		return nil, nil
	}
	return entry.Value, same(entry.Value, spec)
}

// same refuses a request id that was used for another request.
func same(op *storev1.Operation, spec Spec) error {
	digest, err := spec.digest()
	if err != nil {
		return err
	}
	if string(digest) == string(op.GetRequestDigest()) {
		return nil
	}
	return errdefs.New(errdefs.InvalidArgument, "REQUEST_ID_REUSED",
		"debvisor-request-id %q was used for another request (operation %s); take a new id for a new request", spec.RequestID, op.GetId()).
		With("request_id", spec.RequestID).With("operation", op.GetId())
}

// InUse refuses to use a resource that an operation holds; nil where none does.
// It names the operation unless that is another tenant's.
func InUse(scope cluster.Scope, resource string) error {
	holder, held := scope.Holder(resource)
	switch {
	case !held:
		return nil
	case holder == "":
		return errdefs.New(errdefs.Aborted, "IN_USE", "%s is in use; try again later", resource).With("resource", resource)
	}
	return errdefs.New(errdefs.Aborted, "IN_USE",
		"%s is in use by operation %s; try again once that has ended", resource, holder).
		With("resource", resource).With("operation", holder)
}
