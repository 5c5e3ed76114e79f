package migration

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/agent/internal/diskcopy"
	"github.com/debvisor/debvisor/agent/internal/zvol"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

const (
	// askAgainToShutDown is after how long a guest is asked once more: some take
	// no notice of their power button while they start.
	askAgainToShutDown = 10 * time.Second
	// defaultShutdown is how long it may take where the order does not say.
	defaultShutdown = 2 * time.Minute
)

// shutDown has the guest of a VM shut down that is to move offline. It is asked
// by its power button, never forced: one that does not is left running.
func (s *sender) shutDown(ctx context.Context) *agentv1.TaskOutcome {
	if !s.offline || !s.resume {
		return nil
	}
	limit := time.Duration(s.spec.GetShutdownMs()) * time.Millisecond
	if limit == 0 {
		limit = defaultShutdown
	}
	deadline := time.Now().Add(limit)
	var asked time.Time
	s.progress.Phase = phaseShutting
	s.report(true)
	for {
		seen, ok := s.look(ctx)
		switch {
		case !ok:
			return nil
		case seen.State == shutoff:
			s.off = time.Now()
			// gofail: var sendAfterShutdown struct{}
			return nil
		case s.cancelled():
			return cancelled()
		case s.other.GetEnded():
			return s.forsaken()
		case seen.State != running:
			return failure(codeNotRunning, "VM %s cannot be shut down: it is %s", s.right.GetVmName(), seen.State)
		case !time.Now().Before(deadline):
			return failure(codeNoShutdown, "the guest of VM %s did not shut down within %s, and goes on running", s.right.GetVmName(), limit)
		}
		if time.Since(asked) >= askAgainToShutDown {
			if err := s.run.Mark(ctx, markShutting); err != nil {
				return journalBroken()
			}
			asked = time.Now()
			s.act("asking the guest to shut down", s.hypervisor().AskToShutDown(ctx, s.right.GetVmUuid(), true))
		}
		if !s.await(ctx, nil, min(lookEvery, max(time.Until(deadline), time.Millisecond))) {
			return nil
		}
	}
}

// forsaken is the end of a migration whose target has given up.
func (s *sender) forsaken() *agentv1.TaskOutcome {
	return failure(codeForsaken, "%s gave up: %s", s.right.GetTargetNode(), s.other.GetReason())
}

// copyDisks copies those disks to which nobody writes, before libvirt is asked.
func (s *sender) copyDisks(ctx context.Context) *agentv1.TaskOutcome {
	disks := s.disks.only(copyOffline)
	if len(disks) == 0 || s.run.Marked(markDisks) {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &sending{sender: s, files: disks.files(), begun: time.Now()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.err = c.send(ctx)
	}()
	defer func() {
		cancel()
		<-done
		s.sent = c.sent.Load()
	}()
	s.progress.Phase = phaseDisks
	for _, d := range disks {
		s.progress.BytesTotal += d.GetCapacityBytes()
	}
	for {
		if !s.await(ctx, done, statsEvery) {
			return nil
		}
		select {
		case <-done:
			if c.err != nil {
				return s.copyFailed(c.err)
			}
			if err := s.run.Mark(ctx, markDisks); err != nil {
				return journalBroken()
			}
			// gofail: var sendAfterDisksCopied struct{}
			return nil
		default:
		}
		if out := c.watch(ctx); out != nil {
			return out
		}
	}
}

// copyFailed is the outcome of a copy that came to no end.
func (s *sender) copyFailed(err error) *agentv1.TaskOutcome {
	if s.other.GetEnded() {
		return s.forsaken()
	}
	if broke := s.tunnel.Broken(); broke != "" {
		return broken(codeTunnel, "the connection between the two nodes broke while disks were copied: %s", broke)
	}
	return refused(codeDisk, err)
}

// sending is our own copy of disks at work.
type sending struct {
	*sender
	files []diskcopy.File
	begun time.Time
	err   error
	// before is what former files came to, done what this one does.
	before, done, sent atomic.Uint64
}

func (c *sending) send(ctx context.Context) error {
	for _, f := range c.files {
		result, err := diskcopy.Send(ctx, c.tunnel.DialCopy, f, diskcopy.Options{
			ID: c.right.GetId(), Limit: func() uint64 { return c.limit() << 20 }, Log: c.log,
			Progress: func(done, _ uint64) { c.done.Store(done) },
		})
		if err != nil {
			return err
		}
		c.sent.Add(result.Sent)
		c.done.Store(0)
		c.before.Add(result.Size)
	}
	return nil
}

// watch reports how far the copy is; an outcome is why it is given up.
func (c *sending) watch(ctx context.Context) *agentv1.TaskOutcome {
	done := c.before.Load() + c.done.Load()
	stalled := c.stall.look(done, time.Now())
	p := c.progress
	p.BytesDone, p.BytesTotal = done, max(p.GetBytesTotal(), done)
	p.BytesRemaining = p.GetBytesTotal() - done
	p.ElapsedMs, p.StalledMs = uint64(time.Since(c.begun).Milliseconds()), 0
	if stalled >= 2*statsEvery {
		p.StalledMs = uint64(stalled.Milliseconds())
	}
	c.report(false)
	switch {
	case c.cancelled():
		return cancelled()
	case c.other.GetEnded():
		return c.forsaken()
	case !c.tunnel.Alive():
		return broken(codeTunnel, "the source's end of the tunnel has ended")
	}
	switch remedyFor(c.spec, time.Since(c.begun), stalled, false) {
	case endStalled:
		return endOf(codeStalled, c.spec)
	case endLate:
		return endOf(codeDeadline, c.spec)
	}
	if !c.offline {
		return nil
	}
	if seen, ok := c.look(ctx); ok && seen.State != shutoff {
		return failure(codeStarted, "VM %s was started while its disks were copied", c.right.GetVmName())
	}
	return nil
}

// fileMark is a file in the journal's words: by its inode, so that no other of
// the same name is ever taken for it.
func fileMark(d *agentv1.DiskTransfer) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(d.GetPath(), &st); err != nil {
		return "", fmt.Errorf("disk %s: %s: %w", d.GetTarget(), d.GetPath(), err)
	}
	return "file/" + d.GetTarget() + "/" + strconv.FormatUint(st.Ino, 10), nil
}

// removeFiles removes the source's files of a VM that runs elsewhere. It is
// true once there are none.
func (s *sender) removeFiles(ctx context.Context) bool {
	for _, d := range s.disks.leftovers() {
		if zvol.Is(d) {
			if !s.act("removing "+d.GetZfsDataset(), s.removeVolume(ctx, d)) {
				return false
			}
			continue
		}
		mark, err := fileMark(d)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && !s.run.Marked(mark) {
			s.log.Warn("a file is left: it is not the one that was copied", "path", d.GetPath())
			continue
		}
		if err == nil {
			if err = gone(os.Remove(d.GetPath())); err == nil {
				err = syncPath(filepath.Dir(d.GetPath()))
			}
		}
		if !s.act("removing "+d.GetPath(), err) {
			return false
		}
	}
	// gofail: var sendAfterFilesRemoved struct{}
	return true
}

// filing is what becomes of the source's files.
type filing int

const (
	filesWait filing = iota
	filesRemove
	filesKeep
)

// filingFor decides about the files of a source that has let go, by what is known
// of the target: they go when the VM was seen there as it is to be, on disks of
// its own; whatever else became of it, they stay, since nobody knows what they
// may be needed for.
func filingFor(target *agentv1.Side, resume, offline bool) filing {
	switch {
	case target.GetState() == running:
		return filesRemove
	case offline && (target.GetState() == shutoff || target.GetState() == paused):
		return filesRemove // its disks were checked whole, its definition is there
	case target.GetState() == paused && target.GetEnded() && !resume:
		return filesRemove
	case target.GetEnded() && (target.GetState() == absent || target.GetState() == shutoff || target.GetReason() != ""):
		return filesKeep
	default:
		return filesWait
	}
}
