package api

import (
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/events"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

type eventService struct {
	debvisorv1.UnimplementedEventServiceServer
	feed *events.Feed
}

// Watch sends the events that the caller may see, as they happen.
func (s *eventService) Watch(filter *debvisorv1.EventFilter, stream grpc.ServerStreamingServer[debvisorv1.Event]) error {
	if err := events.CheckKinds(filter.GetKinds()); err != nil {
		return err
	}
	ctx := stream.Context()
	tenant := tenantOf(ctx)
	// A caller knows by the header that what it begins now will be told.
	return s.feed.Watch(ctx, events.Request{
		After: filter.GetAfter(), UntilNow: filter.GetUntilNow(), Bookmarks: filter.GetBookmarks(),
		Keep:  func(f *events.Fact) bool { return f.Owner.Shows(tenant) && wanted(filter, f.Event) },
		Begun: func() error { return stream.SendHeader(nil) },
	}, func(f *events.Fact) error { return stream.Send(eventMessage(tenant, f)) })
}

// wanted tells whether a filter lets an event through.
func wanted(filter *debvisorv1.EventFilter, e *debvisorv1.Event) bool {
	return e.GetSeverity() >= filter.GetMinSeverity() && events.Match(filter.GetKinds(), e.GetKind()) &&
		(len(filter.GetResources()) == 0 || slices.ContainsFunc(filter.GetResources(), func(r string) bool { return slices.Contains(e.GetResources(), r) }))
}

// eventMessage gives a fact as a caller of a tenant sees it; empty: one that no
// tenant confines, who is told as well who did it, and why in the words of whoever
// said it.
func eventMessage(tenant string, f *events.Fact) *debvisorv1.Event {
	if tenant == "" && f.Why == "" && f.By == "" || f.Event.GetOperationId() == "" && tenant != "" {
		return f.Event
	}
	e := proto.CloneOf(f.Event)
	if tenant != "" {
		if !f.Operation.Shows(tenant) {
			e.OperationId = ""
		}
		return e
	}
	if e.Details == nil {
		e.Details = map[string]string{}
	}
	if f.By != "" {
		e.Details["by"] = f.By
	}
	if f.Why != "" {
		e.Message, e.Details["reason"] = e.GetMessage()+": "+f.Why, f.Why
	}
	return e
}
