package zfs

import (
	"context"
	"maps"
	"slices"
	"strings"
)

// The names of the user properties that DebVisor puts on its snapshots and
// copies.
const (
	// PropertyOperation is the id of the operation that took the snapshot.
	PropertyOperation = "org.debvisor:operation"
	// PropertyLabel is what the caller named it.
	PropertyLabel = "org.debvisor:label"
	// PropertySet is the id of the atomic set that it belongs to.
	PropertySet = "org.debvisor:set"
	// PropertyJob is the replication job that it was taken for, or whose copy a dataset is.
	PropertyJob = "org.debvisor:job"
	// PropertySuccessor is on a volume that was a job's copy and has taken its source's
	// place, with the VM and the placement that it did so for.
	PropertySuccessor = "org.debvisor:failover"
)

const (
	ownPrefix = "org.debvisor:"
	// ownProperties are what listings ask for.
	ownProperties = PropertyOperation + "," + PropertyLabel + "," + PropertySet + "," + PropertyJob
)

// Property is a property's value and where it comes from.
type Property struct {
	Value string
	// Source is local, default, received, temporary, "inherited from DATASET", or - for
	// what nobody sets.
	Source string
}

// Get gives properties of a dataset, snapshot or bookmark as machines read them
// (zfs get -p). A user property that is not set has the value and the source "-".
func (z *ZFS) Get(ctx context.Context, name string, properties ...string) (map[string]Property, error) {
	if _, err := ParseName(name); err != nil {
		return nil, err
	}
	if len(properties) == 0 {
		return map[string]Property{}, nil
	}
	for _, p := range properties {
		if err := checkProperty(p); err != nil {
			return nil, err
		}
	}
	found := map[string]Property{}
	c := command{program: "zfs", args: []string{"get", "-Hpo", "property,value,source", "--", strings.Join(properties, ","), name}, about: name}
	err := z.fields(ctx, c, 3, func(f []string) error {
		found[f[0]] = Property{Value: f[1], Source: f[2]}
		return nil
	})
	return found, err
}

// Set sets properties of a dataset or snapshot, all or none of them.
func (z *ZFS) Set(ctx context.Context, name string, properties map[string]string) error {
	if _, err := ParseName(name); err != nil {
		return err
	}
	if len(properties) == 0 {
		return nil
	}
	assigned, err := assignments("", properties)
	if err != nil {
		return err
	}
	return z.do(ctx, command{program: "zfs", args: append(append([]string{"set", "--"}, assigned...), name), about: name})
}

// Inherit takes properties of a dataset or snapshot away, so that they are what
// those above it say. It is idempotent.
func (z *ZFS) Inherit(ctx context.Context, name string, properties ...string) error {
	if _, err := ParseName(name); err != nil {
		return err
	}
	for _, p := range properties {
		if err := checkProperty(p); err != nil {
			return err
		}
		if err := z.do(ctx, command{program: "zfs", args: []string{"inherit", "--", p, name}, about: name}); err != nil {
			return err
		}
	}
	return nil
}

// assignments gives property=value for each, in order of their names, each after
// the option where there is one.
func assignments(option string, properties map[string]string) ([]string, error) {
	var args []string
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		if err := checkProperty(name); err != nil {
			return nil, err
		}
		if err := checkValue(name, properties[name]); err != nil {
			return nil, err
		}
		if option != "" {
			args = append(args, option)
		}
		args = append(args, name+"="+properties[name])
	}
	return args, nil
}
