package members_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/members"
	"github.com/debvisor/debvisor/controlplane/internal/pki"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// desk is a member with a real etcd.
type desk struct {
	t      *testing.T
	home   members.Home
	member *members.Member
	view   *store.View
	store  *store.Store
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{t: t, home: newHome(t)}
	if _, err := members.Init(d.home, options(t, "r1")); err != nil {
		t.Fatal(err)
	}
	d.member = openHome(t, d.home)
	client := storetest.Client(t)
	d.view, d.store = store.NewView(client, hclog.NewNullLogger()), store.New(client)
	background(t, d.view.Run)
	<-d.view.Ready()
	d.put(store.PutProto(store.ReplicaKey("r1"), &storev1.Replica{Name: "r1", SealKey: d.member.SealKey()}))
	return d
}

func (d *desk) put(puts ...store.Put) {
	d.t.Helper()
	d.commit(store.Change{Puts: puts})
}

func (d *desk) commit(c store.Change) {
	d.t.Helper()
	revision, err := d.store.Commit(d.t.Context(), c)
	if err == nil {
		err = d.view.Await(d.t.Context(), revision)
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// step takes the exchange a step on, and says what would make the next one possible.
func (d *desk) step(ring *certs.Ring, action debvisorv1.CAAction) {
	d.t.Helper()
	c, err := pki.Exchange{Cluster: "test", Ring: ring, Action: action, By: "operator", Now: time.Now()}.Change(d.view.Current())
	if err != nil {
		d.t.Fatal(err)
	}
	d.commit(c)
	signing := d.record().GetCurrent()
	if d.record().GetPhase() == uint32(pki.Signing) {
		signing = d.record().GetNext()
	}
	list, err := certs.ParseCertificates(slices.Concat(d.record().GetCurrent(), d.record().GetNext()))
	if err != nil {
		d.t.Fatal(err)
	}
	first, err := certs.ParseCertificates(signing)
	if err != nil {
		d.t.Fatal(err)
	}
	d.put(store.PutProto(store.ReplicaStatusKey("r1"), &storev1.ReplicaStatus{Name: "r1", TrustedCas: certs.Fingerprints(list), SigningCa: certs.Fingerprint(first[0])}))
}

func (d *desk) record() *storev1.CARotation {
	r, _ := proto.Clone(d.view.Current().CA.Value).(*storev1.CARotation)
	return r
}

// A replica takes each step over, and starts with what it then has; one that was off through all of it catches up.
func TestTakeOver(t *testing.T) {
	d := newDesk(t)
	off := copyHome(t, d.home)
	changed := d.member.Changed()
	for _, action := range []debvisorv1.CAAction{
		debvisorv1.CAAction_CA_ACTION_BEGIN, debvisorv1.CAAction_CA_ACTION_SWITCH, debvisorv1.CAAction_CA_ACTION_FINISH,
	} {
		d.step(d.member.Ring(), action)
		if err := d.member.Take(d.record()); err != nil {
			t.Fatalf("%v: %v", action, err)
		}
		again := openHome(t, d.home)
		if !again.Ring().Equal(d.member.Ring()) {
			t.Errorf("%v: started again it trusts %v, before %v", action, again.Ring().Fingerprints(), d.member.Ring().Fingerprints())
		}
		if issuer := again.Server().Issuer(); issuer == nil || !issuer.Equal(again.Ring().Signing().Certificate()) {
			t.Errorf("%v: it serves with a certificate of %v", action, issuer)
		}
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told of the change")
	}
	late := openHome(t, off)
	if err := late.CatchUp(t.Context(), d.store); err != nil {
		t.Fatalf("catching up: %v", err)
	}
	trusted, signing := late.Trust()
	if want, _ := d.member.Trust(); !slices.Equal(trusted, want) || signing != want[0] {
		t.Errorf("after catching up it trusts %v and signs with %s; want %v", trusted, signing, want)
	}
}

// A replica that stopped after its CAs were replaced and before its certificate was starts.
func TestTakeOverCutShort(t *testing.T) {
	d := newDesk(t)
	wrap, err := certs.ReadWrapKey(filepath.Join(d.home.Dir, "pki", "wrap.key"))
	if err != nil {
		t.Fatal(err)
	}
	old := d.member.Ring()
	for _, action := range []debvisorv1.CAAction{debvisorv1.CAAction_CA_ACTION_BEGIN, debvisorv1.CAAction_CA_ACTION_SWITCH} {
		d.step(d.member.Ring(), action)
		if action == debvisorv1.CAAction_CA_ACTION_BEGIN {
			if err := d.member.Take(d.record()); err != nil {
				t.Fatal(err)
			}
			continue
		}
		next := certs.NewRing(d.member.Ring().Other(), old.Signing(), d.member.Ring().Cross()...)
		if err := next.Save(d.home.Ring(), wrap); err != nil {
			t.Fatal(err)
		}
		again := openHome(t, d.home)
		if err := again.Take(d.record()); err != nil {
			t.Fatal(err)
		}
		if issuer := again.Server().Issuer(); issuer == nil || !issuer.Equal(next.Signing().Certificate()) {
			t.Errorf("it serves with a certificate of %v", issuer)
		}
	}
}

// copyHome is a data directory as it is now.
func copyHome(t *testing.T, home members.Home) members.Home {
	t.Helper()
	to := members.Home{Dir: filepath.Join(t.TempDir(), "copy")}
	if err := os.CopyFS(to.Dir, os.DirFS(home.Dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// A replica notes its own certificate and what was issued in its directory; once its own is revoked it ends, and does not start.
func TestNotesAndRevocation(t *testing.T) {
	d := newDesk(t)
	pair, err := members.IssueClient(d.home, "ci", t.TempDir(), 0)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() { ended <- d.member.Follow(ctx, d.view, d.store) }()
	for name, path := range map[string]string{"ci": pair.Cert, "operator": d.home.Operator().Cert, "r1": ""} {
		serial := certs.Serial(d.member.Server().Leaf())
		if path != "" {
			serial = serialIn(t, path)
		}
		poll(t, name+"'s certificate is noted", func() (bool, error) {
			r, ok := d.view.Current().Certificates[serial]
			if ok && (r.Value.GetName() != name || r.Value.GetCa() != certs.Fingerprint(d.member.Ring().Signing().Certificate())) {
				return false, errors.New("it is noted as " + r.Value.String())
			}
			return ok, nil
		})
	}
	d.put(store.PutString(store.RevokedKey(certs.Serial(d.member.Server().Leaf())), "stolen"))
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "revoked") {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it goes on")
	}
	if _, err := members.Open(d.home, 0, hclog.NewNullLogger()); err == nil || !strings.Contains(err.Error(), "join anew") {
		t.Errorf("it starts: %v", err)
	}
}

// A replica that was off when it was revoked does not start, however often it is tried before etcd answers.
func TestRevokedWhileOff(t *testing.T) {
	d := newDesk(t)
	had := certs.Serial(d.member.Server().Leaf())
	again := openHome(t, d.home)
	if err := again.CatchUp(t.Context(), d.store); err != nil {
		t.Fatal(err)
	}
	had2 := certs.Serial(again.Server().Leaf())
	d.put(store.PutString(store.RevokedKey(had2), "stolen"))
	openHome(t, d.home) // killed before etcd answers
	started := openHome(t, d.home)
	if serial := certs.Serial(started.Server().Leaf()); serial == had || serial == had2 {
		t.Fatalf("it has the same certificate %s", serial)
	}
	if err := started.CatchUp(t.Context(), d.store); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("it goes on: %v", err)
	}
	if _, err := members.Open(d.home, 0, hclog.NewNullLogger()); err == nil || !strings.Contains(err.Error(), "join anew") {
		t.Errorf("it starts: %v", err)
	}
}

// What failed of a change of the CAs is done when it is tried again.
func TestTakeOverThatFails(t *testing.T) {
	d := newDesk(t)
	d.step(d.member.Ring(), debvisorv1.CAAction_CA_ACTION_BEGIN)
	if err := d.member.Take(d.record()); err != nil {
		t.Fatal(err)
	}
	d.step(d.member.Ring(), debvisorv1.CAAction_CA_ACTION_SWITCH)
	// Nothing can be put in the place of a directory.
	staged := d.home.Server().Key + ".next"
	if err := os.MkdirAll(filepath.Join(staged, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.member.Take(d.record()); err == nil {
		t.Fatal("it did not fail")
	}
	if err := os.RemoveAll(staged); err != nil {
		t.Fatal(err)
	}
	if err := d.member.Take(d.record()); err != nil {
		t.Fatal(err)
	}
	_, signing := d.member.Trust()
	issuer := d.member.Server().Issuer()
	if want := d.member.Ring().Signing().Certificate(); signing != fingerprintOf(t, d.record().GetNext()) || issuer == nil || !issuer.Equal(want) {
		t.Errorf("it signs with %s and serves with a certificate of %v", signing, issuer)
	}
}

func fingerprintOf(t *testing.T, pem []byte) string {
	t.Helper()
	list, err := certs.ParseCertificates(pem)
	if err != nil {
		t.Fatal(err)
	}
	return certs.Fingerprint(list[0])
}

func serialIn(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	list, err := certs.ParseCertificates(data)
	if err != nil {
		t.Fatal(err)
	}
	return certs.Serial(list[0])
}
