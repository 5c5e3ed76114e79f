package gateway

import (
	"maps"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/grpc-ecosystem/grpc-gateway/v2/utilities"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/debvisor/debvisor/shared/rpc"
)

// query reads the parameters of a request into its message, and takes those
// that it has read out of values: what stays there is not known (leftover). It
// keeps nothing, since the runtime has one for the whole process.
type query struct{ runtime.DefaultQueryParser }

// Parse reads values into msg. A bad value marks it as malformed.
func (q *query) Parse(msg proto.Message, values url.Values, inPath *utilities.DoubleArray) error {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		path := strings.Split(name, ".")
		if !isField(msg.ProtoReflect().Descriptor(), path) || inPath.HasCommonPrefix(path) {
			continue
		}
		if slices.ContainsFunc(values[name], func(v string) bool { return !utf8.ValidString(v) }) {
			rpc.Malformed(msg, "parameter "+name+": not UTF-8")
			return nil
		}
		if err := q.DefaultQueryParser.Parse(msg, url.Values{name: values[name]}, inPath); err != nil {
			rpc.Malformed(msg, "parameter "+name+": "+cleaned(err))
			return nil
		}
		delete(values, name)
	}
	return nil
}

// isField tells whether a path of names leads to a field with a value, or a list of
// values, of its own.
func isField(d protoreflect.MessageDescriptor, path []string) bool {
	for i, name := range path {
		field := d.Fields().ByName(protoreflect.Name(name))
		switch {
		case field == nil, field.IsMap():
			return false
		case i == len(path)-1:
			return field.Message() == nil
		case field.Message() == nil, field.IsList():
			return false
		}
		d = field.Message()
	}
	return false
}

// leftover marks a request whose parameters have not all been read. What is
// marked already stays as it is.
func leftover(req any, values url.Values) {
	m, ok := req.(proto.Message)
	if !ok || len(values) == 0 || rpc.Decoded(m) != nil {
		return
	}
	name := slices.Min(slices.Collect(maps.Keys(values)))
	rpc.Malformed(m, "parameter "+name+" is not known here: what the path does not say goes into a GET's or DELETE's query, and else into the body")
}
