package migration

import (
	"context"
	"errors"
	"net"
	"os"

	"github.com/debvisor/debvisor/agent/internal/diskcopy"
	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/agent/internal/storage"
	"github.com/debvisor/debvisor/agent/internal/zvol"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// markDefined is in the journal before the source hears that the definition of a
// VM that is shut off is here: it lets go of its own then, and of its files.
const markDefined = "defined"

// markMaking is in the journal before the first file is made.
const markMaking = "making-disks"

// makeDisks makes this node ready for the VM's disks: those that both see are
// looked for, files that libvirt copies into and ZFS volumes are made. It may be called again.
func (r *receiver) makeDisks(ctx context.Context) error {
	if len(r.disks) == 0 {
		return nil
	}
	uid, gid, err := r.hypervisor().QEMUOwner(ctx)
	if err != nil {
		return err
	}
	if err := r.foreign(ctx); err != nil {
		return err
	}
	space := room{}
	for _, d := range r.disks {
		if err := answers(ctx, d, func() error { return r.checkDisk(ctx, d, space) }); err != nil {
			return err
		}
	}
	if err := r.run.Mark(ctx, markMaking); err != nil {
		return err
	}
	for _, d := range r.disks {
		if err := r.makeDisk(ctx, d, uid, gid); err != nil {
			return errors.Join(err, r.discardDisks(ctx))
		}
	}
	return nil
}

// makeDisk makes what a disk is copied into, but for files that our own copy
// makes itself.
func (r *receiver) makeDisk(ctx context.Context, d *agentv1.DiskTransfer, uid, gid int) error {
	switch {
	case zvol.Is(d) && (d.GetAction() == copyLive || d.GetAction() == copyOffline):
		return r.volume(d).Make(ctx)
	case d.GetType() == typeFile && d.GetAction() == copyLive:
		return answers(ctx, d, func() error { return placeOf(r.right.GetId(), d).make(ctx, uid, gid) })
	}
	return nil
}

// places are all that the definition's disks may be: the right's, and what those
// on shared storage are overlays of, by what their images say here.
func (r *receiver) places(ctx context.Context) ([]string, error) {
	places := r.disks.paths()
	for _, d := range r.disks.only(shared) {
		if d.GetFormat() != formatQCOW2 || d.GetPath() == "" || d.GetType() == typeNetwork {
			continue
		}
		under := make(chan []string, 1)
		err := answers(ctx, d, func() error {
			under <- storage.Chain(d.GetPath())
			return nil
		})
		if err != nil {
			return nil, err
		}
		places = append(places, <-under...)
	}
	return places, nil
}

// checkDisk tells why a disk cannot be had here.
func (r *receiver) checkDisk(ctx context.Context, d *agentv1.DiskTransfer, space room) error {
	switch {
	case d.GetAction() == shared && (d.GetType() == typeFile || d.GetType() == typeBlock) && d.GetPath() != "":
		return checkShared(d)
	case d.GetAction() == shared && d.GetCephFsid() != "":
		return checkImage(ctx, r.m.cfg.Images, d)
	case d.GetAction() == shared:
		return nil // over the network, or nothing at all
	case zvol.Is(d):
		return r.volume(d).Check(ctx)
	case d.GetType() == typeBlock:
		return checkBlock(d)
	case d.GetType() != typeFile || d.GetPath() == "":
		return diskError(codeDisk, d, "a disk of type %q cannot be copied", d.GetType())
	}
	made := r.run.Marked(markMaking) && (d.GetAction() == copyOffline || placeOf(r.right.GetId(), d).made())
	if err := checkPlace(d, made); err != nil {
		return err
	}
	if made {
		return nil // it had room
	}
	return space.take(d)
}

// foreign makes sure that no other VM of this node has a block device that is to
// be written to.
func (r *receiver) foreign(ctx context.Context) error {
	var devices diskset
	for _, d := range r.disks {
		if d.GetType() == typeBlock && d.GetAction() != shared {
			devices = append(devices, d)
		}
	}
	if len(devices) == 0 {
		return nil
	}
	domains, err := r.hypervisor().Domains(ctx)
	if err != nil {
		return err
	}
	for _, domain := range domains {
		if domain.GetUuid() == r.right.GetVmUuid() {
			continue
		}
		for _, disk := range domain.GetDisks() {
			if disk.GetType() != typeBlock {
				continue
			}
			if d := devices.on(disk.GetSource()); d != nil {
				return diskError(codeDiskInUse, d, "%s is a disk of VM %s on the target (%s)", d.GetPath(), domain.GetName(), disk.GetSource())
			}
		}
	}
	return nil
}

// taking is our own copy of disks at work.
type taking struct {
	stop context.CancelFunc
	done chan struct{}
	err  error // once done
}

func (t *taking) failed() bool {
	if t == nil {
		return false
	}
	select {
	case <-t.done:
		return t.err != nil
	default:
		return false
	}
}

// take has our own copy of disks come in, beside all else.
func (r *receiver) take(ctx context.Context) error {
	disks := r.disks.only(copyOffline)
	if len(disks) == 0 {
		return nil
	}
	listener, err := r.tunnel.ListenCopy(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	r.taking = &taking{stop: cancel, done: make(chan struct{})}
	go func(t *taking) {
		defer func() {
			close(t.done)
			ring(r.bell)
		}()
		// Once it has all, it stays for a source's agent that died before it knew.
		for t.err == nil && ctx.Err() == nil {
			t.err = r.takeAll(ctx, listener, disks.files()) // closes the listener
			if t.err == nil {
				listener, t.err = r.tunnel.ListenCopy(ctx)
			}
		}
	}(r.taking)
	return nil
}

func (r *receiver) takeAll(ctx context.Context, listener net.Listener, files []diskcopy.File) error {
	if err := diskcopy.Receive(ctx, listener, files, diskcopy.Options{ID: r.right.GetId(), Log: r.log}); err != nil {
		return err
	}
	// gofail: var receiveAfterDisksCopied struct{}
	return r.ownDisks(ctx)
}

// stopTaking ends the copy: nothing is written to the disks any more.
func (r *receiver) stopTaking() {
	if r.taking != nil {
		r.taking.stop()
		<-r.taking.done
		r.taking = nil
	}
}

// ownDisks gives QEMU the files that we copied; libvirt does so itself unless its
// dynamic_ownership is off.
func (r *receiver) ownDisks(ctx context.Context) error {
	uid, gid, err := r.hypervisor().QEMUOwner(ctx)
	if err != nil {
		return err
	}
	for _, d := range r.disks.only(copyOffline) {
		if d.GetType() != typeFile {
			continue
		}
		if err := os.Chown(d.GetPath(), uid, gid); err != nil {
			return diskError(codeDisk, d, "%v", err)
		}
	}
	return nil
}

// settleDisks keeps the files that were made for the VM, or removes them where it
// stays on the source. It is false when ctx ended.
func (r *receiver) settleDisks(ctx context.Context, seen hypervisor.Sighting) bool {
	if len(r.disks) == 0 {
		return true
	}
	r.stopTaking()
	r.stopIntake()
	for {
		do, what := r.keepDisks, "keeping the disks"
		fate := filesKeep
		if seen.State == absent {
			fate = fateOfCopies(r.whole(), r.other)
		}
		switch {
		case fate == filesRemove:
			do, what = r.discardDisks, "removing the copies of disks"
		case fate == filesKeep && seen.State == absent:
			r.log.Warn("the copies of disks are kept: they may be all that there is of the VM")
		}
		if fate != filesWait && r.act(what, do(ctx)) {
			// gofail: var receiveAfterFilesRemoved struct{}
			return true
		}
		if !r.await(ctx, nil, lookEvery) {
			return false
		}
	}
}

// whole tells whether the source may have been told that the VM was here: it may
// have removed its files since.
func (r *receiver) whole() bool {
	return !r.tunnel.Arrived().IsZero() || r.tunnel.Noted(noteStandstill) != "" || r.run.Marked(markDefined)
}

// fateOfCopies decides about copies of disks without a VM. whole: its memory may
// all have come, so that it may have been handed over, and somebody removed it
// here: then what the source has counts, and is waited for.
func fateOfCopies(whole bool, source *agentv1.Side) filing {
	switch {
	case source.GetState() == absent:
		return filesKeep // nobody else has it
	case !whole || source.GetEnded():
		return filesRemove
	default:
		return filesWait
	}
}

func (r *receiver) keepDisks(ctx context.Context) error {
	errs := []error{diskcopy.Keep(r.disks.only(copyOffline).files(), r.right.GetId())}
	for _, d := range r.disks.only(copyLive) {
		if d.GetType() == typeFile {
			errs = append(errs, placeOf(r.right.GetId(), d).keep())
		}
	}
	for _, v := range r.volumes() {
		errs = append(errs, v.Keep(ctx))
	}
	return errors.Join(errs...)
}

func (r *receiver) discardDisks(ctx context.Context) error {
	errs := []error{diskcopy.Discard(r.disks.only(copyOffline).files(), r.right.GetId())}
	for _, d := range r.disks.only(copyLive) {
		if d.GetType() == typeFile {
			errs = append(errs, placeOf(r.right.GetId(), d).discard())
		}
	}
	for _, v := range r.volumes() {
		errs = append(errs, v.Discard(ctx))
	}
	return errors.Join(errs...)
}

// volumes are those that the target makes.
func (r *receiver) volumes() []zvol.Volume {
	var out []zvol.Volume
	for _, d := range r.disks {
		if zvol.Is(d) && d.GetAction() != shared {
			out = append(out, r.volume(d))
		}
	}
	return out
}
