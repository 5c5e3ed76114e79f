package integration

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// TestStoragePolicies: what is due is done without anybody asking, an RPO that is missed is told of until it is kept again, and the disks
// of a VM are taken as one moment meanwhile.
func TestStoragePolicies(t *testing.T) {
	c := pooled.use(t)
	from, to := c.Machines[0], c.Machines[1]
	kept, copied := c.dataset(from, "kept-by-policy"), c.dataset(from, "copied-by-policy")
	c.write(from, lab.PoolName+"/copied-by-policy", 1)
	ask := c.api(c.running()).storage
	for range 2 {
		_, err := ask.CreateSnapshot(c.within(time.Minute), &debvisorv1.SnapshotRequest{Dataset: kept, Label: "by hand"})
		c.must(err)
	}
	_, err := ask.SetRetentionPolicy(c.within(time.Minute), &debvisorv1.RetentionPolicySpec{
		Name: "keeps-one", Rules: &debvisorv1.RetentionPolicy{KeepLast: 1}, Datasets: []*debvisorv1.DatasetRef{kept}, Schedule: "every 1m", SnapshotLabel: "auto",
	})
	c.must(err)
	policy := &debvisorv1.ReplicationPolicySpec{
		Name: "copies", Datasets: []*debvisorv1.DatasetRef{copied}, Targets: []*debvisorv1.ReplicationTarget{{Node: nodeNamed(to)}},
		Schedule: "every 1m", Options: &debvisorv1.ReplicationOptions{RpoSeconds: 15}, Paused: true,
	}
	made, err := ask.SetReplicationPolicy(c.within(time.Minute), policy)
	c.must(err)
	if len(made.GetJobs()) != 1 {
		t.Fatalf("the policy has the jobs %v", made.GetJobs())
	}
	job := made.GetJobs()[0].GetJobId()
	defer c.withoutPolicies("keeps-one", "copies")

	t.Run("the disks of a VM are one moment", func(t *testing.T) { c.inPart(t).setOfVM() })
	t.Run("an RPO that is missed is told of", func(t *testing.T) {
		c := c.inPart(t)
		c.eventually(time.Minute, "it is missed", func() error { return c.rpoMissed(job, true) })
		c.eventually(20*time.Second, "the audit log says so", func() error { return c.auditedRPO(job, "RPO_MISSED") })
	})
	policy.Paused = false
	_, err = ask.SetReplicationPolicy(c.within(time.Minute), policy)
	c.must(err)
	t.Run("a copy is made when it is due, and the RPO kept again", func(t *testing.T) {
		c := c.inPart(t)
		path := lab.PoolName + "/copied-by-policy"
		c.eventually(2*time.Minute, "it is copied", func() error {
			have := c.snapshots(from, path)
			if _, err := to.Run(c.within(time.Minute), "zfs", "list", path); err != nil {
				return err
			}
			if copies := c.snapshots(to, path); len(copies) == 0 || !slices.Contains(have, copies[len(copies)-1]) {
				return fmt.Errorf("there are %v, and copies %v", have, copies)
			}
			return nil
		})
		c.eventually(20*time.Second, "the audit log says that it is kept", func() error { return c.auditedRPO(job, "RPO_KEPT") })
	})
	t.Run("snapshots are taken and pruned when they are due", func(t *testing.T) {
		c := c.inPart(t)
		path := lab.PoolName + "/kept-by-policy"
		c.eventually(2*time.Minute, "one is left, which the policy took", func() error {
			labels := lines(c.zfs(from, "list", "-Hp", "-t", "snapshot", "-d", "1", "-o", "org.debvisor:label", path))
			if !slices.Equal(labels, []string{"auto"}) {
				return fmt.Errorf("there are those labelled %q", labels)
			}
			return nil
		})
	})
}

// withoutPolicies deletes policies: the lab is others' as well.
func (c *cluster) withoutPolicies(retention, replication string) {
	c.t.Helper()
	ask := c.api(c.running()).storage
	_, err := ask.DeleteRetentionPolicy(c.within(time.Minute), &debvisorv1.StoragePolicyRef{Name: retention})
	_, other := ask.DeleteReplicationPolicy(c.within(time.Minute), &debvisorv1.StoragePolicyRef{Name: replication})
	c.must(errors.Join(err, other))
}

// rpoMissed says what is wrong unless a job's RPO is, or is not, missed.
func (c *cluster) rpoMissed(job string, want bool) error {
	st, err := c.api(c.running()).storage.GetReplicationStatus(c.within(10*time.Second), &debvisorv1.JobRef{JobId: job})
	if err == nil && (st.GetRpoMissedSince() != nil) != want {
		err = fmt.Errorf("missed since %v: %v", st.GetRpoMissedSince(), st)
	}
	return err
}

// auditedRPO says what is wrong unless some replica's audit log tells of a job's RPO.
func (c *cluster) auditedRPO(job, code string) error {
	for _, r := range c.Replicas {
		raw, err := os.ReadFile(r.Audit())
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(raw)) {
			if strings.Contains(line, `"system:replication"`) && strings.Contains(line, code) && strings.Contains(line, job) {
				return nil
			}
		}
	}
	return fmt.Errorf("no line of system:replication tells of %s of %s", code, job)
}

// setOfVM has the snapshots of a VM's two volumes taken, which ZFS did in one transaction.
func (c *cluster) setOfVM() {
	c.t.Helper()
	g := c.guestLike(lab.GuestSpec{Name: "two-volumes", Disks: []lab.DiskSpec{{Kind: lab.DiskZvol}, {Kind: lab.DiskZvol}}})
	set, err := c.api(c.running()).storage.CreateSnapshotSet(c.within(time.Minute), &debvisorv1.SnapshotSetRequest{Vm: vmRef(g.UUID), Label: "one moment"})
	c.must(err)
	if len(set.GetSnapshots()) != 2 {
		c.t.Fatalf("of two disks these were taken: %v", set)
	}
	var names []string
	for _, s := range set.GetSnapshots() {
		names = append(names, s.GetDataset().GetPool()+"/"+s.GetDataset().GetName()+"@"+s.GetSnapshotName())
	}
	for _, property := range []string{"createtxg", "org.debvisor:set", "org.debvisor:label"} {
		got := lines(c.zfs(g.from, append([]string{"get", "-Hp", "-o", "value", property}, names...)...))
		if len(got) != 2 || got[0] != got[1] || got[0] == "-" {
			c.t.Errorf("%s of %v: %v", property, names, got)
		}
	}
}
