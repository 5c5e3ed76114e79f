package rpc

import (
	"strings"
	"sync/atomic"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that ours is built on
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// Codec is a server's codec: gRPC's own for protobuf, with two additions. An
// answer that many ask for can be kept encoded. And a request that cannot be
// decoded does not end in grpc-go's INTERNAL, before any interceptor has seen
// it, but passes on so that the chain audits and refuses it (Malformed).
type Codec struct {
	base encoding.CodecV2
	kept atomic.Pointer[keptAnswer]
}

type keptAnswer struct {
	message any
	bytes   mem.BufferSlice
}

// NewCodec makes a codec that keeps nothing yet.
func NewCodec() *Codec {
	return &Codec{base: encoding.GetCodecV2("proto")}
}

// Name is the content subtype, as clients name it.
func (*Codec) Name() string { return "proto" }

// Keep encodes a message, which must never be changed again, in place of the
// one kept before: to answer with it costs no encoding.
func (c *Codec) Keep(m proto.Message) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	c.kept.Store(&keptAnswer{message: m, bytes: mem.BufferSlice{mem.SliceBuffer(b)}})
	return nil
}

// Marshal encodes an answer.
func (c *Codec) Marshal(v any) (mem.BufferSlice, error) {
	if kept := c.kept.Load(); kept != nil && kept.message == v {
		return kept.bytes, nil
	}
	return c.base.Marshal(v)
}

// Unmarshal decodes a request.
func (c *Codec) Unmarshal(data mem.BufferSlice, v any) error {
	err := c.base.Unmarshal(data, v)
	m, ok := v.(proto.Message)
	if err == nil || !ok {
		return err
	}
	Malformed(m, "not in protobuf's encoding: "+reason(err))
	return nil
}

// maxReason is the most that is told of what is wrong with a message, bytes: it
// may cite the message.
const maxReason = 256

// Malformed empties a message and marks it as one that could not be read, for
// that reason: so it goes the way of every call, and the chain that has told who
// calls refuses it (Decoded). The mark survives encoding.
func Malformed(m proto.Message, reason string) {
	proto.Reset(m)
	mark := protowire.AppendTag(nil, malformedField, protowire.BytesType)
	m.ProtoReflect().SetUnknown(protowire.AppendString(mark, shown(reason)))
}

// shown is as much of a reason as can be told.
func shown(reason string) string {
	return strings.ToValidUTF8(reason[:min(len(reason), maxReason)], "?")
}

// reason is protobuf's own word without its prefix and its odd spaces.
func reason(err error) string {
	return strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\u00a0", " "), "proto: ")
}

// malformedField is the highest field number there is; no message of ours has it.
const malformedField = protowire.MaxValidNumber

// Decoded refuses, as InvalidArgument, a message that came as no encoding of
// its type; it is empty then. Every chain of a server of this package must ask.
func Decoded(message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return nil
	}
	reason := malformed(m.ProtoReflect().GetUnknown())
	if reason == "" {
		return nil
	}
	return errdefs.New(errdefs.InvalidArgument, "MALFORMED_REQUEST",
		"the request is no %s: %s", m.ProtoReflect().Descriptor().FullName(), reason)
}

// malformed finds the mark among unknown fields; "" where there is none. A caller
// may have set it, to anything.
func malformed(unknown []byte) string {
	for len(unknown) > 0 {
		number, kind, tag := protowire.ConsumeTag(unknown)
		if tag < 0 {
			return ""
		}
		if number == malformedField && kind == protowire.BytesType {
			if reason, n := protowire.ConsumeString(unknown[tag:]); n >= 0 {
				return shown(reason)
			}
		}
		n := protowire.ConsumeFieldValue(number, kind, unknown[tag:])
		if n < 0 {
			return ""
		}
		unknown = unknown[tag+n:]
	}
	return ""
}
