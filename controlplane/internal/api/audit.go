package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/auditlog"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// auditService reads this replica's audit log.
type auditService struct {
	debvisorv1.UnimplementedAuditServiceServer
	view    *store.View
	log     *audit.Log
	replica string
	// verifying has room for one: it reads the whole log.
	verifying chan struct{}
	stopping  chan struct{}
	once      sync.Once
}

func newAuditService(view *store.View, log *audit.Log, replica string) *auditService {
	return &auditService{
		view: view, log: log, replica: replica, verifying: make(chan struct{}, 1), stopping: make(chan struct{}),
	}
}

// errLeaving ends searches that follow the log of a replica that stops.
var errLeaving = errdefs.New(errdefs.Unavailable, "REPLICA_STOPS", "this replica stops, and its audit log with it").WithRetry(time.Second)

// leave ends searches: those that follow would hold up the end.
func (s *auditService) leave() { s.once.Do(func() { close(s.stopping) }) }

// SearchAudit sends the lines that pass the filter.
func (s *auditService) SearchAudit(q *debvisorv1.AuditQuery, stream grpc.ServerStreamingServer[debvisorv1.AuditLine]) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-s.stopping:
			cancel(errLeaving)
		case <-stop:
		}
	}()
	err := s.log.Search(ctx, audit.Query{
		Since: momentOf(q.GetSince()), Until: momentOf(q.GetUntil()), Events: q.GetEvents(), Principal: q.GetPrincipal(),
		Method: q.GetMethod(), TraceID: q.GetTraceId(), Operation: q.GetOperation(), Peer: q.GetPeer(), Code: q.GetCode(),
		Last: int(q.GetLast()), Follow: q.GetFollow(),
	}, func(line []byte) error {
		return stream.Send(&debvisorv1.AuditLine{Replica: s.replica, Line: strings.ToValidUTF8(string(line), "\uFFFD")})
	})
	if err != nil && errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// VerifyAudit checks the whole log.
func (s *auditService) VerifyAudit(ctx context.Context, _ *debvisorv1.Empty) (*debvisorv1.AuditVerdict, error) {
	select {
	case s.verifying <- struct{}{}:
		defer func() { <-s.verifying }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	// What etcd knows is in the file already; what is written from now on is
	// more than it knows.
	record := s.view.Current().AuditHeads[s.replica].Value
	report, err := s.log.Verify(ctx, audit.HeadOf(record))
	if err != nil {
		return nil, err
	}
	verdict := &debvisorv1.AuditVerdict{
		Replica: s.replica, Whole: report.Whole(), Finding: finding(report), Line: report.Line, Lines: report.Lines,
		Found: &debvisorv1.AuditHead{Replica: s.replica, Sequence: report.Head.Sequence, Hash: report.Head.Hash.String()},
	}
	if record != nil {
		verdict.Recorded = headMessage(s.replica, record)
	}
	return verdict, nil
}

// finding says what is wrong, and where.
func finding(r auditlog.Report) string {
	text := r.Finding
	if r.Line > 0 {
		text = fmt.Sprintf("%s, line %d: %s", filepath.Base(r.File), r.Line, text)
	}
	if r.Findings > 1 {
		text += fmt.Sprintf(" (and %d more)", r.Findings-1)
	}
	return text
}

// ListAuditHeads answers the ends of all replicas' chains as etcd has them.
func (s *auditService) ListAuditHeads(context.Context, *debvisorv1.Empty) (*debvisorv1.AuditHeadList, error) {
	list := &debvisorv1.AuditHeadList{}
	for replica, entry := range s.view.Current().AuditHeads {
		list.Heads = append(list.Heads, headMessage(replica, entry.Value))
	}
	slices.SortFunc(list.Heads, func(a, b *debvisorv1.AuditHead) int { return cmp.Compare(a.GetReplica(), b.GetReplica()) })
	return list, nil
}

func headMessage(replica string, record *storev1.AuditHead) *debvisorv1.AuditHead {
	head := audit.HeadOf(record)
	return &debvisorv1.AuditHead{Replica: replica, Sequence: head.Sequence, Hash: head.Hash.String(), At: timestamp(record.GetAt())}
}

// momentOf gives the time of the contract's form; the zero time for none.
func momentOf(t *debvisorv1.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return time.Unix(t.GetSeconds(), int64(t.GetNanos()))
}
