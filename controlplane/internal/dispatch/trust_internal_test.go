package dispatch

import (
	"testing"
	"time"

	"github.com/debvisor/debvisor/certs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// trusts is a Trust that never changes.
type trusts struct{ ca []byte }

func (t trusts) Bundle() *agentv1.TrustBundle { return &agentv1.TrustBundle{Ca: t.ca} }
func (trusts) Changed() <-chan struct{}       { return nil }

// An agent that trusts something else than it was told is told again, whichever way it differs: a replica that was behind has told it
// of a CA that is trusted no more, or has not told it of one.
func TestAnAgentThatTrustsSomethingElseIsToldAgain(t *testing.T) {
	list := make([]string, 2)
	var ca []byte
	for i, name := range []string{"now", "former"} {
		a, err := certs.NewAuthority(name, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if list[i] = certs.Fingerprint(a.Certificate()); i == 0 {
			ca = a.PEM()
		}
	}
	now, former := list[0], list[1]
	for _, c := range []struct {
		name   string
		cas    []string
		issuer string
		again  bool
	}{
		{"as it was told", []string{now}, now, false},
		{"it lacks one", []string{former}, former, true},
		{"its own certificate's besides", []string{now, former}, former, false},
		{"one too many", []string{now, former}, now, true},
	} {
		s := &session{leader: &leader{cfg: Config{Trust: trusts{ca}}}, bell: make(chan struct{}, 1)}
		s.nextBundle(true)
		s.hearTrust(&agentv1.Trust{Cas: c.cas, Issuer: c.issuer})
		if again := len(s.takeOutbox()) > 0; again != c.again {
			t.Errorf("%s: told again %v, want %v", c.name, again, c.again)
		}
	}
}
