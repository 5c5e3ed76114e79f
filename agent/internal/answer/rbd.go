package answer

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// CodeNoCeph is the error of questions to a host that is no client of Ceph.
const CodeNoCeph = "NO_CEPH"

// Images is what answers about Ceph are made of (rbd.Client). List ends with its
// context and with part's error; a part may be of any size.
type Images interface {
	List(ctx context.Context, q *agentv1.ListRbd, part func(*agentv1.RbdListing) error) error
}

// Ceph answers questions about the images that this host sees. It is safe for
// concurrent use.
type Ceph struct {
	images Images
	// partBytes is how much a part of a listing holds.
	partBytes int
}

// NewCeph makes one that asks the cluster.
func NewCeph(images Images) *Ceph { return &Ceph{images: images, partBytes: partBytes} }

// list answers ListRbd.
func (c *Ceph) list(ctx context.Context, q *agentv1.ListRbd, part func(*agentv1.Answer) error) (*agentv1.Answer, error) {
	if c == nil {
		return nil, errdefs.New(errdefs.FailedPrecondition, CodeNoCeph, "this host has no Ceph")
	}
	if n := len(q.GetImages()); n > maxNamed {
		return nil, errdefs.Field("images", fmt.Sprint(n), fmt.Sprintf("at most %d", maxNamed))
	}
	// gofail: var cephAsked struct{}
	p := &parcel{send: part, most: c.partBytes, now: &agentv1.RbdListing{}}
	if err := c.images.List(ctx, q, p.pack); err != nil {
		return nil, err
	}
	return p.answer(), nil
}

// parcel makes parts of the right size of a listing.
type parcel struct {
	send func(*agentv1.Answer) error
	most int                 // bytes of a part
	now  *agentv1.RbdListing // of the next part
	size int                 // of now, about
}

func (p *parcel) pack(found *agentv1.RbdListing) error {
	for _, image := range found.GetImages() {
		if err := p.add(image); err != nil {
			return err
		}
		p.now.Images = append(p.now.Images, image)
	}
	for _, snapshot := range found.GetSnapshots() {
		if err := p.add(snapshot); err != nil {
			return err
		}
		p.now.Snapshots = append(p.now.Snapshots, snapshot)
	}
	return nil
}

// add makes room for one more message, by sending what there is if need be.
func (p *parcel) add(m proto.Message) error {
	size := proto.Size(m) + 8
	if p.size > 0 && p.size+size > p.most {
		if err := p.send(p.answer()); err != nil {
			return err
		}
		p.now, p.size = &agentv1.RbdListing{}, 0
	}
	p.size += size
	return nil
}

func (p *parcel) answer() *agentv1.Answer {
	return &agentv1.Answer{Answer: &agentv1.Answer_RbdListing{RbdListing: p.now}}
}
