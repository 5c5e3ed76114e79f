package api

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/failover"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// exclusiveLock is RBD's feature without which nobody can be kept from writing.
const exclusiveLock = "exclusive-lock"

// ask puts a question to a node's agent.
func (s *migrationService) ask(ctx context.Context, node string, q *agentv1.Ask, part func(*agentv1.Answer) error) error {
	if s.asker == nil {
		return errdefs.New(errdefs.Unavailable, "NO_SESSION", "the agent of node %s is not heard", node).With("node", node).WithRetry(time.Second)
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	return s.asker.Ask(ctx, node, q, part)
}

// askImages finds out, on the chosen target or any node that sees the cluster,
// which images the VM's disks are, and whether they can be fenced.
func (s *migrationService) askImages(ctx context.Context, r *failover.Request, v *failover.Verdict) {
	fsid, disks := failover.RBDDisks(v.VM.Value)
	if len(disks) == 0 || fsid == "" {
		return
	}
	r.Images = map[string]failover.Image{}
	refuse := func(code, message string) {
		for disk := range disks {
			r.Images[disk] = failover.Image{Code: code, Message: message}
		}
	}
	nodes, why := s.view.Current().CephNodes(fsid)
	if len(nodes) == 0 {
		refuse(failover.CephUnreachable, why)
		return
	}
	node := nodes[0]
	if slices.Contains(nodes, v.Target) {
		node = v.Target
	}
	q := &agentv1.ListRbd{}
	for _, image := range disks {
		q.Images = append(q.Images, image)
	}
	found := map[string]*agentv1.RbdImage{}
	err := s.ask(ctx, node, &agentv1.Ask{Question: &agentv1.Ask_ListRbd{ListRbd: q}}, func(a *agentv1.Answer) error {
		for _, image := range a.GetRbdListing().GetImages() {
			found[cluster.RBDPath(image.GetImage())] = image
		}
		return nil
	})
	if err != nil {
		code, message := told(err)
		refuse(code, "the images could not be looked at on "+node+": "+message)
		return
	}
	for disk, image := range disks {
		r.Images[disk] = imageFact(image, found[cluster.RBDPath(image)])
	}
}

// imageFact is what was found of one image.
func imageFact(asked *agentv1.RbdImageID, found *agentv1.RbdImage) failover.Image {
	path := cluster.RBDPath(asked)
	switch {
	case found.GetImage().GetId() == "":
		return failover.Image{Code: "IMAGE_NOT_FOUND", Message: "there is no image " + path}
	case !slices.Contains(found.GetFeatures(), exclusiveLock):
		return failover.Image{Code: failover.NoExclusiveLock, Message: "image " + path + " lacks the feature exclusive-lock, so that nothing tells who writes to it (rbd feature enable)"}
	}
	return failover.Image{ID: found.GetImage()}
}

// askReplicas finds out which snapshots the chosen target's replicas go on from:
// the newest, which may be newer than what their jobs know of.
func (s *migrationService) askReplicas(ctx context.Context, r *failover.Request, v *failover.Verdict) {
	for i := range v.Disks {
		d := &v.Disks[i]
		job := d.Job.Value
		if job == nil || job.GetTarget() != v.Target {
			continue
		}
		if r.Replicas == nil {
			r.Replicas = map[string]failover.Replica{}
		}
		var snapshots []*agentv1.ZfsSnapshot
		q := &agentv1.ListZfs{Datasets: []string{d.GetDataset()}, Snapshots: true}
		err := s.ask(ctx, v.Target, &agentv1.Ask{Question: &agentv1.Ask_ListZfs{ListZfs: q}}, func(a *agentv1.Answer) error {
			for _, one := range a.GetZfsListing().GetSnapshots() {
				if one.GetDataset() == d.GetDataset() {
					snapshots = append(snapshots, one)
				}
			}
			if len(snapshots) > maxListed {
				return errdefs.New(errdefs.ResourceExhausted, "TOO_MANY_SNAPSHOTS", "%s has more than %d snapshots", d.GetDataset(), maxListed)
			}
			return nil
		})
		fact := failover.Replica{Node: v.Target, Job: job.GetId()}
		if err != nil {
			code, message := told(err)
			fact.Code, fact.Message = code, "the replica "+d.GetDataset()+" could not be looked at: "+message
		} else {
			newest(&fact, d, snapshots)
		}
		r.Replicas[d.GetTarget()] = fact
	}
}

// newest fills in the snapshot that a replica goes on from. It has the job's cursor,
// and nothing older on top of it.
func newest(fact *failover.Replica, d *failover.Disk, snapshots []*agentv1.ZfsSnapshot) {
	var last *agentv1.ZfsSnapshot
	has := false
	for _, one := range snapshots {
		has = has || one.GetGuid() == d.Job.Value.GetCursorGuid()
		if last == nil || one.GetCreateTxg() > last.GetCreateTxg() {
			last = one
		}
	}
	if !has {
		fact.Code = failover.ReplicaNotThere
		fact.Message = "the replica " + d.GetDataset() + " lacks the snapshot that its job has brought there last (" + d.Job.Value.GetCursorName() + ")"
		return
	}
	fact.Snapshot = &agentv1.ZfsSnapshotID{Dataset: d.GetDataset(), Name: last.GetName(), Guid: last.GetGuid()}
	fact.Created = time.Unix(last.GetCreated(), 0)
}

// told is an error's code and message.
func told(err error) (code, message string) {
	var e *errdefs.Error
	if errors.As(err, &e) {
		return e.Code, e.Message
	}
	return "INTERNAL", err.Error()
}
