package api_test

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// watched gives what a caller is told until the watch ends.
func watched(t *testing.T, conn *grpc.ClientConn, filter *debvisorv1.EventFilter) (all []*debvisorv1.Event, err error) {
	t.Helper()
	stream, err := debvisorv1.NewEventServiceClient(conn).Watch(t.Context(), filter)
	if err != nil {
		return nil, err
	}
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, e)
	}
}

// happen lets things happen to everybody's VMs, jobs and operations, whose texts name others', and to what belongs to all.
func (w *world) happen() {
	w.t.Helper()
	everyone := ""
	for _, kind := range []string{"acme", "globex", "nobody"} {
		everyone += " " + w.of[kind].secret + " " + w.of[kind].vm
	}
	for _, kind := range []string{"acme", "globex", "nobody"} {
		o := w.of[kind]
		vm := w.view.Current().VMs[o.vm].Value
		moved := &storev1.VM{Uuid: o.vm, Name: "db", Node: "b", Generation: 2, Domain: vm.GetDomain(), Policy: vm.GetPolicy()}
		w.put(
			store.PutProto(store.VMKey(o.vm), moved),
			store.PutProto(store.OperationKey(o.operation), &storev1.Operation{
				Id: o.operation, Kind: "migrate", State: task.OpFailed, Resources: []string{"vm/" + o.vm}, Tenant: o.tenant, Principal: "svc-of" + everyone,
				EndedAt: timestamppb.Now(), ErrorCode: "MIGRATION_FAILED", ErrorMessage: "libvirt says" + everyone,
			}),
			store.PutProto(store.ReplicationKey(o.job), &storev1.ReplicationJob{
				Id: o.job, Source: "a", Target: "b", Dataset: o.pool + "/d/x", TargetDataset: o.pool + "/d/x", Tenant: o.tenant,
				LastEnd: timestamppb.Now(), LastErrorCode: "ZFS_ERROR", LastError: "zfs says" + everyone, CreatedBy: "svc-of" + everyone,
			}),
		)
	}
	w.node("spare", func(n *storev1.Node, _ *storev1.NodeStatus) { n.Cordoned, n.CordonReason = true, "because of"+everyone })
	w.put(store.PutJSON(store.PrincipalKey("somebody"), &storev1.Principal{Roles: []string{"viewer"}}))
}

// TestEventsTellTenantsTheirOwn has everybody watch the same: a tenant's callers see what is theirs and the nodes, and no word of
// another's, in no text; callers that no tenant confines see all, with who and why.
func TestEventsTellTenantsTheirOwn(t *testing.T) {
	w := startWorld(t)
	w.happen()
	for _, kind := range []string{"acme", "globex", "nobody"} {
		own := w.of[kind]
		all, err := watched(t, w.caller("viewer", own.tenant).conn, &debvisorv1.EventFilter{After: "oldest", UntilNow: true})
		if err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprint(all)
		for _, what := range []string{"vm.moved", "operation.failed", "replication.failed", "node.cordoned", own.vm, own.operation, own.job} {
			if !strings.Contains(text, what) {
				t.Errorf("%s is not told of %s: %s", kind, what, text)
			}
		}
		for _, other := range []string{"acme", "globex", "nobody"} {
			for _, secret := range w.of[other].secrets() {
				if own.tenant != "" && other != kind && strings.Contains(text, secret) {
					t.Errorf("%s is told %s of %s", kind, secret, other)
				}
			}
		}
		confined := own.tenant != ""
		for _, what := range []string{"access.principal-set", "because of", "zfs says", "libvirt says", "svc-of"} {
			if strings.Contains(text, what) == confined {
				t.Errorf("%s, confined: %v, is told %q", kind, confined, what)
			}
		}
		moved := all[slices.IndexFunc(all, func(e *debvisorv1.Event) bool {
			return e.GetKind() == "vm.moved" && e.GetResources()[0] == "vm/"+own.vm
		})]
		if moved.GetOperationId() != own.operation || moved.GetDetails()["from"] != "a" || moved.GetDetails()["to"] != "b" {
			t.Errorf("%s: %v", kind, moved)
		}
	}
}

// TestEventFilters narrow a watch in every way.
func TestEventFilters(t *testing.T) {
	w := startWorld(t)
	w.happen()
	conn, own := w.caller("viewer", "").conn, w.of["acme"]
	for name, c := range map[string]struct {
		filter *debvisorv1.EventFilter
		want   func(e *debvisorv1.Event) bool
	}{
		"kinds": {&debvisorv1.EventFilter{Kinds: []string{"vm.moved"}}, func(e *debvisorv1.Event) bool { return e.GetKind() == "vm.moved" }},
		"family": {&debvisorv1.EventFilter{Kinds: []string{"node.*", "vm.moved"}}, func(e *debvisorv1.Event) bool {
			return strings.HasPrefix(e.GetKind(), "node.") || e.GetKind() == "vm.moved"
		}},
		"severity": {&debvisorv1.EventFilter{MinSeverity: debvisorv1.EventSeverity_EVENT_SEVERITY_WARNING}, func(e *debvisorv1.Event) bool { return e.GetSeverity() >= 2 }},
		"resource": {&debvisorv1.EventFilter{Resources: []string{"vm/" + own.vm, "node/spare"}}, func(e *debvisorv1.Event) bool {
			return slices.Contains(e.GetResources(), "vm/"+own.vm) || slices.Contains(e.GetResources(), "node/spare")
		}},
	} {
		everything, err := watched(t, conn, &debvisorv1.EventFilter{After: "oldest", UntilNow: true})
		if err != nil {
			t.Fatal(err)
		}
		c.filter.After, c.filter.UntilNow = "oldest", true
		some, err := watched(t, conn, c.filter)
		if err != nil || len(some) == 0 || len(some) == len(everything) {
			t.Fatalf("%s: %d of %d, %v", name, len(some), len(everything), err)
		}
		want := 0
		for _, e := range everything {
			if c.want(e) {
				want++
			}
		}
		if len(some) != want || slices.ContainsFunc(some, func(e *debvisorv1.Event) bool { return !c.want(e) }) {
			t.Errorf("%s lets %d through of %d", name, len(some), want)
		}
	}
	for _, bad := range []*debvisorv1.EventFilter{{Kinds: []string{"vm.movd"}}, {Kinds: []string{"*"}}, {After: "yesterday"}, {MinSeverity: 9}, {Resources: []string{""}}} {
		bad.UntilNow = true
		_, err := watched(t, conn, bad)
		if e := errdefs.FromStatus(err); status.Code(err) != codes.InvalidArgument || e.Context["field"] == "" {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// TestEventsEndWithTheRight ends a watch when its caller may no longer make it, and when it moves to another tenant.
func TestEventsEndWithTheRight(t *testing.T) {
	w := startWorld(t)
	for name, change := range map[string]struct {
		to   *storev1.Principal
		want codes.Code
	}{
		"no role":        {&storev1.Principal{}, codes.PermissionDenied},
		"another tenant": {&storev1.Principal{Roles: []string{"viewer"}, Tenant: w.of["acme"].tenant}, codes.Unavailable},
	} {
		w.caller("viewer", "") // viewer-of-nobody as it was
		stream, err := debvisorv1.NewEventServiceClient(w.principal("viewer-of-nobody")).Watch(t.Context(), &debvisorv1.EventFilter{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Header(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		w.put(store.PutJSON(store.PrincipalKey("viewer-of-nobody"), change.to))
		for err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != change.want || time.Since(began) > 5*time.Second {
			t.Errorf("%s: %v after %v", name, err, time.Since(began))
		}
	}
}
