package api_test

import (
	"math"
	"strings"
	"testing"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/debvisor/debvisor/controlplane/internal/api"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// TestEveryConstraintIsChecked sends an invalid request of its type to every
// method whose request has rules, and finds the methods by reflection.
func TestEveryConstraintIsChecked(t *testing.T) {
	r := start(t, 1<<30)
	check, err := api.NewValidator()
	if err != nil {
		t.Fatal(err)
	}
	conn := r.principal("operator")
	ruled, streams := 0, 0
	for service, info := range r.server.GetServiceInfo() {
		if !strings.HasPrefix(service, "debvisor.") {
			continue
		}
		for _, m := range info.Methods {
			descriptor := methodNamed(t, service, m.Name)
			name := "/" + service + "/" + m.Name
			if !constrained(descriptor.Input(), map[protoreflect.FullName]bool{}) {
				continue
			}
			ruled++
			bad := invalidRequest(t, check, descriptor.Input())
			if bad == nil {
				t.Errorf("%s: nothing breaks the rules of %s", name, descriptor.Input().FullName())
				continue
			}
			want := errdefs.Of(check.Check(bad)).Context["field"]
			reply := newMessage(t, descriptor.Output().FullName())
			if descriptor.IsStreamingServer() {
				streams++
				err = receive(t, conn, name, bad, reply)
			} else {
				err = conn.Invoke(t.Context(), name, bad, reply)
			}
			e := errdefs.FromStatus(err)
			if e == nil || e.Kind != errdefs.InvalidArgument || e.Context["field"] == "" || e.Context["field"] != want || !strings.Contains(e.Message, want) {
				t.Errorf("%s: %v is answered with %v, want INVALID_ARGUMENT for %q", name, bad, err, want)
			}
		}
	}
	if ruled < 30 || streams < 1 {
		t.Errorf("only %d methods with rules are found, %d of them streams", ruled, streams)
	}
}

func methodNamed(t *testing.T, service, name string) protoreflect.MethodDescriptor {
	t.Helper()
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service + "." + name))
	if err != nil {
		t.Fatal(err)
	}
	return d.(protoreflect.MethodDescriptor)
}

func newMessage(t *testing.T, name protoreflect.FullName) proto.Message {
	t.Helper()
	kind, err := protoregistry.GlobalTypes.FindMessageByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return kind.New().Interface()
}

// receive sends the one request of a stream and gives the error of its first
// answer.
func receive(t *testing.T, conn *grpc.ClientConn, name string, request, reply proto.Message) error {
	t.Helper()
	stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, name)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(request); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	return stream.RecvMsg(reply)
}

// constrained tells whether a message or one within it has a rule.
func constrained(m protoreflect.MessageDescriptor, seen map[protoreflect.FullName]bool) bool {
	if seen[m.FullName()] {
		return false
	}
	seen[m.FullName()] = true
	if proto.HasExtension(m.Options(), validate.E_Message) {
		return true
	}
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		if proto.HasExtension(f.Options(), validate.E_Field) || f.Message() != nil && constrained(f.Message(), seen) {
			return true
		}
	}
	return false
}

// invalidRequest gives a request that breaks a rule of its type; nil where none
// of those tried does.
func invalidRequest(t *testing.T, check *api.Validator, m protoreflect.MessageDescriptor) proto.Message {
	t.Helper()
	bad := func(m proto.Message) bool { return errdefs.Is(check.Check(m), errdefs.InvalidArgument) }
	var try func(root proto.Message, at protoreflect.Message, depth int) bool
	try = func(root proto.Message, at protoreflect.Message, depth int) bool {
		fields := at.Descriptor().Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			if f.Message() != nil && !f.IsList() && !f.IsMap() {
				if depth > 0 && try(root, at.Mutable(f).Message(), depth-1) {
					return true
				}
				at.Clear(f)
				continue
			}
			for _, v := range extremes(at, f) {
				at.Set(f, v)
				if bad(root) {
					return true
				}
				at.Clear(f)
			}
		}
		return false
	}
	root := newMessage(t, m.FullName())
	if bad(root) || try(root, root.ProtoReflect(), 3) {
		return root
	}
	return nil
}

// extremes are values of a field that a rule may well refuse.
func extremes(at protoreflect.Message, f protoreflect.FieldDescriptor) []protoreflect.Value {
	switch {
	case f.IsMap():
		return nil
	case f.IsList():
		list := at.NewField(f)
		for range 5000 {
			list.List().Append(list.List().NewElement())
		}
		return []protoreflect.Value{list}
	}
	switch f.Kind() {
	case protoreflect.StringKind:
		return []protoreflect.Value{protoreflect.ValueOfString(strings.Repeat("x", 5000)), protoreflect.ValueOfString("\x01 Ä/")}
	case protoreflect.BytesKind:
		return []protoreflect.Value{protoreflect.ValueOfBytes(make([]byte, 100_000))}
	case protoreflect.EnumKind:
		return []protoreflect.Value{protoreflect.ValueOfEnum(9999)}
	case protoreflect.DoubleKind:
		return []protoreflect.Value{protoreflect.ValueOfFloat64(-1), protoreflect.ValueOfFloat64(1e18), protoreflect.ValueOfFloat64(math.NaN())}
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return []protoreflect.Value{protoreflect.ValueOfUint32(math.MaxUint32)}
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return []protoreflect.Value{protoreflect.ValueOfUint64(math.MaxUint64)}
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return []protoreflect.Value{protoreflect.ValueOfInt32(math.MinInt32), protoreflect.ValueOfInt32(math.MaxInt32)}
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return []protoreflect.Value{protoreflect.ValueOfInt64(math.MinInt64), protoreflect.ValueOfInt64(math.MaxInt64)}
	default:
		return nil
	}
}
