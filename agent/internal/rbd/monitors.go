//go:build ceph_preview

package rbd

import "context"

// monitors tells where the cluster's monitors are, host:port, all addresses of
// each.
func (c *cluster) monitors(ctx context.Context, r *request) ([]string, error) {
	var dump struct {
		Mons []struct {
			Addresses struct {
				All []struct{ Addr string } `json:"addrvec"`
			} `json:"public_addrs"`
		}
	}
	if err := c.mon(ctx, r, map[string]any{"prefix": "mon dump"}, &dump); err != nil {
		return nil, err
	}
	var all []string
	for _, m := range dump.Mons {
		for _, a := range m.Addresses.All {
			all = append(all, a.Addr)
		}
	}
	return all, nil
}
