package zvol

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// Stream is one stream of ZFS.
type Stream struct {
	// From is the guid of the snapshot that the target must have; 0: none.
	From uint64
	// To is what it has afterwards.
	To zfs.Ref
	// Token resumes what was cut; empty: from the beginning.
	Token string
}

// Next is what the source sends to a target that has this, on the way to the
// snapshot to; done: it has that already. A token that does not say exactly what is
// to be sent is not used: a target may have made it up.
func (v Volume) Next(ctx context.Context, has *agentv1.LookVolumeResponse, to zfs.Ref) (s Stream, done bool, err error) {
	if has.GetGuid() == to.GUID {
		return Stream{}, true, nil
	}
	ours, err := v.ours(ctx)
	if err != nil {
		return Stream{}, false, err
	}
	find := func(guid uint64) (zfs.Ref, bool) {
		at := slices.IndexFunc(ours, func(o zfs.Snapshot) bool { return o.GUID == guid })
		if at < 0 {
			return zfs.Ref{}, false
		}
		return zfs.Ref{Dataset: ours[at].Dataset, Name: ours[at].Name, GUID: guid}, true
	}
	if _, ok := find(has.GetGuid()); has.GetGuid() != 0 && !ok {
		return Stream{}, false, v.fail(codeFailed, "the target's volume has a snapshot that the source never sent (guid %d)", has.GetGuid())
	}
	if has.GetResumeToken() != "" {
		if t, err := v.ZFS.DecodeToken(ctx, has.GetResumeToken()); err == nil && t.FromGUID == has.GetGuid() {
			if cut, ok := find(t.ToGUID); ok && cut.FullName() == t.Name {
				return Stream{From: has.GetGuid(), To: cut, Token: has.GetResumeToken()}, false, nil
			}
		}
	}
	return Stream{From: has.GetGuid(), To: to}, false, nil
}

// Send opens a stream; its Close waits for zfs and gives its error.
func (v Volume) Send(ctx context.Context, s Stream) (io.ReadCloser, error) {
	spec, err := v.spec(ctx, s)
	if err != nil {
		return nil, err
	}
	return v.ZFS.Send(ctx, spec)
}

// Bytes is how much a stream is going to carry.
func (v Volume) Bytes(ctx context.Context, s Stream) (uint64, error) {
	spec, err := v.spec(ctx, s)
	if err != nil {
		return 0, err
	}
	return v.ZFS.EstimateSend(ctx, spec)
}

func (v Volume) spec(ctx context.Context, s Stream) (zfs.SendSpec, error) {
	if s.Token != "" {
		return zfs.SendSpec{Token: s.Token}, nil
	}
	spec := zfs.SendSpec{To: s.To.FullName(), Compressed: true, LargeBlocks: true, Embedded: true}
	if s.From == 0 {
		return spec, nil
	}
	ours, err := v.ours(ctx)
	if err != nil {
		return spec, err
	}
	at := slices.IndexFunc(ours, func(o zfs.Snapshot) bool { return o.GUID == s.From })
	if at < 0 {
		return spec, v.fail(codeFailed, "the snapshot with guid %d is gone from %s", s.From, v.name())
	}
	spec.From = ours[at].FullName()
	return spec, nil
}

// Look tells what the target has. A first stream that had come whole gets the
// VM's name here, if the process that took it died before.
func (v Volume) Look(ctx context.Context) (*agentv1.LookVolumeResponse, error) {
	f, made, err := v.made(ctx)
	if err != nil {
		return nil, err
	}
	if !made {
		own, ok, err := v.find(ctx, v.own())
		if err != nil || !ok || own.token != "" {
			return &agentv1.LookVolumeResponse{ResumeToken: own.token}, err
		}
		guid, err := v.newest(ctx, v.own())
		if err != nil || guid == 0 || own.right != v.Right {
			return &agentv1.LookVolumeResponse{}, err
		}
		if err := v.grown(ctx); err != nil {
			return nil, err
		}
	}
	guid, err := v.newest(ctx, v.name())
	return &agentv1.LookVolumeResponse{Guid: guid, ResumeToken: f.token}, err
}

// grown gives what the first stream has brought the VM's name.
func (v Volume) grown(ctx context.Context) error {
	if v.Disk.GetVolumeReserved() {
		if err := v.ZFS.Set(ctx, v.own(), map[string]string{"refreservation": "auto"}); err != nil {
			return err
		}
	}
	return v.christen(ctx)
}

// newest is the guid of a dataset's newest snapshot; 0: it has none.
func (v Volume) newest(ctx context.Context, dataset string) (guid uint64, err error) {
	var txg uint64
	err = v.ZFS.Snapshots(ctx, []string{dataset}, false, func(s zfs.Snapshot) error {
		if s.CreateTXG >= txg {
			txg, guid = s.CreateTXG, s.GUID
		}
		return nil
	})
	return guid, err
}

// Take receives one stream on the target. What a former one left that this does not
// resume is thrown away first. The volume stays read-only.
func (v Volume) Take(ctx context.Context, from uint64, to zfs.Ref, resumed bool, r io.Reader) error {
	if !strings.HasPrefix(to.Name, v.prefix()) {
		return v.fail(codeFailed, "%q is no name of this migration's snapshots", to.Name)
	}
	has, err := v.Look(ctx)
	if err != nil {
		return err
	}
	if has.GetGuid() != from {
		return v.fail(codeFailed, "the stream begins at a snapshot (guid %d) that is not the target's newest (guid %d)", from, has.GetGuid())
	}
	if resumed && has.GetResumeToken() == "" {
		return v.fail(codeFailed, "there is nothing that could be resumed")
	}
	if r, err = v.checked(r, from, to); err != nil {
		return err
	}
	if resumed != (has.GetResumeToken() != "") {
		if err := v.ZFS.AbortReceive(ctx, v.at(from)); err != nil {
			return err
		}
	}
	if from == 0 && !resumed {
		if err := v.destroy(ctx, v.own()); err != nil {
			return err
		}
	}
	spec := zfs.ReceiveSpec{Dataset: v.at(from), Resumable: true, Unmounted: true, Snapshot: to.Name}
	if from == 0 && !resumed {
		spec.Properties = map[string]string{propertyRight: v.Right, "readonly": on}
	}
	if err := v.receive(ctx, spec, r); err != nil {
		return err
	}
	// gofail: var receiveAfterStream struct{}
	has, err = v.Look(ctx)
	if err != nil {
		return err
	}
	if has.GetGuid() != to.GUID {
		return v.fail(codeFailed, "the stream brought another snapshot (guid %d) than was said (guid %d)", has.GetGuid(), to.GUID)
	}
	return v.holdNewest(ctx, to.GUID)
}

// checked is the stream, if it says of itself that it is the one that was announced.
// Nothing is touched for another.
func (v Volume) checked(r io.Reader, from uint64, to zfs.Ref) (io.Reader, error) {
	head := make([]byte, zfs.StreamHeaderSize)
	n, err := io.ReadFull(r, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	h, err := zfs.ReadStreamHeader(head[:n])
	if err == nil {
		err = h.Check(zfs.PlannedStream{To: to.Name, ToGUID: to.GUID, FromGUID: from, Volume: true})
	}
	if err != nil {
		return nil, v.fail(codeFailed, "the source sent %v", err)
	}
	return io.MultiReader(bytes.NewReader(head), r), nil
}

// at is the name that a stream goes to: the first one has its own.
func (v Volume) at(from uint64) string {
	if from == 0 {
		return v.own()
	}
	return v.name()
}

func (v Volume) receive(ctx context.Context, spec zfs.ReceiveSpec, r io.Reader) error {
	in, err := v.ZFS.Receive(ctx, spec)
	if err != nil {
		return err
	}
	from := &source{r: r}
	_, _ = io.CopyBuffer(struct{ io.Writer }{in}, from, make([]byte, 256<<10))
	// What has come of a stream that was cut is kept by its ordinary end; and why
	// zfs takes no more it says there.
	if err := in.Finish(); from.err == nil {
		return err
	}
	return from.err
}

// source remembers why there is no more to read, but for the end.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// holdNewest keeps pruning away from what the next stream begins at.
func (v Volume) holdNewest(ctx context.Context, guid uint64) error {
	ours, err := v.ours(ctx)
	if err != nil {
		return err
	}
	for _, s := range ours {
		if s.GUID == guid {
			return v.ZFS.Hold(ctx, v.hold(), s.FullName())
		}
	}
	return v.fail(codeFailed, "%s has got a snapshot that is none of this migration's (guid %d)", v.name(), guid)
}

// Open lets the target's volume be written to, if its newest snapshot is the last
// one of the source's, by guid; else it is behind and stays read-only.
func (v Volume) Open(ctx context.Context, last uint64) (behind bool, err error) {
	has, err := v.Look(ctx)
	if err != nil || last == 0 || has.GetGuid() != last || has.GetResumeToken() != "" {
		return true, err
	}
	if err := v.flush(); err != nil {
		return true, err
	}
	if err := v.ZFS.Set(ctx, v.name(), map[string]string{"readonly": off}); err != nil {
		return true, err
	}
	return false, nil
}
