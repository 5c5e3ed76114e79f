package answer

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// images stands for a cluster: it hands its listing on in pieces, and ends as it
// is told to.
type images struct {
	pieces []*agentv1.RbdListing
	err    error
	asked  *agentv1.ListRbd
}

func (i *images) List(_ context.Context, q *agentv1.ListRbd, part func(*agentv1.RbdListing) error) error {
	i.asked = q
	for _, p := range i.pieces {
		if err := part(p); err != nil {
			return err
		}
	}
	return i.err
}

func askRbd(names ...string) *agentv1.Ask {
	q := &agentv1.ListRbd{Snapshots: true, Watchers: true}
	for _, n := range names {
		q.Images = append(q.Images, &agentv1.RbdImageID{Pool: "rbd", Name: n})
	}
	return &agentv1.Ask{Id: 9, Question: &agentv1.Ask_ListRbd{ListRbd: q}}
}

// TestImagesComeInPartsOfAnEvenSize: whatever the pieces are that Ceph gives, no
// part is larger than it may be and nothing is lost or told twice.
func TestImagesComeInPartsOfAnEvenSize(t *testing.T) {
	const n = 3000
	one, many := &agentv1.RbdListing{}, []*agentv1.RbdListing{}
	for i := range n {
		image := &agentv1.RbdImage{Image: &agentv1.RbdImageID{Pool: "rbd", Name: fmt.Sprintf("image-%04d", i), Id: fmt.Sprint(i)}, SizeBytes: 1 << 30}
		snapshot := &agentv1.RbdSnapshot{Snapshot: &agentv1.RbdSnapshotID{Image: image.GetImage(), Name: "dv-1", Id: uint64(i + 1)}}
		one.Images, one.Snapshots = append(one.Images, image), append(one.Snapshots, snapshot)
		many = append(many, &agentv1.RbdListing{Images: []*agentv1.RbdImage{image}, Snapshots: []*agentv1.RbdSnapshot{snapshot}})
	}
	for name, pieces := range map[string][]*agentv1.RbdListing{"one piece": {one}, "a piece each": many, "none": nil} {
		ceph := &images{pieces: pieces}
		c := NewCeph(ceph)
		c.partBytes = 8 << 10
		var parts []*agentv1.Answer
		last := Answers{Ceph: c}.Answer(t.Context(), askRbd("image-0001"), func(a *agentv1.Answer) error {
			parts = append(parts, a)
			return nil
		})
		if last.GetId() != 9 || last.GetErrorCode() != "" || !proto.Equal(ceph.asked, askRbd("image-0001").GetListRbd()) {
			t.Errorf("%s: %v, asked for %v", name, last, ceph.asked)
		}
		all := &agentv1.RbdListing{}
		for _, a := range append(parts, last) {
			proto.Merge(all, a.GetRbdListing())
			if size := proto.Size(a); size > 9<<10 {
				t.Errorf("%s: a part of %d bytes", name, size)
			}
		}
		want := one
		if pieces == nil {
			want = &agentv1.RbdListing{}
		}
		if !proto.Equal(all, want) {
			t.Errorf("%s: %d images, %d snapshots in %d parts", name, len(all.GetImages()), len(all.GetSnapshots()), len(parts)+1)
		}
		if pieces != nil && len(parts) < 20 {
			t.Errorf("%s: %d parts", name, len(parts)+1)
		}
	}
}

func TestListingsOfImagesThatCannotBeGiven(t *testing.T) {
	down := &images{err: errdefs.New(errdefs.Unavailable, "CEPH_DOWN", "Ceph does not answer")}
	for name, c := range map[string]struct {
		ceph *Ceph
		ask  *agentv1.Ask
		code string
	}{
		"no Ceph":         {nil, askRbd(), CodeNoCeph},
		"a dead cluster":  {NewCeph(down), askRbd(), "CEPH_DOWN"},
		"too many images": {NewCeph(&images{}), askRbd(make([]string, maxNamed+1)...), "INVALID_FIELD"},
	} {
		last := Answers{Ceph: c.ceph}.Answer(t.Context(), c.ask, nil)
		if last.GetId() != 9 || last.GetErrorCode() != c.code || last.GetErrorMessage() == "" || last.GetAnswer() != nil {
			t.Errorf("%s: %v", name, last)
		}
	}
}

// TestNobodyWaitsForTheRestOfAListing: the search ends with the part that nobody
// takes.
func TestNobodyWaitsForTheRestOfAListing(t *testing.T) {
	ceph := &images{}
	for i := range 100 {
		ceph.pieces = append(ceph.pieces, &agentv1.RbdListing{Images: []*agentv1.RbdImage{{Image: &agentv1.RbdImageID{Name: fmt.Sprint(i)}}}})
	}
	c := NewCeph(ceph)
	c.partBytes = 1
	sent := 0
	last := Answers{Ceph: c}.Answer(t.Context(), askRbd(), func(*agentv1.Answer) error {
		sent++
		return errors.New("nobody")
	})
	if sent != 1 || last.GetErrorCode() == "" {
		t.Errorf("%d parts, then %v", sent, last)
	}
}
