//go:build ceph_preview

package rbd

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// inventory asks the monitors only, so that dead OSDs do not keep it.
func (c *cluster) inventory(ctx context.Context, r *request) (proto.Message, error) {
	var health struct{ Status string }
	var version struct{ Version string }
	var usage struct {
		Pools []struct {
			Name  string
			Stats struct {
				Used uint64 `json:"bytes_used"`
				Free uint64 `json:"max_avail"`
			}
		}
	}
	for _, q := range []struct {
		command map[string]any
		into    any
	}{
		{map[string]any{"prefix": "health"}, &health},
		{map[string]any{"prefix": "version"}, &version},
		{map[string]any{"prefix": "df"}, &usage},
	} {
		if err := c.mon(ctx, r, q.command, q.into); err != nil {
			return nil, err
		}
	}
	pools, err := c.pools(ctx, r)
	if err != nil {
		return nil, err
	}
	monitors, err := c.monitors(ctx, r)
	if err != nil {
		return nil, err
	}
	inv := &agentv1.CephInventory{Fsid: c.fsid, Health: health.Status, Version: versionNumber(version.Version), Monitors: monitors}
	inv.Address = hostOf(c.address)
	for _, p := range pools {
		_, forRBD := p.Applications["rbd"]
		pool := &agentv1.CephPool{Name: p.Name, Id: p.ID, Rbd: forRBD}
		for _, u := range usage.Pools {
			if u.Name == p.Name {
				pool.UsedBytes, pool.FreeBytes = u.Stats.Used, u.Stats.Free
			}
		}
		inv.Pools = append(inv.Pools, pool)
	}
	slices.SortFunc(inv.Pools, func(a, b *agentv1.CephPool) int { return strings.Compare(a.GetName(), b.GetName()) })
	return inv, nil
}

// poolDetail is what the monitors tell of a pool.
type poolDetail struct {
	Name         string         `json:"pool_name"`
	ID           int64          `json:"pool_id"`
	PGs          int            `json:"pg_num"`
	Applications map[string]any `json:"application_metadata"`
}

func (c *cluster) pools(ctx context.Context, r *request) ([]poolDetail, error) {
	var pools []poolDetail
	err := c.mon(ctx, r, map[string]any{"prefix": "osd pool ls", "detail": "detail"}, &pools)
	return pools, err
}

// hostOf is what stands before an address's port and nonce; those of IPv6 have more
// colons. Empty: it is none, or not known.
func hostOf(address string) string {
	at := strings.LastIndex(address, ":")
	if at <= 0 || strings.HasPrefix(address, "0.0.0.0:") {
		return ""
	}
	return address[:at]
}

// versionNumber is 16.2.15 of "ceph version 16.2.15 (618f…) pacific (stable)".
func versionNumber(text string) string {
	fields := strings.Fields(text)
	if len(fields) > 2 {
		return fields[2]
	}
	return text
}
