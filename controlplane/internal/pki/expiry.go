package pki

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// How long before its end a certificate is warned of. One that its holder renews
// by itself is late when a sixth of its life is left; a principal's wants
// somebody to do something.
const (
	principalNotice = 14 * 24 * time.Hour
	authorityNotice = 180 * 24 * time.Hour
)

// Ending is a certificate that ends soon.
type Ending struct {
	Holder
	Serial string
	At     time.Time
}

// String is a sentence about it.
func (e Ending) String() string {
	return fmt.Sprintf("the certificate %s of %s ends at %s", e.Serial, e.Holder, e.At.UTC().Format(time.RFC3339))
}

// EndingSoon are the live certificates that end soon, the soonest first.
func EndingSoon(s *cluster.Snapshot, now time.Time) []Ending {
	a := newAccount(s, now)
	var list []Ending
	for serial, e := range s.Certificates {
		if a.live(e) && e.Value.GetExpiresAt().AsTime().Sub(now) < notice(e.Value) {
			list = append(list, Ending{holderOf(e.Value), serial, e.Value.GetExpiresAt().AsTime()})
		}
	}
	slices.SortFunc(list, func(x, y Ending) int { return cmp.Or(x.At.Compare(y.At), cmp.Compare(x.Serial, y.Serial)) })
	return list
}

func notice(r *storev1.Certificate) time.Duration {
	sixth := r.GetExpiresAt().AsTime().Sub(r.GetIssuedAt().AsTime()) / 6
	if debvisorv1.CertificateHolder(r.GetHolder()) == Principal {
		return min(principalNotice, sixth)
	}
	return sixth
}

// Soonest is the soonest end of a live certificate of each kind of holder.
func Soonest(s *cluster.Snapshot, now time.Time) map[debvisorv1.CertificateHolder]time.Time {
	a := newAccount(s, now)
	ends := map[debvisorv1.CertificateHolder]time.Time{}
	for _, e := range s.Certificates {
		kind, at := debvisorv1.CertificateHolder(e.Value.GetHolder()), e.Value.GetExpiresAt().AsTime()
		if known, ok := ends[kind]; a.live(e) && (!ok || at.Before(known)) {
			ends[kind] = at
		}
	}
	return ends
}

// Warnings says what ends soon, one sentence each: a CA first.
func Warnings(s *cluster.Snapshot, ring *certs.Ring, now time.Time) []string {
	var list []string
	for _, c := range ring.Trusted() {
		if c.NotAfter.Sub(now) < authorityNotice {
			list = append(list, fmt.Sprintf("the CA %s ends at %s: exchange it (hvctl cert rotate-ca)",
				short(certs.Fingerprint(c)), c.NotAfter.UTC().Format(time.RFC3339)))
		}
	}
	for _, e := range EndingSoon(s, now) {
		list = append(list, e.String())
	}
	return list
}

// Watchman logs what ends soon. It is for the leader.
type Watchman struct {
	View View
	Ring func() *certs.Ring
	Log  hclog.Logger
}

// watchEvery is how often it looks; what it has told it tells again after
// tellAgain.
const (
	watchEvery = time.Minute
	tellAgain  = 24 * time.Hour
	maxTold    = 100
)

// Run looks until the context ends; it then returns nil.
func (w Watchman) Run(ctx context.Context) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	told := map[string]time.Time{}
	for {
		now := time.Now()
		for i, text := range Warnings(w.View.Current(), w.Ring(), now) {
			if i == maxTold {
				w.Log.Warn("more certificates end soon", "shown", maxTold)
				break
			}
			if now.Sub(told[text]) >= tellAgain {
				told[text] = now
				w.Log.Warn("certificate ends soon: " + text)
			}
		}
		for text, at := range told {
			if now.Sub(at) > 2*tellAgain {
				delete(told, text)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
