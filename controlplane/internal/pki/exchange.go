package pki

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// backLife is how long the new CA's certificate for the old one is good, once the
// way back was taken: as long as anybody may know the new one alone, by a join
// token.
const backLife = 7 * 24 * time.Hour

// Exchange is one step of an exchange of the CA.
type Exchange struct {
	Cluster string
	// Ring is that of the replica which makes the step.
	Ring   *certs.Ring
	Action debvisorv1.CAAction
	// LeaveBehind are those without whom to go on, as Holder.String has them.
	LeaveBehind []string
	By          string
	Now         time.Time
}

// Change gives what the step changes. Its errors are FailedPrecondition: another
// phase, or somebody is not ready (who, and why); Unavailable: this replica is
// behind the record.
func (x Exchange) Change(s *cluster.Snapshot) (store.Change, error) {
	for _, who := range x.LeaveBehind {
		if kind, name, _ := strings.Cut(who, "/"); (kind != "node" && kind != "principal") || name == "" {
			return store.Change{}, errdefs.Field("leave_behind", who, "node/<id> or principal/<name>")
		}
	}
	was := recordOf(s, x.Ring)
	if !x.current(was) {
		return store.Change{}, errdefs.New(errdefs.Unavailable, "CA_BEHIND",
			"this replica has not yet taken over the last change of the CA; try again").WithRetry(time.Second)
	}
	record, _ := proto.Clone(was).(*storev1.CARotation)
	if err := x.step(s, record); err != nil {
		return store.Change{}, err
	}
	record.PhaseSince, record.ChangedBy, record.Generation = timestamppb.New(x.Now), x.By, was.GetGeneration()+1
	if err := sealAll(s, record, x.Ring); err != nil {
		return store.Change{}, err
	}
	return store.Change{
		Require: []store.Condition{store.Unchanged(store.CAKey(), s.CA.ModRevision)},
		Puts:    []store.Put{store.PutProto(store.CAKey(), record)},
	}, nil
}

// current tells whether the replica has the CAs of the record.
func (x Exchange) current(was *storev1.CARotation) bool {
	first, second := fingerprint(was.GetCurrent()), fingerprint(was.GetNext())
	if phaseOf(was) == Signing {
		first, second = second, first
	}
	other := ""
	if o := x.Ring.Other(); o != nil {
		other = certs.Fingerprint(o.Certificate())
	}
	return certs.Fingerprint(x.Ring.Signing().Certificate()) == first && other == second
}

func (x Exchange) step(s *cluster.Snapshot, r *storev1.CARotation) error {
	current, next := fingerprint(r.GetCurrent()), fingerprint(r.GetNext())
	switch at := phaseOf(r); {
	case x.Action == debvisorv1.CAAction_CA_ACTION_BEGIN && at == Stable:
		if err := x.ready("the exchange cannot begin", unsealed(s)); err != nil {
			return err
		}
		return x.begin(r)
	case x.Action == debvisorv1.CAAction_CA_ACTION_SWITCH && at == Trusting:
		r.Phase = uint32(Signing)
		return x.ready("the new CA cannot sign yet", untrusting(s, []string{current, next}))
	case x.Action == debvisorv1.CAAction_CA_ACTION_FINISH && at == Signing:
		// The certificate of the new CA by the old one stays: who trusts the old
		// one alone can go on verifying servers.
		r.Phase, r.Current, r.Next, r.CurrentByNext = uint32(Stable), r.GetNext(), nil, nil
		return x.ready("the old CA is still needed", dependent(s, current, next, x.Now))
	case x.Action == debvisorv1.CAAction_CA_ACTION_BACK && at == Signing:
		r.Phase = uint32(Trusting)
		back, err := x.Ring.Signing().Certify(x.Ring.Other().Certificate(), x.Now, backLife)
		if err != nil {
			return err
		}
		r.CurrentByNext = certs.EncodeCertificates(back)
		return nil
	case x.Action == debvisorv1.CAAction_CA_ACTION_BACK && at == Trusting:
		r.Phase, r.Next, r.NextByCurrent = uint32(Stable), nil, nil
		return x.ready("the new CA is still needed", dependent(s, next, current, x.Now))
	default:
		return errdefs.New(errdefs.FailedPrecondition, "CA_PHASE", "the exchange of the CA is %s: %s does not go on from there; %s",
			word(at.String()), word(x.Action.String()), nextSteps(at)).With("phase", word(at.String()))
	}
}

// begin makes the new CA. Its name differs from the old one's, so that tools
// which go by names can tell them apart.
func (x Exchange) begin(r *storev1.CARotation) error {
	next, err := certs.NewAuthority(fmt.Sprintf("DebVisor CA of %s, %s", x.Cluster, x.Now.UTC().Format("2006-01-02 15:04:05")), x.Now)
	if err != nil {
		return err
	}
	vouch, err := x.Ring.Signing().Certify(next.Certificate(), x.Now, certs.AuthorityLife)
	if err != nil {
		return err
	}
	r.Phase, r.Next = uint32(Trusting), next.PEM()
	r.NextByCurrent, r.CurrentByNext = certs.EncodeCertificates(vouch), nil
	key, err := next.KeyPEM()
	if err != nil {
		return err
	}
	// sealAll takes it from here, as it is in no ring yet.
	r.SealedKeys = map[string][]byte{"": key}
	return nil
}

func (x Exchange) ready(what string, list []laggard) error {
	var left []string
	for _, l := range list {
		if l.Kind == Replica || !slices.Contains(x.LeaveBehind, l.String()) {
			left = append(left, l.String()+": "+l.why)
		}
	}
	if len(left) == 0 {
		return nil
	}
	const most = 20
	text := strings.Join(left[:min(len(left), most)], "; ")
	if len(left) > most {
		text += fmt.Sprintf("; and %d more", len(left)-most)
	}
	return errdefs.New(errdefs.FailedPrecondition, "CA_NOT_READY", "%s: %s", what, text).With("waiting_for", fmt.Sprint(len(left)))
}

// sealAll seals the keys of the record's CAs to every replica that has a seal
// key, and to no other.
func sealAll(s *cluster.Snapshot, r *storev1.CARotation, ring *certs.Ring) error {
	have, err := ring.Keys()
	if err != nil {
		return err
	}
	have = append(have, r.GetSealedKeys()[""]...)
	var keys []byte
	for _, data := range [][]byte{r.GetCurrent(), r.GetNext()} {
		if len(data) == 0 {
			continue
		}
		a, err := certs.NewAuthorityFrom(data, have)
		if err != nil {
			return err
		}
		key, err := a.KeyPEM()
		if err != nil {
			return err
		}
		keys = append(keys, key...)
	}
	r.SealedKeys = map[string][]byte{}
	for name, e := range s.Replicas {
		public := e.Value.GetSealKey()
		if len(public) == 0 {
			continue
		}
		if r.SealedKeys[slot(name, public)], err = SealTo(public, keys, exchangeInfo); err != nil {
			return fmt.Errorf("seal the CA's key to replica %s: %w", name, err)
		}
	}
	return nil
}

// Reseal seals the CAs' keys anew where replicas have come, gone or changed
// their seal keys since; ok is false where there is nothing to do.
func Reseal(s *cluster.Snapshot, ring *certs.Ring, now time.Time) (c store.Change, ok bool, err error) {
	if s.CA.Value == nil {
		return c, false, nil
	}
	want := 0
	for name, e := range s.Replicas {
		if public := e.Value.GetSealKey(); len(public) > 0 {
			want++
			if _, sealed := s.CA.Value.GetSealedKeys()[slot(name, public)]; !sealed {
				ok = true
			}
		}
	}
	x := Exchange{Ring: ring, Now: now}
	if ok = ok || want != len(s.CA.Value.GetSealedKeys()); !ok || !x.current(s.CA.Value) {
		return c, false, nil
	}
	record, _ := proto.Clone(s.CA.Value).(*storev1.CARotation)
	record.Generation++
	if err := sealAll(s, record, ring); err != nil {
		return c, false, err
	}
	c.Require = []store.Condition{store.Unchanged(store.CAKey(), s.CA.ModRevision)}
	c.Puts = []store.Put{store.PutProto(store.CAKey(), record)}
	return c, true, nil
}

// word is an enumeration's value as people read it.
func word(name string) string {
	name = strings.TrimPrefix(strings.TrimPrefix(name, "CA_PHASE_"), "CA_ACTION_")
	return strings.ToLower(name)
}

func nextSteps(at debvisorv1.CAPhase) string {
	switch at {
	case Trusting:
		return "switch or back does"
	case Signing:
		return "finish or back does"
	default:
		return "begin does"
	}
}
