package migration

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/debvisor/debvisor/agent/internal/worker"
	"github.com/debvisor/debvisor/agent/internal/zvol"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func TestPartsAreOneStream(t *testing.T) {
	for name, c := range map[string]struct {
		rest  string
		parts []string
		end   error
		want  string
		kind  errdefs.Kind
	}{
		"whole":           {"", []string{"ab", "", "c"}, io.EOF, "abc", errdefs.Kind(0)},
		"with the header": {"xy", []string{"z"}, io.EOF, "xyz", errdefs.Kind(0)},
		"nothing":         {"", nil, io.EOF, "", errdefs.Kind(0)},
		"cut":             {"", []string{"ab"}, errors.New("reset"), "ab", errdefs.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			left := c.parts
			p := &parts{rest: []byte(c.rest), next: func() (*agentv1.VolumePart, error) {
				if len(left) == 0 {
					return nil, c.end
				}
				part := &agentv1.VolumePart{Data: []byte(left[0])}
				left = left[1:]
				return part, nil
			}}
			var got strings.Builder
			_, err := io.Copy(&got, struct{ io.Reader }{p})
			if got.String() != c.want || (err != nil) != (c.kind != 0) || err != nil && !errdefs.Is(err, c.kind) {
				t.Errorf("%q, %v", got.String(), err)
			}
		})
	}
}

// Of a volume one stream at a time comes in, none of another, and none once it is
// shut, which waits for those that are in.
func TestIntake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		came := 0
		v := zvol.Volume{Disk: &agentv1.DiskTransfer{Target: "vda"}}
		i := newIntake(t.Context(), []zvol.Volume{v}, func() { came++ })
		if _, _, err := i.enter(t.Context(), "vdb"); !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("another disk: %v", err)
		}
		_, leave, err := i.enter(t.Context(), "vda")
		if err != nil {
			t.Fatal(err)
		}
		impatient, cancel := context.WithCancel(t.Context())
		second := make(chan error, 1)
		go func() {
			_, _, err := i.enter(impatient, "vda")
			second <- err
		}()
		synctest.Wait()
		select {
		case err := <-second:
			t.Fatalf("a second stream did not wait: %v", err)
		default:
		}
		cancel()
		if err := <-second; !errors.Is(err, context.Canceled) {
			t.Errorf("the second: %v", err)
		}
		shut := make(chan struct{})
		go func() {
			i.shut()
			close(shut)
		}()
		synctest.Wait()
		select {
		case <-shut:
			t.Fatal("shut while a stream comes in")
		default:
		}
		if i.ctx.Err() == nil {
			t.Error("who comes in is not told that it ends")
		}
		leave()
		<-shut
		if _, _, err := i.enter(t.Context(), "vda"); !errdefs.Is(err, errdefs.NotFound) || came != 1 {
			t.Errorf("after the end: %v; %d came", err, came)
		}
		var none *intake
		if _, _, err := none.enter(t.Context(), "vda"); !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("a task that takes none: %v", err)
		}
		none.shut()
	})
}

// uncancelled is a task that nobody has ended.
type uncancelled struct{ worker.Run }

func (uncancelled) Cancelled() <-chan struct{} { return nil }

// The last snapshots are owed to a copy that is behind, and to one of which nothing
// is known; never given up for one that may still want them.
func TestWhoWaitsForTheLast(t *testing.T) {
	for name, c := range map[string]struct {
		side   *agentv1.Side
		nobody bool
	}{
		"nothing known":          {&agentv1.Side{}, false},
		"coming":                 {&agentv1.Side{State: incoming}, false},
		"behind":                 {&agentv1.Side{State: paused, Ended: true, Behind: true}, false},
		"off and behind":         {&agentv1.Side{State: shutoff, Ended: true, Behind: true}, false},
		"whole, to stay so":      {&agentv1.Side{State: paused, Ended: true}, true},
		"off and whole":          {&agentv1.Side{State: shutoff, Ended: true}, true},
		"runs":                   {&agentv1.Side{State: running, Ended: true}, true},
		"nothing there yet":      {&agentv1.Side{State: absent}, false},
		"nothing there for good": {&agentv1.Side{State: absent, Ended: true}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := &sender{half: &half{other: c.side, run: uncancelled{}}}
			if got := s.nobodyWaits(); got != c.nobody {
				t.Errorf("nobody waits: %v", got)
			}
		})
	}
}
