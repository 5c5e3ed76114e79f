package migration

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func codeOf(err error) string {
	var e *errdefs.Error
	if errors.As(err, &e) {
		return e.Code
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func fileDisk(path, format string) *agentv1.DiskTransfer {
	return &agentv1.DiskTransfer{Target: "vda", Type: typeFile, Path: path, Format: format, CapacityBytes: 3 << 20, Action: copyLive}
}

// entries are the names in a directory.
func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func TestAPlaceIsMadeAndDiscarded(t *testing.T) {
	for _, format := range []string{"raw", formatQCOW2} {
		dir := t.TempDir()
		p := placeOf("right", fileDisk(filepath.Join(dir, "a.img"), format))
		for range 2 { // again, after whatever ended it
			if err := p.make(t.Context(), os.Getuid(), os.Getgid()); err != nil {
				t.Fatal(err)
			}
		}
		st, err := os.Stat(p.disk.GetPath())
		if err != nil || st.Mode().Perm() != 0o600 || format == "raw" && st.Size() != 3<<20 {
			t.Errorf("%s: %v, %v", format, st, err)
		}
		for range 2 {
			if err := p.discard(); err != nil {
				t.Fatal(err)
			}
			if left := entries(t, dir); len(left) > 0 {
				t.Errorf("%s: left: %v", format, left)
			}
		}
	}
}

// TestAKeptPlaceIsNotDiscarded: what has become the VM's own is never removed.
func TestAKeptPlaceIsNotDiscarded(t *testing.T) {
	dir := t.TempDir()
	p := placeOf("right", fileDisk(filepath.Join(dir, "a.img"), "raw"))
	if err := errors.Join(p.make(t.Context(), os.Getuid(), os.Getgid()), p.keep(), p.keep(), p.discard()); err != nil {
		t.Fatal(err)
	}
	if left := entries(t, dir); len(left) != 1 || left[0] != "a.img" {
		t.Errorf("there is %v", left)
	}
}

// TestAStrangersFileIsLeft: whenever somebody puts a file there, it stays his.
func TestAStrangersFileIsLeft(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.img")
	p := placeOf("right", fileDisk(path, "raw"))
	stranger := func() {
		t.Helper()
		if err := os.WriteFile(path, []byte("his"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	still := func(when string) {
		t.Helper()
		if got, err := os.ReadFile(path); err != nil || string(got) != "his" {
			t.Errorf("%s: %q, %v", when, got, err)
		}
		if left := entries(t, dir); len(left) != 1 {
			t.Errorf("%s: there is %v", when, left)
		}
	}
	stranger()
	if err := p.make(t.Context(), os.Getuid(), os.Getgid()); codeOf(err) != codeDiskExists {
		t.Errorf("made over it: %v", err)
	}
	still("before")
	// The agent died between making its own and naming it, and somebody came.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := p.create(t.Context()); err != nil {
		t.Fatal(err)
	}
	stranger()
	if err := p.discard(); err != nil {
		t.Fatal(err)
	}
	still("between")
	// He puts his in the place of ours.
	if err := errors.Join(os.Remove(path), p.make(t.Context(), os.Getuid(), os.Getgid()), os.Remove(path)); err != nil {
		t.Fatal(err)
	}
	stranger()
	if err := p.discard(); err != nil {
		t.Fatal(err)
	}
	still("after")
}

func TestWhyADiskCannotBeHad(t *testing.T) {
	dir := t.TempDir()
	there := filepath.Join(dir, "there")
	if err := os.WriteFile(there, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		got  error
		want string
	}{
		"free":                   {checkPlace(fileDisk(filepath.Join(dir, "new"), "raw"), false), ""},
		"taken":                  {checkPlace(fileDisk(there, "raw"), false), codeDiskExists},
		"taken by us":            {checkPlace(fileDisk(there, "raw"), true), ""},
		"no directory":           {checkPlace(fileDisk(filepath.Join(dir, "none", "new"), "raw"), false), codeDiskDirectory},
		"a file for a directory": {checkPlace(fileDisk(filepath.Join(there, "new"), "raw"), false), codeDiskDirectory},
		"room":                   {room{}.take(fileDisk(filepath.Join(dir, "new"), "raw")), ""},
		"no room": {room{}.take(&agentv1.DiskTransfer{
			Target: "vda", Type: typeFile, Path: filepath.Join(dir, "new"), CapacityBytes: 1 << 60,
		}), codeDiskSpace},
		"shared":               {checkShared(&agentv1.DiskTransfer{Target: "vda", Type: typeFile, Path: there}), ""},
		"shared, missing":      {checkShared(&agentv1.DiskTransfer{Target: "vda", Type: typeFile, Path: there + "2"}), codeDiskMissing},
		"shared, another":      {checkShared(&agentv1.DiskTransfer{Target: "vda", Type: typeFile, Path: there, Inode: 1}), codeDiskOther},
		"shared, no device":    {checkShared(&agentv1.DiskTransfer{Target: "vda", Type: typeBlock, Path: there}), codeDiskOther},
		"no such block device": {checkBlock(&agentv1.DiskTransfer{Target: "vda", Type: typeBlock, Path: there + "2"}), codeDiskMissing},
		"no block device":      {checkBlock(&agentv1.DiskTransfer{Target: "vda", Type: typeBlock, Path: there}), codeDiskMissing},
	} {
		if got := codeOf(c.got); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestRoomIsForAll: two disks have to fit together.
func TestRoomIsForAll(t *testing.T) {
	dir, r := t.TempDir(), room{}
	d := fileDisk(filepath.Join(dir, "new"), "raw")
	d.CapacityBytes = 1 << 62
	for k := range r {
		t.Fatal(k)
	}
	_ = r.take(fileDisk(filepath.Join(dir, "first"), "raw"))
	for dev, taken := range r {
		if taken != 3<<20 {
			t.Errorf("%d bytes are taken on %d", taken, dev)
		}
	}
	if err := r.take(d); codeOf(err) != codeDiskSpace {
		t.Errorf("there was room: %v", err)
	}
}

// TestFiling: the source's files go only when the VM was seen on the target as it
// is to be.
func TestFiling(t *testing.T) {
	for name, c := range map[string]struct {
		target          *agentv1.Side
		resume, offline bool
		want            filing
	}{
		"runs":                     {ended(running), true, false, filesRemove},
		"stands, is to run":        {ended(paused), true, false, filesWait},
		"stands, as it did before": {ended(paused), false, false, filesRemove},
		"stands, and gave up":      {&agentv1.Side{State: paused, Ended: true, Reason: "no"}, true, false, filesKeep},
		"not whole":                {&agentv1.Side{State: incoming}, true, false, filesWait},
		"nothing is heard":         {&agentv1.Side{}, true, false, filesWait},
		"stopped there":            {ended(shutoff), true, false, filesKeep},
		"nowhere":                  {ended(absent), true, false, filesKeep},
		"perhaps nowhere":          {&agentv1.Side{State: absent}, true, false, filesWait},
		"defined there":            {ended(shutoff), true, true, filesRemove},
		"defined there, stays off": {ended(shutoff), false, true, filesRemove},
	} {
		if got := filingFor(c.target, c.resume, c.offline); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

// TestFateOfCopies: the target's files go only where the source has the VM.
func TestFateOfCopies(t *testing.T) {
	for name, c := range map[string]struct {
		whole  bool
		source *agentv1.Side
		want   filing
	}{
		"nothing had come":                 {false, &agentv1.Side{}, filesRemove},
		"broken off":                       {false, &agentv1.Side{State: outgoing}, filesRemove},
		"all had come, nothing is heard":   {true, &agentv1.Side{}, filesWait},
		"all had come, the source is busy": {true, &agentv1.Side{State: outgoing}, filesWait},
		"the source goes on":               {true, ended(running), filesRemove},
		"the source has stopped":           {true, ended(shutoff), filesRemove},
		"nobody has it":                    {true, ended(absent), filesKeep},
		"nobody has it, nothing had come":  {false, ended(absent), filesKeep},
	} {
		if got := fateOfCopies(c.whole, c.source); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
