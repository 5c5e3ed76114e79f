package controlplane

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

// stranger connects to the callers' listener without a certificate.
func (r *replicaUnderTest) stranger() *grpc.ClientConn {
	r.t.Helper()
	conn, err := rpc.Dial(r.cfg.Listen, certs.BootstrapClient("127.0.0.1", fingerprint(r.t, r.home)))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// whoAmI asks who a bearer is.
func (r *replicaUnderTest) whoAmI(conn *grpc.ClientConn, bearer string) (*debvisorv1.CallerIdentity, error) {
	ctx := metadata.AppendToOutgoingContext(r.within(), "authorization", "Bearer "+bearer)
	return debvisorv1.NewAccessServiceClient(conn).WhoAmI(ctx, &debvisorv1.Empty{})
}

// The contract's manual set-up on a running replica: the key works, and a
// moment later its text is in no record, no log and no audit log; and it ends
// when its record does.
func TestTheManualSetUp(t *testing.T) {
	r := newReplica(t)
	r.cfg.JWT.Key = filepath.Join(r.home.Dir, "jwt.pem")
	issuer := newSigner(t, r.cfg.JWT.Key)
	stop := r.start()
	r.awaitLeader(r.dial(r.cfg.Listen, r.home.Operator()))
	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + store.SocketPath(r.home.Dir)}, DialTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = etcd.Close() }()
	const plain = "the-plain-key-of-ci-system"
	for key, value := range map[string]string{
		store.APIKeyKey("ci-system"):    plain,
		store.PrincipalKey("ci-system"): `{"type": "service", "apikey_id": "` + plain + `", "permissions": ["storage:snapshot:create", "storage:snapshot:list"]}`,
	} {
		if _, err := etcd.Put(r.within(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	conn := r.stranger()
	var who *debvisorv1.CallerIdentity
	eventually(t, func() bool { who, err = r.whoAmI(conn, plain); return err == nil })
	if who.GetPrincipal() != "ci-system" || who.GetCredential() != debvisorv1.CredentialKind_CREDENTIAL_KIND_API_KEY || who.GetCredentialId() != "ci-system" {
		t.Errorf("the key is taken for %v", who)
	}
	eventually(t, func() bool {
		resp, err := etcd.Get(r.within(), "\x00", clientv3.WithFromKey())
		if err != nil {
			t.Fatal(err)
		}
		for _, kv := range resp.Kvs {
			if strings.Contains(string(kv.Value), plain) {
				return false
			}
		}
		return true
	})
	if _, err := r.whoAmI(conn, plain); err != nil {
		t.Errorf("after its replacement: %v", err)
	}
	who, err = r.whoAmI(conn, issuer.sign(t, "ci-system"))
	if err != nil || who.GetPrincipal() != "ci-system" || who.GetCredential() != debvisorv1.CredentialKind_CREDENTIAL_KIND_JWT {
		t.Errorf("the JWT is taken for %v, %v", who, err)
	}
	if _, err := etcd.Delete(r.within(), store.APIKeyKey("ci-system")); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		_, err := r.whoAmI(conn, plain)
		return errdefs.Is(errdefs.FromStatus(err), errdefs.Unauthenticated)
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
	for name, text := range map[string]string{"log": r.log.String(), "audit log": r.audit()} {
		if strings.Contains(text, plain) {
			t.Errorf("the plain key stands in the %s", name)
		}
		if name == "audit log" && !strings.Contains(text, `"system:access"`) {
			t.Error("the replacement is not audited")
		}
	}
}

// A certificate counts before a bearer, and the flags of JWTs stop a start that
// would not do what they say.
func TestCertificatesCountFirst(t *testing.T) {
	r := newReplica(t)
	r.start()
	conn := r.dial(r.cfg.Listen, r.home.Operator())
	r.awaitLeader(conn)
	who, err := r.whoAmI(conn, "dvk_nonsense")
	if err != nil || who.GetPrincipal() != "operator" || who.GetCredential() != debvisorv1.CredentialKind_CREDENTIAL_KIND_CERTIFICATE {
		t.Errorf("taken for %v, %v", who, err)
	}
	if _, err := r.whoAmI(r.stranger(), "dvk_nonsense"); errdefs.FromStatus(err).Code != "KEY_MALFORMED" {
		t.Errorf("without a certificate: %v", err)
	}
	for want, jwt := range map[string]JWT{
		"--jwt-key /nonexistent":   {Key: "/nonexistent"},
		"--jwt-jwks":               {JWKS: "http://issuer.example/jwks"},
		"--jwt-algorithms":         {Key: "/nonexistent", Algorithms: []string{"none"}},
		"without --jwt-key":        {TrustPermissions: true},
		"--jwt-key and --jwt-jwks": {Key: "/nonexistent", JWKS: "https://issuer.example/jwks"},
	} {
		other := newReplica(t)
		other.cfg.JWT = jwt
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if err := Run(ctx, other.cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", jwt, err, want)
		}
		cancel()
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); <-time.After(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s", patience)
		}
	}
}
