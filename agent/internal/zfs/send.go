package zfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// SendSpec is a stream to make.
type SendSpec struct {
	// From is the snapshot or bookmark that the increment begins at, in full; empty:
	// everything.
	From string
	// To is the snapshot to send, in full.
	To                                     string
	Raw, Compressed, LargeBlocks, Embedded bool
	// Token resumes what was cut off; it alone then says what is sent, and how. What
	// it names, DecodeToken tells: a target may have made it up.
	Token string
}

// args gives the arguments behind "send", and the dataset that it is about.
func (s SendSpec) args(options ...string) (args []string, about string, err error) {
	if s.Token != "" {
		if s.From != "" || s.To != "" {
			return nil, "", errdefs.Field("token", shortened(s.Token), "a token alone, or what to send")
		}
		return append(options, "-t", s.Token), "", checkToken(s.Token)
	}
	to, err := parseSnapshot("to", s.To)
	if err != nil {
		return nil, "", err
	}
	for _, o := range []struct {
		on     bool
		option string
	}{{s.Raw, "-w"}, {s.Compressed, "-c"}, {s.LargeBlocks, "-L"}, {s.Embedded, "-e"}} {
		if o.on {
			options = append(options, o.option)
		}
	}
	if s.From == "" {
		return append(options, "--", s.To), s.To, nil
	}
	from, err := parseName("from", s.From)
	if err == nil && (from.Kind == KindDataset || from.Pool() != to.Pool()) {
		err = errdefs.Field("from", s.From, "a snapshot or bookmark of the pool "+to.Pool())
	}
	return append(options, "-i", s.From, "--", s.To), s.To, err
}

// EstimateSend tells how many bytes a stream will have, about. A token that leads
// to nothing any more is TOKEN_DEAD.
func (z *ZFS) EstimateSend(ctx context.Context, s SendSpec) (bytes uint64, err error) {
	args, about, err := s.args("-nvP")
	if err != nil {
		return 0, err
	}
	return z.estimate(ctx, command{program: "zfs", args: append([]string{"send"}, args...), about: about}, "size")
}

// Send makes a stream. Its Read gives io.EOF when zfs has ended well, and else
// zfs's error: a stream that ends is whole. Close ends zfs, waits for it, and gives
// its error where it had one of its own. The end of ctx ends both.
//
// What this version is known to corrupt is refused (ENCRYPTED_SEND_UNSAFE).
func (z *ZFS) Send(ctx context.Context, s SendSpec) (io.ReadCloser, error) {
	args, about, err := s.args()
	if err != nil {
		return nil, err
	}
	if err := z.safeToSend(ctx, s); err != nil {
		return nil, err
	}
	read, write, err := pipe()
	if err != nil {
		return nil, fmt.Errorf("a pipe for zfs send: %w", err)
	}
	r, err := z.start(ctx, command{program: "zfs", args: append([]string{"send"}, args...), about: about, stdout: write, ours: read})
	_ = write.Close()
	if err != nil {
		_ = read.Close()
		return nil, err
	}
	return &sending{running: r, from: read}, nil
}

// safeToSend refuses encrypted datasets where Probe says so.
func (z *ZFS) safeToSend(ctx context.Context, s SendSpec) error {
	unsafe, err := z.unsafe(ctx)
	if err != nil || unsafe == "" {
		return err
	}
	name := s.To
	if s.Token != "" {
		t, err := z.DecodeToken(ctx, s.Token)
		if err != nil {
			return err
		}
		name = t.Name
	}
	dataset, _, _ := strings.Cut(name, "@")
	found, err := z.Get(ctx, dataset, "encryption")
	if err != nil {
		return err
	}
	if e := found["encryption"].Value; e != "off" && e != "-" {
		return errdefs.New(errdefs.FailedPrecondition, CodeEncryptedSendUnsafe, "%s is encrypted, and is not sent: %s", dataset, unsafe).With("dataset", dataset)
	}
	return nil
}

// unsafe is Probe's EncryptedSendUnsafe. The kernel's ZFS stays the same as long as
// this process lives, so one answer is enough.
func (z *ZFS) unsafe(ctx context.Context) (string, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.probed == nil {
		c, err := z.Probe(ctx)
		if err != nil {
			return "", err
		}
		z.probed = &c
	}
	return z.probed.EncryptedSendUnsafe, nil
}

// sending is a stream being made.
type sending struct {
	*running
	from   *os.File
	closed sync.Once
	err    error
}

// Read gives bytes of the stream.
func (s *sending) Read(p []byte) (int, error) {
	n, err := s.from.Read(p)
	if err != nil && !errors.Is(err, os.ErrClosed) {
		if failed := s.wait(); failed != nil {
			return n, failed
		}
	}
	return n, err
}

// Close ends zfs and waits for it.
func (s *sending) Close() error {
	s.closed.Do(func() {
		_ = s.from.Close()
		s.err = s.end()
	})
	return s.err
}

// end kills the command and waits. That it died of a signal, ours or that of the
// pipe which nobody reads, is no error of its own.
func (r *running) end() error {
	_ = r.kill()
	err := r.wait()
	var exit *exec.ExitError
	if errors.As(r.failed(), &exit) && !exit.Exited() && r.why() == nil {
		return nil
	}
	return err
}
