package failover

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// Disk is one disk of the VM, as it will be used.
type Disk struct {
	*agentv1.FailoverDisk
	// SourceDataset is the lost node's, of a disk on ZFS; Job keeps its replica.
	SourceDataset string
	Job           cluster.Entry[*storev1.ReplicationJob]
	// Age is how old the replica is; 0 on RBD.
	Age    time.Duration
	writes bool
}

// volumeDir is where ZFS's volumes have the names that all hosts give them.
const volumeDir = "/dev/zvol/"

// kind is what sort of storage a disk is on.
type kind int

const (
	empty kind = iota
	shared
	onRBD
	onZFS
	unprotected
)

func kindOf(d *debvisorv1.VMDisk) kind {
	switch {
	case d.GetSource() == "":
		return empty
	case cluster.RBDOfDisk(d) != "":
		return onRBD
	case d.GetReadOnly() && d.GetShared() && d.GetType() != "network":
		return shared
	case d.GetType() == "block" && d.GetZfsDataset() != "" && !d.GetShared() && d.GetSource() == volumeDir+d.GetZfsDataset():
		return onZFS
	}
	return unprotected
}

// fsidOf is the cluster that a disk's image is in; "": it is not known.
func fsidOf(d *debvisorv1.VMDisk) string {
	fsid, _ := cluster.RBDClusterOfDisk(d)
	return fsid
}

// imageOf names the image that a disk is, by which it is looked for.
func imageOf(d *debvisorv1.VMDisk) *agentv1.RbdImageID {
	pool, name, _ := strings.Cut(cluster.RBDOfDisk(d), "/")
	image, err := cluster.RBDImage("disk", pool, name)
	if err != nil {
		return nil
	}
	return image
}

// RBDDisks gives the images that are a VM's disks and that its guest may write to,
// by the guest's names of them, and the cluster that they are in.
func RBDDisks(vm *storev1.VM) (fsid string, images map[string]*agentv1.RbdImageID) {
	domain := &agentv1.Domain{}
	if proto.Unmarshal(vm.GetDomain(), domain) != nil {
		return "", nil
	}
	images = map[string]*agentv1.RbdImageID{}
	for _, d := range domain.GetDisks() {
		if image := imageOf(d); kindOf(d) == onRBD && !d.GetReadOnly() && image != nil {
			fsid, images[d.GetTarget()] = fsidOf(d), image
		}
	}
	return fsid, images
}

// readDisks tells what keeps disks from being brought back wherever to.
func (v *Verdict) readDisks(s *cluster.Snapshot, r Request) {
	for _, d := range v.domain.GetDisks() {
		switch kindOf(d) {
		case onRBD:
			v.readImage(s, r, d)
		case onZFS:
			if len(v.jobsOf(s, d)) == 0 {
				v.no(NotProtected, "disk %s of VM %s is %s on %s only: no replication job has a copy of it elsewhere", d.GetTarget(), v.Name, d.GetZfsDataset(), v.Source)
			}
		case unprotected:
			v.no(NotProtected, "disk %s of VM %s (%s) is neither an image of RBD nor a ZFS volume that is replicated: no other node has it, or nothing proves that %s writes to it no more",
				d.GetTarget(), v.Name, d.GetSource(), v.Source)
		case empty, shared:
		}
	}
}

func (v *Verdict) readImage(s *cluster.Snapshot, r Request, d *debvisorv1.VMDisk) {
	path, fsid := cluster.RBDOfDisk(d), fsidOf(d)
	switch {
	case fsid == "" || imageOf(d) == nil:
		v.no(NotProtected, "disk %s of VM %s is image %s of a Ceph cluster that is not known: nobody can be asked to fence it", d.GetTarget(), v.Name, path)
		return
	case v.FSID != "" && fsid != v.FSID:
		v.no(NotProtected, "disk %s of VM %s is in another Ceph cluster (%s) than the others", d.GetTarget(), v.Name, fsid)
		return
	}
	v.FSID = fsid
	if d.GetReadOnly() {
		return
	}
	if d.GetShareable() {
		v.no(ImageShared, "disk %s of VM %s (%s) may be written by several VMs at once: whoever has it open would be fenced", d.GetTarget(), v.Name, path)
	} else if other := v.userOf(s, r, path, fsid); other != "" {
		v.no(ImageShared, "disk %s of VM %s (%s) is a disk of %s too, which would be fenced with it", d.GetTarget(), v.Name, path, other)
	}
	if fact, ok := r.Images[d.GetTarget()]; ok && fact.Code != "" {
		v.no(fact.Code, "disk %s of VM %s: %s", d.GetTarget(), v.Name, fact.Message)
	}
}

// userOf names another VM with that image; "": none has it.
func (v *Verdict) userOf(s *cluster.Snapshot, r Request, path, fsid string) string {
	for uuid, vm := range s.VMs {
		if uuid == v.VM.Value.GetUuid() || !bytes.Contains(vm.Value.GetDomain(), []byte(path)) {
			continue
		}
		domain := &agentv1.Domain{}
		if proto.Unmarshal(vm.Value.GetDomain(), domain) != nil {
			continue
		}
		for _, d := range domain.GetDisks() {
			if cluster.RBDOfDisk(d) != path || fsidOf(d) != fsid {
				continue
			}
			if r.Tenant != "" && cluster.TenantOf(vm.Value) != r.Tenant {
				return "another VM"
			}
			return "VM " + vm.Value.GetName() + " (UUID " + uuid + ")"
		}
	}
	return ""
}

// jobsOf are the replication jobs, by their ids, that copy a disk from the lost
// node and are not on their way out.
func (v *Verdict) jobsOf(s *cluster.Snapshot, d *debvisorv1.VMDisk) []cluster.Entry[*storev1.ReplicationJob] {
	var jobs []cluster.Entry[*storev1.ReplicationJob]
	for _, id := range slices.Sorted(maps.Keys(s.Replications)) {
		job := s.Replications[id]
		if job.Value.GetSource() == v.Source && job.Value.GetDataset() == d.GetZfsDataset() && !job.Value.GetDeleting() {
			jobs = append(jobs, job)
		}
	}
	return jobs
}

// jobTo is the job whose copy of a disk a node has; false: none.
func (v *Verdict) jobTo(s *cluster.Snapshot, node string, d *debvisorv1.VMDisk) (cluster.Entry[*storev1.ReplicationJob], bool) {
	for _, job := range v.jobsOf(s, d) {
		if job.Value.GetTarget() == node {
			return job, true
		}
	}
	return cluster.Entry[*storev1.ReplicationJob]{}, false
}

// fits tells what keeps a disk from being used on a node; an empty code: nothing.
func (v *Verdict) fits(s *cluster.Snapshot, r Request, node string, d *debvisorv1.VMDisk) (code, message string) {
	switch kindOf(d) {
	case onRBD:
		return v.reaches(s, node, d)
	case onZFS:
		return v.replica(s, r, node, d)
	case empty, shared, unprotected:
	}
	return "", ""
}

// reaches tells whether a node sees the cluster that an image is in.
func (v *Verdict) reaches(s *cluster.Snapshot, node string, d *debvisorv1.VMDisk) (code, message string) {
	about := fmt.Sprintf("disk %s of VM %s is image %s of Ceph cluster %s", d.GetTarget(), v.Name, cluster.RBDOfDisk(d), fsidOf(d))
	inventory, ok := s.CephOf(node)
	pool := imageOf(d).GetPool()
	switch {
	case !ok:
		return CephUnreachable, about + ", and the node has no Ceph, as far as it has reported"
	case inventory.GetFsid() != fsidOf(d):
		return CephUnreachable, about + ", and the node sees another (" + inventory.GetFsid() + ")"
	case inventory.GetError() != "":
		return CephUnreachable, about + ", which does not answer the node: " + inventory.GetError()
	case !slices.ContainsFunc(inventory.GetPools(), func(p *agentv1.CephPool) bool { return p.GetName() == pool }):
		return CephUnreachable, about + ", in which the node sees no pool " + pool
	}
	return "", ""
}

// replica tells whether a node has a copy of a disk that can take its place.
func (v *Verdict) replica(s *cluster.Snapshot, r Request, node string, d *debvisorv1.VMDisk) (code, message string) {
	job, ok := v.jobTo(s, node, d)
	if !ok {
		return ReplicaNotThere, fmt.Sprintf("no replication job copies disk %s of VM %s (%s) to the node", d.GetTarget(), v.Name, d.GetZfsDataset())
	}
	about := fmt.Sprintf("the replica %s of disk %s of VM %s (job %s)", job.Value.GetTargetDataset(), d.GetTarget(), v.Name, job.Value.GetId())
	if job.Value.GetCursorGuid() == 0 || job.Value.GetCursorCreated() == nil {
		return ReplicaNotThere, about + " is not known to be complete: no run of the job has succeeded"
	}
	if fact, ok := r.Replicas[d.GetTarget()]; ok && fact.Node == node && fact.Job == job.Value.GetId() && fact.Code != "" {
		return fact.Code, fact.Message
	}
	if op := receiving(s, job.Value); op != "" {
		return ReplicationRunning, about + " is being written by operation " + op + ": cancel that first (hvctl operation cancel " + op + ")"
	}
	inventory := &agentv1.ZfsInventory{}
	if proto.Unmarshal(s.ZFS[node].Value.GetInventory(), inventory) != nil || inventory.GetError() != "" {
		return ReplicaNotThere, about + " cannot be used: ZFS there does not answer: " + inventory.GetError()
	}
	for _, there := range inventory.GetDatasets() {
		switch {
		case there.GetName() != job.Value.GetTargetDataset():
		case there.GetReplicationJob() != job.Value.GetId():
			return ReplicaNotThere, about + " is none: the dataset is not marked as the job's copy"
		case there.GetEncrypted() && !there.GetKeyLoaded():
			return ReplicaNotThere, about + " is encrypted, and its key is not loaded there (zfs load-key)"
		default:
			return "", ""
		}
	}
	if inventory.GetTruncated() {
		return "", "" // the agent looks
	}
	return ReplicaNotThere, about + " is not there, as far as the node has reported"
}

// receiving is the operation of which a job's target is still at work; "": none.
func receiving(s *cluster.Snapshot, job *storev1.ReplicationJob) string {
	id := s.InUse[cluster.ReplicationResource(job.GetId())].Value
	if id == "" {
		id = s.InUse[cluster.CopyResource(job.GetTarget(), job.GetTargetDataset())].Value
	}
	for _, t := range s.TasksOf(id) {
		if id != "" && t.Value.GetNode() == job.GetTarget() && !task.Ended(task.State(t.Value.GetState())) {
			return id
		}
	}
	return ""
}

// choose says what becomes of each disk on a node.
func (v *Verdict) choose(s *cluster.Snapshot, r Request, node string) {
	v.Disks = nil
	for _, d := range v.domain.GetDisks() {
		one := Disk{FailoverDisk: &agentv1.FailoverDisk{Target: d.GetTarget()}, writes: !d.GetReadOnly()}
		switch kindOf(d) {
		case onRBD:
			if d.GetReadOnly() || imageOf(d) == nil {
				continue
			}
			one.Image = imageOf(d)
			if fact, ok := r.Images[d.GetTarget()]; ok && fact.ID != nil {
				one.Image = fact.ID
			}
		case onZFS:
			job, ok := v.jobTo(s, node, d)
			if !ok {
				continue
			}
			one.fill(job, d, r)
		case empty, shared, unprotected:
			continue
		}
		v.Disks = append(v.Disks, one)
	}
}

// fill says of a disk on ZFS what takes its place.
func (o *Disk) fill(job cluster.Entry[*storev1.ReplicationJob], d *debvisorv1.VMDisk, r Request) {
	j := job.Value
	o.Job, o.SourceDataset = job, d.GetZfsDataset()
	o.Dataset, o.JobId, o.ReverseJobId = j.GetTargetDataset(), j.GetId(), backID(j)
	o.SourcePath, o.Path, o.ReverseJobId = d.GetSource(), volumeDir+j.GetTargetDataset(), backID(j)
	o.Snapshot = &agentv1.ZfsSnapshotID{Dataset: j.GetTargetDataset(), Name: j.GetCursorName(), Guid: j.GetCursorGuid()}
	created := j.GetCursorCreated().AsTime()
	if fact, ok := r.Replicas[d.GetTarget()]; ok && fact.Node == j.GetTarget() && fact.Job == j.GetId() && fact.Snapshot != nil {
		o.Snapshot, created = fact.Snapshot, fact.Created
	}
	if j.GetCursorCreated() != nil || !created.IsZero() {
		o.Age = max(0, r.Now.Sub(created))
	}
}
