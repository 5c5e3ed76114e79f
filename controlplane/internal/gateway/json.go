package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/shared/rpc"
)

// wire is the JSON of requests and answers: names as in the .proto files, every
// field there, unknown ones refused. A stream is a message a line.
type wire struct{}

var (
	_ runtime.Marshaler         = wire{}
	_ runtime.Delimited         = wire{}
	_ runtime.StreamContentType = wire{}
)

// ContentType is that of an answer.
func (wire) ContentType(any) string { return "application/json" }

// StreamContentType is that of a stream.
func (wire) StreamContentType(any) string { return "application/x-ndjson" }

// Delimiter ends a line of a stream.
func (wire) Delimiter() []byte { return []byte("\n") }

// Marshal encodes an answer, a message of a stream, or the error that ends one;
// the runtime wraps the latter two.
func (wire) Marshal(v any) ([]byte, error) {
	switch v := v.(type) {
	case proto.Message:
		return protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(v)
	case map[string]any:
		if m, ok := v["result"].(proto.Message); ok {
			return wire{}.Marshal(m)
		}
	case map[string]proto.Message:
		if st, ok := v["error"].(*spb.Status); ok {
			return json.Marshal(map[string]any{"error": newProblem(status.ErrorProto(st), "")})
		}
	}
	return nil, fmt.Errorf("the gateway has no JSON for a %T", v)
}

// Unmarshal decodes a request. What is wrong with it becomes part of it (see
// rpc.Malformed), so that it is refused, limited and audited as any other call
// of that caller.
func (wire) Unmarshal(data []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("the gateway has no JSON for a %T", v)
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil
	}
	if err := protojson.Unmarshal(data, m); err != nil {
		rpc.Malformed(m, "not its JSON: "+cleaned(err))
	}
	return nil
}

// cleaned is protobuf's own word without its prefix and its odd spaces.
func cleaned(err error) string {
	return strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\u00a0", " "), "proto: ")
}

// NewDecoder decodes the one message that r has.
func (wire) NewDecoder(r io.Reader) runtime.Decoder {
	return runtime.DecoderFunc(func(v any) error {
		data, err := io.ReadAll(r)
		if err != nil {
			return fmt.Errorf("reading a request: %w", err)
		}
		return wire{}.Unmarshal(data, v)
	})
}

// NewEncoder encodes to w.
func (wire) NewEncoder(w io.Writer) runtime.Encoder {
	return runtime.EncoderFunc(func(v any) error {
		data, err := wire{}.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	})
}
