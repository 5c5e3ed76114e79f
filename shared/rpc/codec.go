package rpc

import (
	"strings"
	"sync/atomic"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that ours is built on
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
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
	proto.Reset(m)
	reason := strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\u00a0", " "), "proto: ")
	mark := protowire.AppendTag(nil, malformedField, protowire.BytesType)
	m.ProtoReflect().SetUnknown(protowire.AppendString(mark, reason))
	return nil
}

// malformedField is the highest field number there is; no message of ours has it.
const malformedField = protowire.MaxValidNumber

// Malformed tells why a request could not be decoded; "" for one that could.
// The request is empty but for this.
func Malformed(m proto.Message) string {
	unknown := m.ProtoReflect().GetUnknown()
	for len(unknown) > 0 {
		number, _, n := protowire.ConsumeField(unknown)
		if n < 0 {
			return ""
		}
		if number == malformedField {
			_, _, tag := protowire.ConsumeTag(unknown)
			reason, m := protowire.ConsumeString(unknown[tag:])
			if m >= 0 {
				return reason
			}
		}
		unknown = unknown[n:]
	}
	return ""
}
