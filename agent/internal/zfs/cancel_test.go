package zfs

import (
	"context"
	"errors"
	"io"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// TestCancel ends what is in the middle of its work, and finds nobody at work.
func TestCancel(t *testing.T) {
	z, dataset := room(t)
	noise(t, dataset, "a", 12, 1)
	raw(t, "zfs", "snapshot", dataset+"@1")

	ctx, cancel := context.WithCancel(t.Context())
	from, err := z.Send(ctx, SendSpec{To: dataset + "@1"})
	fine(t, err)
	raw, err := from.(*sending).from.SyscallConn()
	fine(t, err)
	fine(t, raw.Control(func(fd uintptr) {
		if room, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0); err != nil || room != pipeSize {
			t.Errorf("the pipe has room for %d, %v", room, err)
		}
	}))
	_, err = io.CopyN(io.Discard, from, 2<<20)
	fine(t, err)
	cancel()
	if _, err := io.Copy(io.Discard, from); !errors.Is(err, context.Canceled) {
		t.Errorf("reading on: %v", err)
	}
	if err := from.Close(); !errors.Is(err, context.Canceled) {
		t.Errorf("closing: %v", err)
	}
	nobodyAbout(t, dataset)

	// A reader that has enough.
	from, err = z.Send(t.Context(), SendSpec{To: dataset + "@1"})
	fine(t, err)
	part := make([]byte, 6<<20)
	_, err = io.ReadFull(from, part)
	fine(t, err)
	fine(t, from.Close())
	fine(t, from.Close())
	nobodyAbout(t, dataset)

	for name, end := range map[string]func(*Receiver, context.CancelFunc) error{
		"cancelled": func(to *Receiver, cancel context.CancelFunc) error { cancel(); return to.Finish() },
		"aborted":   func(to *Receiver, _ context.CancelFunc) error { to.Abort(); to.Abort(); return nil },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		to, err := z.Receive(ctx, ReceiveSpec{Dataset: dataset + "/" + name, Resumable: true, Unmounted: true})
		fine(t, err)
		_, err = to.Write(part)
		fine(t, err)
		if err := end(to, cancel); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := to.Write(part); err == nil {
			t.Errorf("%s: writes on", name)
		}
		nobodyAbout(t, dataset)
		if exists(t, dataset+"/"+name+"@1") {
			t.Errorf("%s: a snapshot is there", name)
		}
		fine(t, z.AbortReceive(t.Context(), dataset+"/"+name))
	}
	nobodyAbout(t, dataset)
}

// TestAbortWhileWriting: a write that waits for zfs does not wait any more.
func TestAbortWhileWriting(t *testing.T) {
	z, dataset := room(t)
	noise(t, dataset, "a", 12, 1)
	raw(t, "zfs", "snapshot", dataset+"@1")
	from, err := z.Send(t.Context(), SendSpec{To: dataset + "@1"})
	fine(t, err)
	to, err := z.Receive(t.Context(), ReceiveSpec{Dataset: dataset + "/r", Resumable: true, Unmounted: true})
	fine(t, err)
	_, err = io.CopyN(to, from, 2<<20)
	fine(t, err)
	pid := to.running.cmd.Process.Pid
	fine(t, unix.Kill(pid, unix.SIGSTOP))
	written, aborted := make(chan error, 1), make(chan struct{})
	go func() {
		_, err := io.Copy(to, from)
		written <- err
	}()
	go func() {
		to.Abort()
		close(aborted)
	}()
	select {
	case err = <-written:
	case <-time.After(5 * time.Second):
		t.Error("it still writes")
	}
	fine(t, unix.Kill(pid, unix.SIGCONT))
	if <-aborted; err == nil {
		t.Error("everything was written to a command that stands still")
	}
	fine(t, from.Close())
	nobodyAbout(t, dataset)
}

// TestBusyReceive: what is being received is left alone.
func TestBusyReceive(t *testing.T) {
	z, dataset := room(t)
	ctx := t.Context()
	noise(t, dataset, "a", 4, 1)
	raw(t, "zfs", "snapshot", dataset+"@1")
	from, err := z.Send(ctx, SendSpec{To: dataset + "@1"})
	fine(t, err)
	whole, err := io.ReadAll(from)
	fine(t, err)
	fine(t, from.Close())
	dst := dataset + "/dst"
	to, err := z.Receive(ctx, ReceiveSpec{Dataset: dst, Resumable: true, Unmounted: true})
	fine(t, err)
	_, err = to.Write(whole[:3<<20])
	fine(t, err)
	for deadline := time.Now().Add(20 * time.Second); !exists(t, dst) || token(t, dst) == "-"; {
		if time.Now().After(deadline) {
			t.Fatal("it does not begin")
		}
	}
	refused(t, z.AbortReceive(ctx, dst), errdefs.Unavailable, CodeDatasetBusy, dst)
	refused(t, second(z.DestroyDataset(ctx, dst, guidOf(t, dst))), errdefs.Unavailable, CodeDatasetBusy, dst)
	_, err = to.Write(whole[3<<20:])
	fine(t, err)
	fine(t, to.Finish())
	same(t, dataset+"@1", dst+"@1")
}

// TestKilledCommand: a command that is killed by somebody else has not ended well.
func TestKilledCommand(t *testing.T) {
	z, dataset := room(t)
	noise(t, dataset, "a", 8, 1)
	raw(t, "zfs", "snapshot", dataset+"@1")
	from, err := z.Send(t.Context(), SendSpec{To: dataset + "@1"})
	fine(t, err)
	_, err = io.CopyN(io.Discard, from, 2<<20)
	fine(t, err)
	fine(t, from.(*sending).kill())
	_, err = io.Copy(io.Discard, from)
	refused(t, err, errdefs.FailedPrecondition, CodeZFS, dataset)
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Errorf("%v does not tell how it ended", err)
	}
	_ = from.Close()
}
