package zfs

import agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"

// maxListed is how many holds and how many clones of a snapshot are told.
const maxListed = 1000

// Wire is the pool as it is told to the leader.
func (p Pool) Wire() *agentv1.ZfsPool {
	return &agentv1.ZfsPool{
		Name: p.Name, Guid: p.GUID, Health: p.Health, SizeBytes: p.Size, AllocatedBytes: p.Allocated, FreeBytes: p.Free, ReadOnly: p.ReadOnly,
	}
}

// Wire is the dataset as it is told to the leader, but for its resume token.
func (d Dataset) Wire() *agentv1.ZfsDataset {
	m := &agentv1.ZfsDataset{
		Name: d.Name, Guid: d.GUID, CreateTxg: d.CreateTXG, Type: agentv1.ZfsType_ZFS_TYPE_FILESYSTEM,
		UsedBytes: d.Used, AvailableBytes: d.Available, ReferencedBytes: d.Referenced, WrittenBytes: d.Written,
		Encrypted: d.Encrypted(), KeyLoaded: d.KeyLoaded, Origin: d.Origin, ReadOnly: d.ReadOnly, Mounted: d.Mounted,
		Partial: d.ResumeToken != "", ReplicationJob: d.Properties[PropertyJob],
	}
	if d.Volume {
		m.Type, m.VolumeBytes = agentv1.ZfsType_ZFS_TYPE_VOLUME, d.VolumeSize
		m.BlockBytes, m.ReservedBytes = d.BlockSize, d.RefReservation
	}
	if !d.Creation.IsZero() {
		m.Created = d.Creation.Unix()
	}
	return m
}

// Wire is the snapshot as it is told to the leader, but for its holds.
func (s Snapshot) Wire() *agentv1.ZfsSnapshot {
	m := &agentv1.ZfsSnapshot{
		Dataset: s.Dataset, Name: s.Name, Guid: s.GUID, CreateTxg: s.CreateTXG, UsedBytes: s.Used, ReferencedBytes: s.Referenced,
		Clones:    s.Clones[:min(len(s.Clones), maxListed)],
		Operation: s.Properties[PropertyOperation], Label: s.Properties[PropertyLabel], Set: s.Properties[PropertySet],
	}
	if !s.Creation.IsZero() {
		m.Created = s.Creation.Unix()
	}
	return m
}

// Tags are the tags of holds as they are told to the leader.
func Tags(holds []Hold) []string {
	holds = holds[:min(len(holds), maxListed)]
	tags := make([]string, 0, len(holds))
	for _, h := range holds {
		tags = append(tags, h.Tag)
	}
	return tags
}

// Wire is the bookmark as it is told to the leader.
func (b Bookmark) Wire() *agentv1.ZfsBookmark {
	m := &agentv1.ZfsBookmark{Dataset: b.Dataset, Name: b.Name, Guid: b.GUID, CreateTxg: b.CreateTXG}
	if !b.Creation.IsZero() {
		m.Created = b.Creation.Unix()
	}
	return m
}
