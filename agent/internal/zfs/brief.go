package zfs

import (
	"context"
	_ "embed"
	"encoding/json"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// briefProgram is a channel program that changes nothing: a listing by command asks
// the kernel for each snapshot by itself, which takes many times as long.
//
//go:embed brief.lua
var briefProgram string

const (
	// briefInstructions and briefMemory are the most that a program may take of the
	// kernel: what lists some hundred thousand snapshots.
	briefInstructions = "100000000"
	briefMemory       = "100000000"
)

// BriefSnapshots hands the datasets' own snapshots to yield, in no order, with no
// more than what a plan goes by: GUID, CreateTXG, Creation, UserRefs and Clones. The
// datasets are of one pool; one that is not there is DATASET_NOT_FOUND. An error of
// yield ends it.
func (z *ZFS) BriefSnapshots(ctx context.Context, datasets []string, yield func(Snapshot) error) error {
	pool := ""
	for _, d := range datasets {
		n, err := parseDataset("datasets", d)
		if err != nil {
			return err
		}
		if pool == "" {
			pool = n.Pool()
		}
		if n.Pool() != pool {
			return errdefs.Field("datasets", d, "datasets of one pool, here "+pool)
		}
	}
	if pool == "" {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	read, write, err := pipe()
	if err != nil {
		return err
	}
	defer func() { _ = read.Close() }()
	args := append([]string{"program", "-jn", "-t", briefInstructions, "-m", briefMemory, "--", pool, "-"}, datasets...)
	r, err := z.start(ctx, command{program: "zfs", args: args, about: pool, stdin: strings.NewReader(briefProgram), stdout: write, ours: read})
	_ = write.Close()
	if err != nil {
		return err
	}
	parsed := eachText(read, func(text string) error { return briefly(text, yield) })
	if parsed != nil {
		_, _ = io.Copy(io.Discard, read) // what zfs says counts more
		cancelled := ctx.Err()
		if err := r.wait(); err != nil && cancelled == nil {
			return err
		}
		return parsed
	}
	return r.wait()
}

// eachText hands each text that a program returns to yield, as they come.
func eachText(from io.Reader, yield func(string) error) error {
	d := json.NewDecoder(from)
	for depth, key := 0, false; ; {
		t, err := d.Token()
		if err != nil {
			return errdefs.New(errdefs.Internal, CodeZFS, "zfs program's answer breaks off").WithCause(err)
		}
		switch t := t.(type) {
		case json.Delim:
			if t == '{' || t == '[' {
				depth, key = depth+1, false
			} else if depth--; depth == 0 {
				return nil
			}
		case string:
			if key = !key; key && depth > 0 {
				continue
			}
			if err := yield(t); err != nil {
				return err
			}
		default:
			key = false
		}
	}
}

// briefly hands a text's snapshots to yield.
func briefly(text string, yield func(Snapshot) error) error {
	dataset, rest, more := strings.Cut(text, "\n")
	if dataset == "gone" {
		return errdefs.New(errdefs.NotFound, CodeDatasetNotFound, "%s does not exist", rest).With("dataset", rest)
	}
	for more {
		var line string
		line, rest, more = strings.Cut(rest, "\n")
		f := strings.Split(line, "\t")
		if len(f) < 5 {
			return errdefs.New(errdefs.Internal, CodeZFS, "zfs program lists %q", shortened(line))
		}
		s := Snapshot{Dataset: dataset, Name: f[0], Clones: f[5:]}
		var creation uint64
		for i, n := range []*uint64{&s.GUID, &s.CreateTXG, &creation, &s.UserRefs} {
			number, err := strconv.ParseInt(f[i+1], 10, 64) // Lua's have a sign
			if err != nil {
				return errdefs.New(errdefs.Internal, CodeZFS, "zfs program lists %q", shortened(line)).WithCause(err)
			}
			*n = uint64(number)
		}
		s.Creation = time.Unix(int64(creation), 0)
		if err := yield(s); err != nil {
			return err
		}
	}
	return nil
}
