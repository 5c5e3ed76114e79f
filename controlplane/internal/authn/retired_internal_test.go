package authn

import (
	"encoding/hex"
	"testing"
	"time"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// A CA that an exchange has ended stays so during the next one, and the way back makes one good again that had not gone.
func TestARetiredCAStaysRetired(t *testing.T) {
	now := time.Now()
	var cas [3]*certs.Authority
	for i, name := range []string{"a", "b", "c"} {
		ca, err := certs.NewAuthority(name, now)
		if err != nil {
			t.Fatal(err)
		}
		cas[i] = ca
	}
	by := func(signer, other *certs.Authority) []byte {
		c, err := signer.Certify(other.Certificate(), now, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return certs.EncodeCertificates(c)
	}
	a, b, c := cas[0], cas[1], cas[2]
	stable, trusting, signing := uint32(debvisorv1.CAPhase_CA_PHASE_STABLE), uint32(debvisorv1.CAPhase_CA_PHASE_TRUSTING), uint32(debvisorv1.CAPhase_CA_PHASE_SIGNING)
	var r retirement
	for _, step := range []struct {
		name   string
		record *storev1.CARotation
		ended  [3]bool
	}{
		{"both are trusted", &storev1.CARotation{Phase: trusting, Current: a.PEM(), Next: b.PEM(), NextByCurrent: by(a, b)}, [3]bool{}},
		{"the new one signs", &storev1.CARotation{Phase: signing, Current: a.PEM(), Next: b.PEM(), NextByCurrent: by(a, b)}, [3]bool{}},
		{"the end", &storev1.CARotation{Phase: stable, Current: b.PEM(), NextByCurrent: by(a, b)}, [3]bool{true, false, false}},
		{"the next exchange", &storev1.CARotation{Phase: trusting, Current: b.PEM(), Next: c.PEM(), NextByCurrent: by(b, c)}, [3]bool{true, false, false}},
		{"the way back", &storev1.CARotation{Phase: stable, Current: b.PEM(), CurrentByNext: by(c, b)}, [3]bool{true, false, true}},
		{"as a snapshot that is behind has it", &storev1.CARotation{Phase: trusting, Current: b.PEM(), Next: c.PEM(), NextByCurrent: by(b, c)}, [3]bool{true, false, false}},
	} {
		d := cluster.Empty().Draft()
		d.SetCA(step.record, 1)
		s := d.Snapshot(2)
		for i, ca := range cas {
			if got := r.ended(s, hex.EncodeToString(ca.Certificate().SubjectKeyId)); got != step.ended[i] {
				t.Errorf("%s: certificates of %s are refused: %v", step.name, ca.Name(), got)
			}
		}
	}
}
