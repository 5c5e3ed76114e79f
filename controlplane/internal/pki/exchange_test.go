package pki_test

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/pki"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const (
	begin  = debvisorv1.CAAction_CA_ACTION_BEGIN
	change = debvisorv1.CAAction_CA_ACTION_SWITCH
	finish = debvisorv1.CAAction_CA_ACTION_FINISH
	back   = debvisorv1.CAAction_CA_ACTION_BACK
)

func TestExchange(t *testing.T) {
	b := newBench(t, "r1", "r2")
	old := b.rings["r1"].Signing().Certificate()
	for _, action := range []debvisorv1.CAAction{change, finish, back} {
		refused(t, b.step("r1", action), "CA_PHASE")
	}
	b.take("r1", "r2") // there is nothing to take over
	b.issue("r1", pki.Holder{Kind: pki.Principal, Name: "ci"}, time.Hour, 0)

	must(t, b.step("r1", begin))
	refused(t, b.step("r2", change), "CA_BEHIND")
	b.take("r1")
	current, next := b.prints()
	b.node("n1", current, current)
	b.put(store.PutProto(store.NodeKey("registered"), &storev1.Node{Id: "registered"}))
	if got := waits(b.view.Current(), b.rings["r1"]); !slices.Equal(got, []string{"replica/r2", "node/n1"}) {
		t.Errorf("the switch waits for %v", got)
	}
	refused(t, b.step("r1", change, "node/n1"), "CA_NOT_READY") // replicas are never left
	b.take("r2")
	refused(t, b.step("r1", change), "CA_NOT_READY")
	refused(t, b.step("r1", change, "n1"), "INVALID_FIELD")
	b.node("n1", current, current, next)
	must(t, b.step("r1", change))
	b.take("r1", "r2")

	young := b.rings["r2"].Signing().Certificate()
	if certs.Fingerprint(young) != next {
		t.Fatalf("r2 signs with another CA than the next one")
	}
	b.served(t, "r2", old, young)
	if got := waits(b.view.Current(), b.rings["r1"]); !slices.Equal(got, []string{"node/n1", "principal/ci"}) {
		t.Errorf("the end waits for %v", got)
	}
	must(t, b.step("r2", back))
	b.take("r1", "r2")
	b.served(t, "r1", old, young)
	must(t, b.step("r2", change))
	b.take("r1", "r2")
	refused(t, b.step("r1", finish), "CA_NOT_READY")
	refused(t, b.step("r1", finish, "node/n1"), "CA_NOT_READY")
	must(t, b.step("r1", finish, "node/n1", "principal/ci"))
	b.take("r1", "r2")
	if got := b.rings["r2"].Trusted(); len(got) != 1 || !got[0].Equal(young) || b.rings["r2"].Other() != nil {
		t.Errorf("after the end r2 trusts %d CAs", len(got))
	}
	b.served(t, "r1", old, young) // who trusts the old one alone can still tell servers
}

// served checks that who trusts one of the CAs alone verifies what a replica serves.
func (b *bench) served(t *testing.T, at string, cas ...*x509.Certificate) {
	t.Helper()
	key, err := certs.NewKey()
	must(t, err)
	chain, err := b.rings[at].Issue(key.Public(), certs.ServerLeaf("test", at, nil, 0), time.Now())
	must(t, err)
	for _, ca := range cas {
		if err := verifies(chain, ca); err != nil {
			t.Errorf("who trusts %q alone: %v", ca.Subject.CommonName, err)
		}
	}
}

func TestBackToTheOldCA(t *testing.T) {
	b := newBench(t, "r1")
	old := b.rings["r1"].Signing().Certificate()
	must(t, b.step("r1", begin))
	b.take("r1")
	must(t, b.step("r1", change))
	b.take("r1")
	b.issue("r1", pki.Holder{Kind: pki.Principal, Name: "early"}, time.Hour, 0)
	must(t, b.step("r1", back))
	b.take("r1")
	refused(t, b.step("r1", back), "CA_NOT_READY") // early's certificate is of the new CA
	must(t, b.step("r1", back, "principal/early"))
	b.take("r1")
	if got := b.rings["r1"]; len(got.Trusted()) != 1 || !got.Signing().Certificate().Equal(old) {
		t.Errorf("it trusts %v", got.Fingerprints())
	}
	must(t, b.step("r1", begin)) // and again
}

// A replica that was off through an exchange takes it over at once; through two, it says that it must join anew, and so does one
// that is shown a CA which nobody has vouched for.
func TestOffThroughExchanges(t *testing.T) {
	b := newBench(t, "r1", "off")
	round := func() {
		t.Helper()
		for _, action := range []debvisorv1.CAAction{begin, change, finish} {
			must(t, b.step("r1", action))
			b.take("r1")
			// It is off, and the bench says otherwise of it only so that the exchange goes on.
			said := b.view.Current().ReplicaStatuses["r1"].Value
			b.put(store.PutProto(store.ReplicaStatusKey("off"), &storev1.ReplicaStatus{
				Name: "off", At: timestamppb.Now(), TrustedCas: said.GetTrustedCas(), SigningCa: said.GetSigningCa(),
			}))
		}
	}
	before := b.rings["off"]
	round()
	after, err := pki.RingOf(b.record(), before, "off", b.seals["off"], time.Now())
	must(t, err)
	if !slices.Equal(after.Fingerprints(), b.rings["r1"].Fingerprints()) {
		t.Errorf("it trusts %v", after.Fingerprints())
	}
	if _, err := pki.RingOf(b.record(), before, "off", b.seals["r1"], time.Now()); err == nil {
		t.Error("with another's seal key it has the CA's key")
	}
	round()
	if _, err := pki.RingOf(b.record(), before, "off", b.seals["off"], time.Now()); err == nil || !strings.Contains(err.Error(), "join anew") {
		t.Errorf("after two exchanges: %v", err)
	}
	foreign, err := certs.NewAuthority("foreign", time.Now())
	must(t, err)
	forged := &storev1.CARotation{Phase: uint32(pki.Trusting), Current: b.record().GetCurrent(), Next: foreign.PEM(), SealedKeys: b.record().GetSealedKeys()}
	if _, err := pki.RingOf(forged, b.rings["r1"], "r1", b.seals["r1"], time.Now()); err == nil {
		t.Error("a CA that nobody has vouched for is trusted")
	}
}

// Keys are sealed to the replicas that there are.
func TestReseal(t *testing.T) {
	b := newBench(t, "r1", "r2")
	if _, needed, err := pki.Reseal(b.view.Current(), b.rings["r1"], time.Now()); needed || err != nil {
		t.Errorf("without an exchange: %v %v", needed, err)
	}
	must(t, b.step("r1", begin))
	b.take("r1", "r2")
	run(t, pki.Keeper{View: b.view, Store: b.store, Ring: func() *certs.Ring { return b.rings["r1"] }, Log: hclog.NewNullLogger()}.Run)
	ring := b.rings["r2"]
	b.replica("r2") // it has another seal key
	b.replica("r3")
	b.eventually("r3's key is sealed", func() error {
		_, err := pki.RingOf(b.record(), certs.NewRing(ring.Signing(), nil), "r3", b.seals["r3"], time.Now())
		return err
	})
	if n := len(b.record().GetSealedKeys()); n != 3 {
		t.Errorf("there are %d sealed keys", n)
	}
}

// eventually waits for the records to say something.
func (b *bench) eventually(what string, f func() error) {
	b.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		changed := b.view.Changed()
		err := f()
		if err == nil {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			b.t.Fatalf("%s: %v", what, fmt.Errorf("never: %w", err))
		}
	}
}
