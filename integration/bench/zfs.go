package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// pools are two machines with a ZFS pool each, and the way to ask for what is done
// there: of a replica that does not lead.
type pools struct {
	b        *bench
	from, to *lab.Node
	storage  debvisorv1.StorageServiceClient
	jobs     debvisorv1.OperationServiceClient
}

// zfs measures snapshots and replication beside what ZFS itself and others do
// between the same two machines.
func (b *bench) zfs(ctx context.Context) error {
	_, _, conn, err := b.follower(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	p := &pools{
		b: b, from: b.lab.Machines[0], to: b.lab.Machines[1],
		storage: debvisorv1.NewStorageServiceClient(conn), jobs: debvisorv1.NewOperationServiceClient(conn),
	}
	for _, m := range []struct {
		name    string
		measure func(context.Context) error
	}{
		{"replication", p.replications}, {"snapshots", p.snapshots}, {"the plan", p.plan}, {"memory", p.memory}, {"retention", b.retention},
	} {
		begun := time.Now()
		if err := m.measure(ctx); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		b.say("%s: measured in %.0f s", m.name, time.Since(begun).Seconds())
	}
	return nil
}

// retention measures the decision on 100,000 snapshots, by the package's own
// benchmark.
func (b *bench) retention(ctx context.Context) error {
	seconds, err := goBenchmark(ctx, "./controlplane/internal/retention", "BenchmarkDecide100k", "s/decision")
	if err != nil {
		return err
	}
	b.add(Figure{
		Name: "retention_100k_s", Value: seconds, Goal: 2, Better: "lower", Unit: "s",
		Detail: "what a policy with rules of every sort keeps and removes of 100,000 snapshots of one dataset: the decision alone, from the listing in memory",
	})
	return nil
}

// path is a dataset's of the machines' pools, as ZFS has it.
func path(name string) string { return lab.PoolName + "/" + name }

// ref is a dataset's of a machine.
func (p *pools) ref(n *lab.Node, name string) *debvisorv1.DatasetRef {
	return &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_ZFS, Pool: lab.PoolName, Name: name, Node: nodeRef(n)}
}

// script runs lines of bash on a machine, which fail together, and gives what they
// print.
func script(ctx context.Context, n *lab.Node, lines string, args ...string) (string, error) {
	out, err := n.Run(ctx, append([]string{"bash", "-c", "set -euo pipefail; " + lines, "bench"}, args...)...)
	return strings.TrimSpace(out), err
}

// create makes datasets on a machine, past our daemons, and waits until the cluster
// knows them.
func (p *pools) create(ctx context.Context, n *lab.Node, options string, names ...string) error {
	var paths []string
	for _, name := range names {
		paths = append(paths, path(name))
	}
	if _, err := script(ctx, n, `for d; do zfs create `+options+` "$d"; done`, paths...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return lab.Eventually(ctx, "the cluster knows the datasets", func() error {
		list, err := p.storage.ListStorage(ctx, &debvisorv1.StorageFilter{Node: nodeRef(n)})
		if err != nil {
			return err
		}
		for _, name := range names {
			if !slices.ContainsFunc(list.GetDatasets(), func(d *debvisorv1.Dataset) bool { return d.GetRef().GetName() == name }) {
				return fmt.Errorf("it does not know %s", name)
			}
		}
		return nil
	})
}

// fill fills a file of a dataset with random bytes, anew.
func fill(ctx context.Context, n *lab.Node, name string, mib int) error {
	_, err := script(ctx, n, `dd status=none if=/dev/urandom of="/$1/data" bs=1M count="$2"; sync`, path(name), fmt.Sprint(mib))
	return err
}
