package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// fakeEvents tells ten events, of which each watch sees three at most before the
// replica stops: whoever wants all has to go on after the last.
type fakeEvents struct {
	debvisorv1.UnimplementedEventServiceServer
}

const fakeEventCount = 10

// Watch tells what follows a cursor.
func (fakeEvents) Watch(filter *debvisorv1.EventFilter, stream grpc.ServerStreamingServer[debvisorv1.Event]) error {
	at := fakeEventCount
	switch after := filter.GetAfter(); {
	case after == "1.1":
		return errdefs.New(errdefs.FailedPrecondition, "EVENTS_LOST", "what followed the cursor 1.1 is not known any more: go on after 3.0").With("oldest", "3.0")
	case after == "oldest":
		at = 0
	case after != "":
		number, err := strconv.Atoi(strings.TrimSuffix(after, ".0"))
		if err != nil {
			return errdefs.Field("after", after, "a cursor")
		}
		at = number - 1
	}
	bookmark := func() error {
		return stream.Send(&debvisorv1.Event{Cursor: fmt.Sprint(at+1, ".0"), Kind: "cursor"})
	}
	if err := bookmark(); err != nil {
		return err
	}
	for sent := 0; at < fakeEventCount; sent++ {
		if sent == 3 {
			return errdefs.New(errdefs.Unavailable, "REPLICA_STOPS", "this replica stops").WithRetry(time.Millisecond)
		}
		at++
		node := fmt.Sprint("n", at)
		if err := stream.Send(&debvisorv1.Event{
			Cursor: fmt.Sprint(at+1, ".0"), Revision: int64(at), Kind: "node.online", Severity: debvisorv1.EventSeverity_EVENT_SEVERITY_INFO,
			Time: &debvisorv1.Timestamp{Seconds: 1}, Resources: []string{"node/" + node}, Message: "node " + node + " is online\x1b[0m",
		}); err != nil {
			return err
		}
	}
	if !filter.GetUntilNow() {
		<-stream.Context().Done()
		return stream.Context().Err()
	}
	return bookmark()
}
