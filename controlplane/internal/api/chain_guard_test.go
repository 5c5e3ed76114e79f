package api_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
	"github.com/debvisor/debvisor/shared/rpc"
)

// endsWithin is how soon an open call must end that nothing entitles any more.
const endsWithin = time.Second

// change commits a change and waits until the replica sees it.
func (r *replica) change(c store.Change) {
	r.t.Helper()
	revision, err := r.store.Commit(r.t.Context(), c)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.view.Await(r.t.Context(), revision); err != nil {
		r.t.Fatal(err)
	}
}

// operation puts an operation that is at work.
func (r *replica) operation(id, tenant, step string) {
	r.t.Helper()
	r.put(store.PutProto(store.OperationKey(id), &storev1.Operation{
		Id: id, Kind: "migrate", State: storev1.OperationState_OPERATION_STATE_RUNNING, Principal: "somebody", Tenant: tenant, Step: step,
		CreatedAt: timestamppb.Now(), Detail: &storev1.Operation_Migrate{Migrate: &storev1.Migrate{VmName: "web"}},
	}))
}

// key makes an API key and connects with it.
func (r *replica) key(principal string, expires time.Time) (id string, conn *grpc.ClientConn) {
	r.t.Helper()
	key, err := identity.NewAPIKey()
	if err != nil {
		r.t.Fatal(err)
	}
	record := &storev1.APIKey{Sha256: key.Hash(), Principal: principal, CreatedAt: timestamppb.Now(), ExpiresAt: timestamppb.New(expires)}
	r.put(store.PutJSON(store.APIKeyKey(key.ID), record))
	cfg := certs.BootstrapClient("127.0.0.1", certs.Fingerprint(r.ca.Certificate()))
	conn, err = rpc.Dial(r.address, cfg, grpc.WithPerRPCCredentials(token(key.Text())))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	return key.ID, conn
}

// token is sent with each call.
type token string

func (k token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(k)}, nil
}
func (token) RequireTransportSecurity() bool { return true }

// follow opens a watch and waits until it has said something.
func follow(t *testing.T, conn *grpc.ClientConn, operation string) debvisorv1.OperationService_WatchOperationClient {
	t.Helper()
	watch, err := debvisorv1.NewOperationServiceClient(conn).WatchOperation(t.Context(), &debvisorv1.OperationRef{Id: operation})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	return watch
}

// endOf waits for the end of a stream, which must come within a second.
func endOf(t *testing.T, since time.Time, receive func() error) *errdefs.Error {
	t.Helper()
	for {
		if err := receive(); err != nil {
			if took := time.Since(since); took > endsWithin {
				t.Errorf("it ended after %s: %v", took, err)
			}
			return errdefs.FromStatus(err)
		}
	}
}

func TestOpenCallsEndWithWhatAdmittedThem(t *testing.T) {
	r := start(t, 1<<30)
	principal := func(name string, change func(*storev1.Principal)) store.Put {
		p := &storev1.Principal{Type: "user", Roles: []string{"followers"}}
		if change != nil {
			change(p)
		}
		return store.PutJSON(store.PrincipalKey(name), p)
	}
	follower := &storev1.Role{Permissions: []string{"operation:get"}}
	r.operation("op-shared", "", "")
	r.operation("op-red", "red", "")
	for _, c := range []struct {
		name, operation string
		tenant          string
		change          func(name, key string) store.Change
		byKey           errdefs.Kind // what ends the call of who came with a key; Internal: nothing
		byCertificate   errdefs.Kind
		code            string
	}{
		{
			name: "certificate revoked", change: func(name, _ string) store.Change {
				return store.Change{Puts: []store.Put{store.PutString(store.RevokedKey(serialOf(t, filepath.Join(r.dir, name+".pem"))), "lost")}}
			}, byCertificate: errdefs.Unauthenticated, code: "CERTIFICATE_REVOKED",
		}, {
			name: "key deleted", change: func(_, key string) store.Change {
				return store.Change{Deletes: []string{store.APIKeyKey(key)}}
			}, byKey: errdefs.Unauthenticated, code: "KEY_NOT_ACCEPTED",
		}, {
			name: "role taken away", change: func(name, _ string) store.Change {
				return store.Change{Puts: []store.Put{principal(name, func(p *storev1.Principal) { p.Roles = nil })}}
			}, byKey: errdefs.PermissionDenied, byCertificate: errdefs.PermissionDenied, code: "PERMISSION_DENIED",
		}, {
			name: "tenant changed", operation: "op-red", tenant: "red", change: func(name, _ string) store.Change {
				return store.Change{Puts: []store.Put{principal(name, func(p *storev1.Principal) { p.Tenant = "blue" })}}
			}, byKey: errdefs.Unavailable, byCertificate: errdefs.Unavailable, code: "ACCESS_CHANGED",
		}, {
			name: "principal deleted", change: func(name, _ string) store.Change {
				return store.Change{Deletes: []string{store.PrincipalKey(name)}}
			}, byCertificate: errdefs.PermissionDenied, byKey: errdefs.Unauthenticated,
		}, {
			name: "role changed", change: func(string, string) store.Change {
				return store.Change{Puts: []store.Put{store.PutJSON(store.RoleKey("followers"), &storev1.Role{Permissions: []string{"vm:list"}})}}
			}, byKey: errdefs.PermissionDenied, byCertificate: errdefs.PermissionDenied, code: "PERMISSION_DENIED",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := strings.ReplaceAll(c.name, " ", "-")
			confined := func(p *storev1.Principal) { p.Tenant = c.tenant }
			r.put(store.PutJSON(store.RoleKey("followers"), follower), principal(name, confined), principal("bystander", nil))
			id, withKey := r.key(name, time.Now().Add(time.Hour))
			operation := "op-shared"
			if c.operation != "" {
				operation = c.operation
			}
			watches := map[string]debvisorv1.OperationService_WatchOperationClient{
				"key": follow(t, withKey, operation), "certificate": follow(t, r.principal(name), operation),
			}
			// Changes that mean nothing to them end nothing.
			r.put(principal("bystander", func(p *storev1.Principal) { p.Roles = nil }))
			began := time.Now()
			r.change(c.change(name, id))
			r.operation(operation, c.tenant, "a step after "+c.name)
			for kind, watch := range watches {
				want := c.byKey
				if kind == "certificate" {
					want = c.byCertificate
				}
				if want == errdefs.Internal {
					if _, err := watch.Recv(); err != nil {
						t.Errorf("%s: it ended: %v", kind, err)
					}
					continue
				}
				e := endOf(t, began, func() error { _, err := watch.Recv(); return err })
				if e.Kind != want || c.code != "" && e.Code != c.code || e.Context["trace_id"] == "" {
					t.Errorf("%s: it ended with %s %s %v", kind, e.Kind, e.Code, e)
				}
			}
		})
	}
}

func TestAnOpenCallEndsWithItsKey(t *testing.T) {
	r := start(t, 0)
	r.put(store.PutJSON(store.PrincipalKey("ci"), &storev1.Principal{Type: "service", Roles: []string{"viewer"}}))
	r.operation("op-1", "", "")
	ends := time.Now().Add(2 * time.Second)
	_, conn := r.key("ci", ends)
	watch := follow(t, conn, "op-1")
	e := endOf(t, ends, func() error { _, err := watch.Recv(); return err })
	if e.Kind != errdefs.Unauthenticated || time.Now().Before(ends) {
		t.Errorf("it ended with %v, %s from its key's end", e, time.Until(ends))
	}
}

// A change that waits is answered at once that its caller is refused; what was
// asked for goes on.
func TestAWaitingChangeEnds(t *testing.T) {
	r := start(t, 0)
	r.lead()
	r.node("a", nil)
	r.node("b", nil)
	r.vm("1", "web", "a")
	r.put(store.PutJSON(store.PrincipalKey("ada"), &storev1.Principal{Type: "user", Roles: []string{"operator"}}))
	conn := r.principal("ada")
	ended := make(chan error, 1)
	go func() {
		_, err := debvisorv1.NewMigrationServiceClient(conn).MigrateVM(t.Context(), &debvisorv1.VMMigrateSpec{Vm: &debvisorv1.VMRef{VmId: "web"}})
		ended <- err
	}()
	for len(r.view.Current().Operations) == 0 {
		changed := r.view.Changed()
		if len(r.view.Current().Operations) == 0 {
			<-changed
		}
	}
	began := time.Now()
	r.put(store.PutString(store.RevokedKey(serialOf(t, filepath.Join(r.dir, "ada.pem"))), "lost"))
	e := endOf(t, began, func() error { return <-ended })
	if e.Code != "CERTIFICATE_REVOKED" {
		t.Errorf("it ended with %v", e)
	}
	for id, op := range r.view.Current().Operations {
		if op.Value.GetState() > storev1.OperationState_OPERATION_STATE_RUNNING || op.Value.GetCancelRequested() {
			t.Errorf("operation %s: %v", id, op.Value)
		}
	}
	results := r.events("rpc_result", 1)
	if last := results[len(results)-1]; last["error"] != "CERTIFICATE_REVOKED" || last["operation"] == nil {
		t.Errorf("the audit log has %v", last)
	}
}

// Handlers that wait for their caller, to send or to take, hear of no context.
func TestStreamsThatWaitForTheirCallerEnd(t *testing.T) {
	for name, use := range map[string]func(reflectionv1.ServerReflection_ServerReflectionInfoClient) error{
		"to send": func(reflectionv1.ServerReflection_ServerReflectionInfoClient) error { return nil },
		"to take": func(stream reflectionv1.ServerReflection_ServerReflectionInfoClient) error {
			// What is asked for and never taken fills every window on the way.
			for range 2000 {
				if err := stream.Send(&reflectionv1.ServerReflectionRequest{
					MessageRequest: &reflectionv1.ServerReflectionRequest_FileByFilename{FileByFilename: "debvisor/v1/node.proto"},
				}); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, 0)
			r.put(store.PutJSON(store.PrincipalKey("ada"), &storev1.Principal{Type: "user", Roles: []string{"viewer"}, Permissions: []string{"reflection:get"}}))
			stream, err := reflectionv1.NewServerReflectionClient(r.principal("ada")).ServerReflectionInfo(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() { _ = use(stream) }) // ends with the stream
			r.events("rpc_call", 1)
			began := time.Now()
			r.put(store.PutString(store.RevokedKey(serialOf(t, filepath.Join(r.dir, "ada.pem"))), "lost"))
			// The audit log tells of the end on the server's side; what was on its
			// way to the caller comes before the caller's.
			if result := r.events("rpc_result", 1)[0]; result["error"] != "CERTIFICATE_REVOKED" || time.Since(began) > endsWithin+500*time.Millisecond {
				t.Errorf("after %s: %v", time.Since(began), result)
			}
			for err == nil {
				_, err = stream.Recv()
			}
			if e := errdefs.FromStatus(err); e.Code != "CERTIFICATE_REVOKED" {
				t.Errorf("the caller is told %v", err)
			}
		})
	}
}

// strait is a way to etcd that can be closed: nothing passes, and nobody is told.
type strait struct {
	mu     sync.Mutex
	closed bool
	open   *sync.Cond
}

func newStrait() *strait {
	s := &strait{}
	s.open = sync.NewCond(&s.mu)
	return s
}

func (s *strait) set(closed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = closed
	s.open.Broadcast()
}

// carry passes bytes on while the strait is open.
func (s *strait) carry(to, from net.Conn) {
	defer func() { _, _ = to.Close(), from.Close() }()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		s.mu.Lock()
		for s.closed {
			s.open.Wait()
		}
		s.mu.Unlock()
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// through makes a client of an etcd that reaches it through the strait.
func (s *strait) through(t *testing.T, direct *clientv3.Client) *clientv3.Client {
	t.Helper()
	target, ok := strings.CutPrefix(direct.Endpoints()[0], "unix://")
	if !ok {
		t.Fatalf("etcd listens on %v", direct.Endpoints())
	}
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	background(t, func(ctx context.Context) error {
		context.AfterFunc(ctx, func() { _ = lis.Close() })
		for {
			from, err := lis.Accept()
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			to, err := net.Dial("unix", target)
			if err != nil {
				return err
			}
			go s.carry(to, from)
			go s.carry(from, to)
		}
	})
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{lis.Addr().String()}, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.set(false) // or who carries would wait for ever
		_ = client.Close()
	})
	return client
}

func TestAPartitionedReplicaStopsAnswering(t *testing.T) {
	direct, s := storetest.Client(t), newStrait()
	ca, err := certs.NewAuthority("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{t: t, ca: ca, dir: storetest.Dir(t), client: s.through(t, direct), log: &buffer{}}
	r.store = store.New(r.client)
	if err := r.store.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.serve(0)
	r.operation("op-1", "", "")
	conn := r.principal("operator")
	watch := follow(t, conn, "op-1")
	s.set(true)
	lost := time.Now()
	_, err = watch.Recv()
	if e := errdefs.FromStatus(err); e.Kind != errdefs.Unavailable || time.Since(lost) > 5*time.Second {
		t.Errorf("after %s an open watch ends with %v", time.Since(lost), err)
	}
	_, err = debvisorv1.NewNodeServiceClient(conn).ListNodes(t.Context(), &debvisorv1.Empty{})
	if e := errdefs.FromStatus(err); e.Kind != errdefs.Unavailable || e.Code != "STALE_SNAPSHOT" {
		t.Errorf("it answers a call with %v", err)
	}
	s.set(false)
	for deadline := time.Now().Add(30 * time.Second); ; <-time.After(50 * time.Millisecond) {
		if _, err = debvisorv1.NewNodeServiceClient(conn).ListNodes(t.Context(), &debvisorv1.Empty{}); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not answer again: %v", err)
		}
	}
}
