package zfs

import (
	"context"
	"strconv"
	"strings"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// Token is what a resume token says.
type Token struct {
	// Name is the snapshot that is being sent, in full, by its name at the sender.
	Name string
	// ToGUID is its guid; FromGUID that of the snapshot or bookmark which the increment
	// begins at, 0 where everything is sent.
	ToGUID, FromGUID uint64
	// Bytes is how much of the stream has arrived.
	Bytes                                  uint64
	Raw, Compressed, LargeBlocks, Embedded bool
}

// maxToken is the length of the longest token that is looked at, bytes; real ones
// have some hundred.
const maxToken = 8 << 10

// checkToken checks the form version-checksum-length-content, in hexadecimal.
func checkToken(token string) error {
	parts := strings.Split(token, "-")
	ok := len(token) <= maxToken && len(parts) == 4
	for _, p := range parts {
		ok = ok && p != "" && strings.Trim(p, "0123456789abcdef") == ""
	}
	if !ok {
		return errdefs.Field("token", shortened(token), "a resume token of zfs")
	}
	return nil
}

// DecodeToken tells what a resume token says. It has only been read: whoever gave
// it may have made it up, so compare it with what was to be sent. It is decoded
// whether or not what it names can still be sent; that, EstimateSend tells. One that
// zfs cannot read is TOKEN_DEAD.
func (z *ZFS) DecodeToken(ctx context.Context, token string) (Token, error) {
	if err := checkToken(token); err != nil {
		return Token{}, err
	}
	out, err := z.output(ctx, command{program: "zfs", args: []string{"send", "-nvP", "-t", token}})
	if ctx.Err() != nil {
		return Token{}, err
	}
	t, ok := parseToken(out)
	if !ok && err == nil {
		err = errdefs.New(errdefs.FailedPrecondition, CodeTokenDead, "zfs does not tell what the resume token says: %q", shortened(out))
	}
	if !ok {
		return Token{}, err
	}
	return t, nil
}

// parseToken reads the lines "key = value" that zfs prints of a token; ok is false
// where they do not say what is sent. A name that is none, and a key that comes
// twice, are refused: a token's text is its maker's.
func parseToken(out string) (t Token, ok bool) {
	said := map[string]string{}
	for line := range strings.Lines(out) {
		key, value, found := strings.Cut(strings.TrimSpace(line), " = ")
		if !found {
			continue
		}
		if _, twice := said[key]; twice {
			return Token{}, false
		}
		said[key] = value
	}
	number := func(key string) uint64 {
		n, err := strconv.ParseUint(said[key], 0, 64)
		if err != nil && said[key] != "" {
			said["toname"] = ""
		}
		return n
	}
	t = Token{
		ToGUID: number("toguid"), FromGUID: number("fromguid"), Bytes: number("bytes"),
		Raw: number("rawok") != 0, Compressed: number("compressok") != 0,
		LargeBlocks: number("largeblockok") != 0, Embedded: number("embedok") != 0,
	}
	t.Name = said["toname"]
	n, err := ParseName(t.Name)
	if err != nil || n.Kind != KindSnapshot || t.ToGUID == 0 {
		return Token{}, false
	}
	return t, true
}
