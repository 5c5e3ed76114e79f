package failover

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// held are the entries on the blocklist of a cluster that keep lost copies from
// writing: whoever finds one of them at an image has not found anybody new, and
// nobody but its copy may take it away.
func held(s *cluster.Snapshot, fsid string) map[string]bool {
	all := map[string]bool{}
	for _, entry := range s.LostCopies {
		c, evidence := entry.Value, &agentv1.FenceEvidence{}
		off := c.GetState() == gone && c.GetUnfenceNode() != "" // else it is gone for another reason: its entries stay
		if off || c.GetFsid() != fsid || proto.Unmarshal(c.GetEvidence(), evidence) != nil {
			continue
		}
		for _, address := range evidence.GetBlocklisted() {
			all[address] = true
		}
	}
	return all
}

// unseen names the images of a VM that was last seen running at which nobody was
// found who is fenced now, from its node; empty: there are none. Its QEMU had each of them open: if
// it is alive and cut off, Ceph has forgotten it, so that nothing keeps it from
// opening them again once it is not. What a former fence has found does not count:
// it broke off, and may not have fenced whom it found.
func (d *decision) unseen(v *Verdict, evidence *agentv1.FenceEvidence) string {
	if !v.Start || v.off {
		return ""
	}
	var images []string
	for _, disk := range v.Disks {
		if disk.Image != nil && !d.wasSeen(evidence, disk.Image) {
			images = append(images, cluster.RBDPath(disk.Image))
		}
	}
	return strings.Join(images, ", ")
}

// wasSeen tells whether a fence has found somebody at an image who comes from the
// lost node, as far as it has told where its clients come from, and not from a copy
// that is lost already.
func (d *decision) wasSeen(evidence *agentv1.FenceEvidence, image *agentv1.RbdImageID) bool {
	others := held(d.snapshot, d.f.GetFsid())
	source, _ := d.snapshot.CephOf(d.f.GetSource())
	for _, at := range evidence.GetImages() {
		if !proto.Equal(at.GetImage(), image) {
			continue
		}
		for _, client := range slices.Concat(at.GetWatchers(), at.GetLockers()) {
			from := source.GetAddress() == "" || strings.HasPrefix(client.GetAddress(), source.GetAddress()+":")
			if from && !others[client.GetAddress()] && slices.Contains(evidence.GetBlocklisted(), client.GetAddress()) {
				return true
			}
		}
	}
	return false
}
