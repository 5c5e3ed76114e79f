package zfs

import (
	"context"
	"slices"
	"strings"
	"time"
)

// Dataset is a file system or a volume; sizes are bytes.
type Dataset struct {
	Name string
	// Volume tells a volume from a file system.
	Volume                          bool
	GUID, CreateTXG                 uint64
	Creation                        time.Time
	Used, Available, Referenced     uint64
	LogicalUsed, Written            uint64
	UsedBySnapshots, UsedByDataset  uint64
	Quota, RefQuota, RefReservation uint64
	VolumeSize, BlockSize           uint64
	Compression, Mountpoint, Origin string
	Mounted, ReadOnly               bool
	Encryption, EncryptionRoot      string
	// KeyLoaded tells whether an encrypted dataset's key is there.
	KeyLoaded bool
	// ResumeToken is what a receive that was cut off can be resumed with; empty: none was.
	ResumeToken string
	// Properties are the org.debvisor ones set on this dataset itself.
	Properties map[string]string
}

// Encrypted tells whether the dataset's content is encrypted by ZFS.
func (d Dataset) Encrypted() bool { return d.Encryption != "" && d.Encryption != "off" }

const (
	datasetTypes      = "filesystem,volume"
	datasetProperties = "type,guid,createtxg,creation,used,available,referenced,logicalused,written,usedbysnapshots,usedbydataset," +
		"quota,refquota,refreservation,volsize,volblocksize,recordsize,compression,mountpoint,origin,mounted,readonly," +
		"encryption,encryptionroot,keystatus,receive_resume_token," + ownProperties
)

// Datasets lists the file systems and volumes at and below the roots, by name; none
// given: all. A root that is not there is DATASET_NOT_FOUND.
func (z *ZFS) Datasets(ctx context.Context, roots ...string) ([]Dataset, error) {
	var all []Dataset
	err := z.groups(ctx, datasetTypes, datasetProperties, roots, true, func(g *group) error {
		all = append(all, g.dataset())
		return g.err
	})
	return all, err
}

// Named gives those of the datasets that exist, by name: one command, which opens
// nothing else. DATASET_NOT_FOUND: more are missing than it can tell apart, hundreds.
func (z *ZFS) Named(ctx context.Context, names ...string) ([]Dataset, error) {
	if err := checkDatasets("names", names); err != nil || len(names) == 0 {
		return nil, err
	}
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	var found []Dataset
	c := command{program: "zfs", args: append([]string{"--", datasetProperties}, names...), about: names[0], bearable: absent(names)}
	err := z.grouped(ctx, c, datasetProperties, func(g *group) error {
		found = append(found, g.dataset())
		return g.err
	})
	return found, err
}

// absent tells that a command complained of nothing but that some of these datasets
// are not there.
func absent(names []string) func(string) bool {
	return func(complaints string) bool {
		for line := range strings.Lines(complaints) {
			name, ok := strings.CutPrefix(line, "cannot open '")
			name, said := strings.CutSuffix(name, "': dataset does not exist\n")
			if !ok || !said || !slices.Contains(names, name) {
				return false
			}
		}
		return complaints != ""
	}
}

func (g *group) dataset() Dataset {
	return Dataset{
		Name: g.name, Volume: g.text("type") == "volume",
		GUID: g.number("guid"), CreateTXG: g.number("createtxg"), Creation: g.time("creation"),
		Used: g.number("used"), Available: g.number("available"), Referenced: g.number("referenced"),
		LogicalUsed: g.number("logicalused"), Written: g.number("written"),
		UsedBySnapshots: g.number("usedbysnapshots"), UsedByDataset: g.number("usedbydataset"),
		Quota: g.number("quota"), RefQuota: g.number("refquota"), RefReservation: g.number("refreservation"),
		VolumeSize: g.number("volsize"), BlockSize: max(g.number("volblocksize"), g.number("recordsize")),
		Compression: g.text("compression"), Mountpoint: g.text("mountpoint"), Origin: g.text("origin"),
		Mounted: g.text("mounted") == "yes", ReadOnly: g.text("readonly") == "on",
		Encryption: g.text("encryption"), EncryptionRoot: g.text("encryptionroot"), KeyLoaded: g.text("keystatus") == "available",
		ResumeToken: g.text("receive_resume_token"),
		Properties:  g.own(),
	}
}
