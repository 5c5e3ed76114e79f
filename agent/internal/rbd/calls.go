package rbd

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// Limits of whole calls. Each step of a call has one of its own in the child.
const (
	lookWithin   = 20 * time.Second
	changeWithin = 60 * time.Second
	// removeWithin is for what has to delete an image's objects one by one.
	removeWithin = time.Hour
)

// asked sends a message and reads the answer into another.
func asked[M proto.Message](ctx context.Context, c *Client, q call, question proto.Message, answer M) (M, error) {
	var none M
	if question != nil {
		var err error
		if q.payload, err = proto.Marshal(question); err != nil {
			return none, err
		}
	}
	lane := c.general
	if q.verb == verbFlatten {
		lane = c.long
	}
	payload, err := c.do(ctx, lane, q)
	if err != nil {
		return none, err
	}
	return decoded(payload, answer)
}

func poolsOf(images ...*agentv1.RbdImageID) []string {
	var pools []string
	for _, image := range images {
		pools = append(pools, image.GetPool())
	}
	return pools
}

// probe asks whether a pool answers; the empty one: whether the monitors do.
func (c *Client) probe(ctx context.Context, pool string) error {
	_, err := c.do(ctx, c.general, call{verb: verbProbe, payload: []byte(pool), limit: lookWithin, urgent: true})
	return err
}

// blocklist keeps addresses out for buryFor.
func (c *Client) blocklist(ctx context.Context, addresses []string) error {
	_, err := asked(ctx, c, call{verb: verbBury, limit: lookWithin, urgent: true},
		&agentv1.RbdUnfence{Entries: addresses}, &agentv1.RbdOutcome{})
	return err
}

// Inventory tells what the cluster is and which pools it has.
func (c *Client) Inventory(ctx context.Context) (*agentv1.CephInventory, error) {
	inv, err := asked(ctx, c, call{verb: verbInventory, limit: lookWithin}, nil, &agentv1.CephInventory{})
	if err == nil {
		inv.Entity = "client." + c.cfg.User
	}
	return inv, err
}

// List tells what there is, in parts, in no order. Snapshots that Ceph keeps for
// itself are left out; one that is part of a group's snapshot has that one's name.
func (c *Client) List(ctx context.Context, q *agentv1.ListRbd, part func(*agentv1.RbdListing) error) error {
	pools := poolsOf(q.GetImages()...)
	for _, pool := range pools {
		if pool == "" {
			pools = []string{allPools}
		}
	}
	_, err := asked(ctx, c, call{verb: verbList, pools: pools, part: func(payload []byte) error {
		listing, err := decoded(payload, &agentv1.RbdListing{})
		if err != nil {
			return err
		}
		return part(listing)
	}}, q, &agentv1.RbdOutcome{})
	return err
}

// Image tells of one image and its snapshots; with watchers, also who has it open
// and who holds its lock. NotFound IMAGE_NOT_FOUND or POOL_NOT_FOUND; IMAGE_REPLACED
// where the name is another image's by now.
func (c *Client) Image(ctx context.Context, id *agentv1.RbdImageID, watchers bool) (*agentv1.RbdImage, []*agentv1.RbdSnapshot, error) {
	if err := named("image", id); err != nil {
		return nil, nil, err
	}
	listing, err := asked(ctx, c, call{verb: verbImage, pools: poolsOf(id), limit: lookWithin},
		&agentv1.ListRbd{Images: []*agentv1.RbdImageID{id}, Snapshots: true, Watchers: watchers, Children: true}, &agentv1.RbdListing{})
	if err != nil {
		return nil, nil, err
	}
	return listing.GetImages()[0], listing.GetSnapshots(), nil
}

// SnapshotSpec is a snapshot to take.
type SnapshotSpec struct {
	Image *agentv1.RbdImageID
	Name  string
	// Operation is who takes it: the same one gets the same snapshot.
	Operation  string
	Label, Set string
	// Template: clones are to be made of it.
	Template bool
}

// CreateSnapshot takes a snapshot, or finds the one that the operation has taken.
// SNAPSHOT_EXISTS where another has the name.
func (c *Client) CreateSnapshot(ctx context.Context, s SnapshotSpec) (*agentv1.RbdSnapshotID, error) {
	if err := named("image", s.Image); err != nil {
		return nil, err
	}
	made, err := c.create(ctx, &agentv1.RbdSnapshotCreate{
		Images: []*agentv1.RbdImageID{s.Image}, Name: s.Name, Operation: s.Operation, Label: s.Label, Set: s.Set, Template: s.Template,
	})
	if err != nil {
		return nil, err
	}
	return made[0], nil
}

func (c *Client) create(ctx context.Context, q *agentv1.RbdSnapshotCreate) ([]*agentv1.RbdSnapshotID, error) {
	if q.GetName() == "" || q.GetOperation() == "" {
		return nil, errdefs.New(errdefs.InvalidArgument, "INVALID_FIELD", "a snapshot needs a name and an operation")
	}
	outcome, err := asked(ctx, c, call{verb: verbCreate, pools: poolsOf(q.GetImages()...), changes: true, limit: changeWithin}, q, &agentv1.RbdOutcome{})
	return outcome.GetMade(), err
}

// named refuses an image without a pool or a name.
func named(field string, id *agentv1.RbdImageID) error {
	if id.GetPool() == "" || id.GetName() == "" {
		return errdefs.Field(field, id.GetPool()+"/"+id.GetName(), "a pool and an image's name")
	}
	return nil
}
