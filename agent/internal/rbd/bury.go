//go:build ceph_preview

package rbd

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// bury blocklists children of ours that are dead.
func (c *cluster) bury(ctx context.Context, r *request) (proto.Message, error) {
	q, err := decoded(r.payload, &agentv1.RbdUnfence{})
	if err != nil {
		return nil, err
	}
	for _, address := range q.GetEntries() {
		if err := c.blocklist(ctx, r, address, buryFor); err != nil {
			return nil, err
		}
	}
	// What we ask from now on makes each OSD take the entries in first.
	if err := r.step(ctx, "waiting for the OSD map"); err != nil {
		return nil, err
	}
	if err := c.conn.WaitForLatestOSDMap(); err != nil {
		return nil, translate(err, false, "waiting for the OSD map")
	}
	return &agentv1.RbdOutcome{}, nil
}

// blocklist has Ceph take nothing more from an address. An entry that is there keeps
// the end that it has.
func (c *cluster) blocklist(ctx context.Context, r *request, address string, expire time.Duration) error {
	return c.mon(ctx, r, map[string]any{
		"prefix": "osd blocklist", "blocklistop": "add", "addr": address,
		// The monitors take a number with a point only.
		"expire": json.RawMessage(fmt.Sprintf("%.1f", expire.Seconds())),
	}, nil)
}
