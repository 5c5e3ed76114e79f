package api_test

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/x509"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/pki"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestCertificates(t *testing.T) {
	r := start(t, 0)
	r.put(store.PutJSON(store.PrincipalKey("ci"), &storev1.Principal{Roles: []string{"viewer"}}),
		store.PutProto(store.ReplicaKey("r1"), &storev1.Replica{Name: "r1"}))
	certificates := debvisorv1.NewCertificateServiceClient(r.principal("operator"))
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := certs.NewRequest(key, "whoever")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "debvisor-request-id", "certificate-of-ci")
	req := &debvisorv1.CertificateRequest{Principal: "ci", Csr: csr, TtlSeconds: 3600}
	first, err := certificates.IssueCertificate(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	second, err := certificates.IssueCertificate(ctx, req)
	if err != nil {
		t.Fatalf("the same request again: %v", err)
	}
	a, b := leaf(t, first.GetCertificate()), leaf(t, second.GetCertificate())
	if !bytes.Equal(a.RawTBSCertificate, b.RawTBSCertificate) || a.Subject.CommonName != "ci" || certs.Serial(a) != first.GetInfo().GetSerial() {
		t.Errorf("the certificates say %v %s, %v %s", a.Subject, certs.Serial(a), b.Subject, certs.Serial(b))
	}
	other := metadata.AppendToOutgoingContext(t.Context(), "debvisor-request-id", "others")
	for what, bad := range map[string]*debvisorv1.CertificateRequest{
		"PRINCIPAL_NOT_FOUND": {Principal: "nobody", Csr: csr}, "INVALID_FIELD": {Principal: "agent:n1", Csr: csr},
	} {
		if _, err := certificates.IssueCertificate(other, bad); errdefs.FromStatus(err).Code != what {
			t.Errorf("%v, want %s", err, what)
		}
	}
	list, err := certificates.ListCertificates(ctx, &debvisorv1.CertificateFilter{Name: "ci"})
	if err != nil || len(list.GetCertificates()) != 1 || list.GetCertificates()[0].GetIssuedBy() != "operator" {
		t.Errorf("the list: %v, %v", list, err)
	}
	revoked, err := certificates.RevokeHolder(t.Context(), &debvisorv1.HolderRevocation{Holder: pki.Principal, Name: "ci"})
	if err != nil || len(revoked.GetSerials()) != 1 || revoked.GetSerials()[0] != certs.Serial(a) {
		t.Errorf("revoked: %v, %v", revoked, err)
	}
	if _, err := certificates.RotateCA(t.Context(), &debvisorv1.CARotationRequest{Action: debvisorv1.CAAction_CA_ACTION_BEGIN}); errdefs.FromStatus(err).Code != "CA_NOT_READY" {
		t.Errorf("without a seal key the exchange begins: %v", err)
	}
	r.put(store.PutProto(store.ReplicaKey("r1"), &storev1.Replica{Name: "r1", SealKey: sealKey(t)}))
	ca, err := certificates.RotateCA(t.Context(), &debvisorv1.CARotationRequest{Action: debvisorv1.CAAction_CA_ACTION_BEGIN})
	if err != nil || ca.GetPhase() != pki.Trusting || ca.GetNext() == "" || ca.GetOperationId() == "" || len(ca.GetWaitingFor()) != 1 {
		t.Errorf("begun: %v, %v", ca, err)
	}
}

func leaf(t *testing.T, chain []byte) *x509.Certificate {
	t.Helper()
	list, err := certs.ParseCertificates(chain)
	if err != nil {
		t.Fatal(err)
	}
	return list[0]
}

func sealKey(t *testing.T) []byte {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key.PublicKey().Bytes()
}

// A connection that stands since before the end of an exchange is refused.
func TestRetiredCA(t *testing.T) {
	r := start(t, 0)
	nodes := debvisorv1.NewNodeServiceClient(r.principal("operator"))
	if _, err := nodes.ListNodes(t.Context(), &debvisorv1.Empty{}); err != nil {
		t.Fatal(err)
	}
	next, err := certs.NewAuthority("next", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	vouch, err := r.ca.Certify(next.Certificate(), time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	record := &storev1.CARotation{Phase: uint32(pki.Signing), Current: r.ca.PEM(), Next: next.PEM(), NextByCurrent: certs.EncodeCertificates(vouch)}
	r.put(store.PutProto(store.CAKey(), record))
	if _, err := nodes.ListNodes(t.Context(), &debvisorv1.Empty{}); err != nil {
		t.Errorf("before the end: %v", err)
	}
	record.Phase, record.Current, record.Next = uint32(pki.Stable), next.PEM(), nil
	r.put(store.PutProto(store.CAKey(), record))
	if _, err := nodes.ListNodes(t.Context(), &debvisorv1.Empty{}); status.Code(err) != codes.Unauthenticated || errdefs.FromStatus(err).Code != "CA_RETIRED" {
		t.Errorf("after the end: %v", err)
	}
}
