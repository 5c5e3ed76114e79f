package pki_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/pki"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

var (
	ci    = pki.Holder{Kind: pki.Principal, Name: "ci"}
	agent = pki.Holder{Kind: pki.Agent, Name: "n1"}
)

// noted are certificates: "holder/name issued-ago life", in the order in which they were written.
func noted(t *testing.T, now time.Time, lines ...string) *cluster.Snapshot {
	t.Helper()
	d := cluster.Empty().Draft()
	for i, line := range lines {
		var who, ago, life string
		if _, err := fmt.Sscan(line, &who, &ago, &life); err != nil {
			t.Fatal(err)
		}
		kind, name, _ := strings.Cut(who, "/")
		since, err := time.ParseDuration(ago)
		must(t, err)
		lives, err := time.ParseDuration(life)
		must(t, err)
		serial := fmt.Sprintf("%02x", i+1)
		d.Certificates.Put(serial, &storev1.Certificate{
			Serial: serial, Name: name,
			Holder:   uint32(map[string]debvisorv1.CertificateHolder{"principal": pki.Principal, "node": pki.Agent, "replica": pki.Replica}[kind]),
			IssuedAt: timestamppb.New(now.Add(-since)), ExpiresAt: timestamppb.New(now.Add(lives - since)),
		}, int64(i+1))
	}
	return d.Snapshot(int64(len(lines)))
}

func serials(list *debvisorv1.CertificateList) (all string) {
	for _, c := range list.GetCertificates() {
		all += c.GetSerial()
		if c.GetSuperseded() {
			all += "s"
		}
		if c.GetRevoked() {
			all += "r"
		}
		all += " "
	}
	return strings.TrimSpace(all)
}

func TestList(t *testing.T) {
	now := time.Now()
	s := noted(t, now, "node/n1 10h 24h", "node/n1 1h 24h", "principal/ci 1h 12h", "principal/ci 1h 2h", "principal/old 2h 1h", "replica/r1 1h 240h")
	d := s.Draft()
	d.Revoked.Put("04", "stolen", 9)
	s = d.Snapshot(9)
	for want, f := range map[string]*debvisorv1.CertificateFilter{
		"03 02 06":            {},
		"05 04r 03 01s 02 06": {All: true},
		"02":                  {Holder: pki.Agent},
		"03":                  {Name: "ci"},
		"04r 03":              {Name: "ci", All: true},
		"03 02":               {ExpiresWithinSeconds: 24 * 3600},
	} {
		if got := serials(pki.List(s, f, now)); got != want {
			t.Errorf("%v: %q, want %q", f, got, want)
		}
	}
}

// However short their lives are, there is an end to what is kept.
func TestStale(t *testing.T) {
	now := time.Now()
	lines := []string{"node/n1 1m 1h", "principal/old 1000h 100h", "principal/recent 1000h 900h"}
	for i := range 50 {
		lines = append(lines, fmt.Sprintf("node/n1 %dm 1m", 10+i))
	}
	keys := pki.Stale(noted(t, now, lines...), now, 1000)
	if len(keys) != 1+40 || keys[0] != store.CertificateKey("02") {
		t.Errorf("%d go: %v", len(keys), keys)
	}
	if got := pki.Stale(noted(t, now, lines...), now, 7); len(got) != 7 {
		t.Errorf("%d go at once", len(got))
	}
}

// However often a certificate is renewed before it ends, there is an end to what is kept; none that is in use goes.
func TestRenewedAreNotKeptForEver(t *testing.T) {
	now := time.Now()
	var lines []string
	for i := range 450 {
		for _, holder := range []string{"node/n1", "replica/r1", "principal/ci"} {
			lines = append(lines, fmt.Sprintf("%s %ds 720h", holder, 450-i))
		}
	}
	s := noted(t, now, lines...)
	gone := map[pki.Holder]int{}
	for _, key := range pki.Stale(s, now, 10_000) {
		for serial, e := range s.Certificates {
			if store.CertificateKey(serial) == key {
				gone[pki.Holder{Kind: debvisorv1.CertificateHolder(e.Value.GetHolder()), Name: e.Value.GetName()}]++
			}
		}
	}
	want := map[pki.Holder]int{{Kind: pki.Agent, Name: "n1"}: 439, {Kind: pki.Replica, Name: "r1"}: 49}
	if !maps.Equal(gone, want) {
		t.Errorf("%v go, want %v", gone, want)
	}
}

func TestWarnings(t *testing.T) {
	now := time.Now()
	s := noted(t, now, "principal/ci 77h 2160h", "principal/soon 2000h 2160h", "node/n1 700h 720h", "node/n2 470h 720h", "replica/r1 10s 60s", "node/n1 1h 720h")
	var got []string
	for _, e := range pki.EndingSoon(s, now) {
		got = append(got, e.Holder.String())
	}
	if fmt.Sprint(got) != "[principal/soon]" { // n1 has renewed meanwhile, n2 is due to
		t.Errorf("ending soon: %v", got)
	}
	if got := pki.Soonest(s, now)[pki.Replica].Sub(now).Round(time.Second); got != 50*time.Second {
		t.Errorf("the soonest of replicas ends in %v", got)
	}
	old, err := certs.NewAuthority("old", now.Add(-certs.AuthorityLife+100*24*time.Hour))
	must(t, err)
	if w := pki.Warnings(s, certs.NewRing(old, nil), now); len(w) != 2 || !strings.Contains(w[0], "rotate-ca") || !strings.Contains(w[1], "principal/soon") {
		t.Errorf("warnings: %q", w)
	}
}

func TestRevocation(t *testing.T) {
	b := newBench(t, "r1")
	first := b.issue("r1", agent, time.Hour, 10*time.Minute)
	own := b.issue("r1", ci, time.Hour, 0)
	revoke := func(r pki.Revocation) ([]string, error) {
		r.Now = time.Now()
		c := store.Change{}
		got, err := r.Change(b.view.Current(), &c)
		if err == nil {
			revision, err := b.store.Commit(t.Context(), c)
			must(t, err)
			must(t, b.view.Await(t.Context(), revision))
		}
		return got, err
	}
	_, err := revoke(pki.Revocation{Holder: agent})
	refused(t, err, "NODE_NOT_FOUND")
	_, err = revoke(pki.Revocation{Holder: pki.Holder{Kind: pki.Replica, Name: "r9"}})
	refused(t, err, "CERTIFICATE_NOT_FOUND")
	_, err = revoke(pki.Revocation{Holder: ci, Own: own})
	refused(t, err, "OWN_CERTIFICATE")

	b.node("n1", "", "x") // it shows 5e, of which there is no record
	r := pki.Revocation{Holder: agent, Reason: "stolen"}
	got, err := revoke(r)
	must(t, err)
	if len(got) != 2 || b.view.Current().Revoked[first].Value != "stolen" || b.view.Current().Revoked["5e"].Value != "stolen" {
		t.Errorf("revoked: %v", got)
	}
	if at := b.view.Current().Nodes["n1"].Value.GetEnrolledAt().AsTime(); !at.After(time.Now().Add(-time.Second)) {
		t.Errorf("certificates that nobody has noted are good since %v", at)
	}
	// One that was handed out at the same moment.
	b.issue("r1", agent, time.Hour, time.Minute)
	r.Now = time.Now()
	if _, more := r.Unfinished(b.view.Current()); len(more) != 1 {
		t.Errorf("what came in between: %v", more)
	}
}
