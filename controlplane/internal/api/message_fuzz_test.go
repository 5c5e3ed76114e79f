package api_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/debvisor/debvisor/controlplane/internal/api"
	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

// requests are the types of all methods' requests.
func requests() []protoreflect.MessageType {
	seen := map[protoreflect.FullName]bool{}
	var types []protoreflect.MessageType
	protoregistry.GlobalFiles.RangeFilesByPackage("debvisor.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			methods := f.Services().Get(i).Methods()
			for j := range methods.Len() {
				name := methods.Get(j).Input().FullName()
				if m, err := protoregistry.GlobalTypes.FindMessageByName(name); err == nil && !seen[name] {
					seen[name] = true
					types = append(types, m)
				}
			}
		}
		return true
	})
	return types
}

// FuzzMessage takes what a caller sends as the request of every method: it is
// decoded or marked (which it may be already), then accepted or refused as the caller's fault, and the
// audit log tells of it in 200 characters that can be seen.
func FuzzMessage(f *testing.F) {
	types := requests()
	if len(types) < 30 {
		f.Fatalf("only %d types of requests are found", len(types))
	}
	check, err := api.NewValidator()
	if err != nil {
		f.Fatal(err)
	}
	codec := rpc.NewCodec()
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, of := range types {
			m := of.New().Interface()
			if err := codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(data)}, m); err != nil {
				t.Fatalf("%s of %q: %v", of.Descriptor().FullName(), data, err)
			}
			plain := of.New().Interface()
			if proto.Unmarshal(data, plain) == nil && rpc.Decoded(m) != nil && rpc.Decoded(plain) == nil {
				t.Errorf("%s of %q can be decoded and is refused", of.Descriptor().FullName(), data)
			}
			err := check.Check(m)
			if e := errdefs.Of(err); err != nil && (e.Kind != errdefs.InvalidArgument || e.Message == "" || !utf8.ValidString(e.Message)) {
				t.Errorf("%s of %q: %v", of.Descriptor().FullName(), data, err)
			}
			told := audit.Summary(m)
			if utf8.RuneCountInString(told) > 200 || strings.ContainsFunc(told, func(r rune) bool { return r < ' ' || r == utf8.RuneError }) {
				t.Errorf("%s of %q is summed up as %q", of.Descriptor().FullName(), data, told)
			}
		}
	})
}
