package zfs

import (
	"context"
	"strings"
)

// Pool is a pool as zpool list tells it; sizes are bytes.
type Pool struct {
	Name string
	GUID uint64
	// Health is ONLINE, DEGRADED, FAULTED, OFFLINE, UNAVAIL, REMOVED or SUSPENDED.
	Health                         string
	Size, Allocated, Free, Freeing uint64
	// Fragmentation and Capacity are per cent; Fragmentation is 0 where unknown.
	Fragmentation, Capacity uint64
	ReadOnly                bool
}

// Pools lists the pools that are imported; it answers also of one that is
// suspended.
func (z *ZFS) Pools(ctx context.Context) ([]Pool, error) {
	var pools []Pool
	columns := strings.Split(poolProperties, ",")
	c := command{program: "zpool", args: []string{"list", "-Hpo", poolProperties}}
	err := z.fields(ctx, c, len(columns), func(line []string) error {
		g := group{name: line[0], values: map[string]Property{}}
		for i, column := range columns {
			g.values[column] = Property{Value: line[i]}
		}
		pools = append(pools, Pool{
			Name: g.text("name"), GUID: g.number("guid"), Health: g.text("health"),
			Size: g.number("size"), Allocated: g.number("allocated"), Free: g.number("free"), Freeing: g.number("freeing"),
			Fragmentation: g.number("fragmentation"), Capacity: g.number("capacity"), ReadOnly: g.text("readonly") == "on",
		})
		return g.err
	})
	return pools, err
}

const poolProperties = "name,guid,health,size,allocated,free,freeing,fragmentation,capacity,readonly"
