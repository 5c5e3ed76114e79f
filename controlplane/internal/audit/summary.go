package audit

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/debvisor/debvisor/shared/identity"
)

const (
	// maxArgs is the most characters of a summary.
	maxArgs = 200
	// maxValue is the most characters of one value in it.
	maxValue = 64
	// hidden stands for what is secret, and for what was left out.
	hidden = "…"
)

// Summary tells what a message says in at most 200 characters: field=value in
// the order of its fields, without those that are not set. What only wraps one
// value, as references do, is that value: vm=web1 target=node-2. Fields that are
// marked debug_redact show "…". Characters that do not print are escaped.
func Summary(m proto.Message) string {
	if m == nil {
		return ""
	}
	s := summary{b: make([]byte, 0, 4*maxArgs)}
	s.message("", m.ProtoReflect())
	return clip(string(s.b), maxArgs)
}

// clip gives at most n characters of a text; "…" stands for the rest.
func clip(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for i := range text {
		if n--; n < 0 {
			cut := text[:i]
			_, last := utf8.DecodeLastRuneInString(cut)
			return cut[:len(cut)-last] + hidden
		}
	}
	return text
}

// summary is a summary in the making.
type summary struct{ b []byte }

// full tells whether nothing more would be seen: a character has at most 4 bytes.
func (s *summary) full() bool { return len(s.b) > 4*maxArgs }

// message adds a message's fields, with the name of what holds it before theirs.
func (s *summary) message(name string, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	sole := name != "" && single(m)
	for i := range fields.Len() {
		field := fields.Get(i)
		if s.full() {
			return
		}
		if !m.Has(field) {
			continue
		}
		full := string(field.Name())
		switch {
		case sole:
			full = name
		case name != "":
			full = name + "." + full
		}
		s.field(full, field, m.Get(field))
	}
}

// single tells whether exactly one field of a message is set.
func single(m protoreflect.Message) bool {
	n := 0
	for fields, i := m.Descriptor().Fields(), 0; i < fields.Len() && n < 2; i++ {
		if m.Has(fields.Get(i)) {
			n++
		}
	}
	return n == 1
}

func (s *summary) field(name string, field protoreflect.FieldDescriptor, v protoreflect.Value) {
	if secret(field) {
		s.begin(name)
		s.b = append(s.b, hidden...)
		return
	}
	switch {
	case field.IsMap():
		s.begin(name)
		s.b = append(append(s.b, '{'), strconv.Itoa(v.Map().Len())...)
		s.b = append(s.b, '}')
	case field.IsList():
		s.list(name, field, v.List())
	case field.Message() != nil:
		before := len(s.b)
		s.message(name, v.Message())
		if len(s.b) == before { // it is there, and says nothing
			s.begin(name)
			s.b = append(s.b, "{}"...)
		}
	default:
		s.begin(name)
		s.value(field, v)
	}
}

// list adds a list's values behind its name; of messages, each as name[i].
func (s *summary) list(name string, field protoreflect.FieldDescriptor, list protoreflect.List) {
	if field.Message() != nil {
		for i := range list.Len() {
			if s.full() {
				return
			}
			s.message(name+"["+strconv.Itoa(i)+"]", list.Get(i).Message())
		}
		return
	}
	s.begin(name)
	for i := range list.Len() {
		if s.full() {
			return
		}
		if i > 0 {
			s.b = append(s.b, ',')
		}
		s.value(field, list.Get(i))
	}
}

func (s *summary) begin(name string) {
	if len(s.b) > 0 {
		s.b = append(s.b, ' ')
	}
	s.b = append(append(s.b, name...), '=')
}

func (s *summary) value(field protoreflect.FieldDescriptor, v protoreflect.Value) {
	switch field.Kind() {
	case protoreflect.StringKind:
		s.text(v.String())
	case protoreflect.BytesKind:
		s.b = append(strconv.AppendInt(append(s.b, '('), int64(len(v.Bytes())), 10), " bytes)"...)
	case protoreflect.EnumKind:
		if known := field.Enum().Values().ByNumber(v.Enum()); known != nil {
			s.b = append(s.b, known.Name()...)
			return
		}
		s.b = strconv.AppendInt(s.b, int64(v.Enum()), 10)
	case protoreflect.BoolKind:
		s.b = strconv.AppendBool(s.b, v.Bool())
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		s.b = strconv.AppendFloat(s.b, v.Float(), 'g', -1, 64)
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Fixed32Kind, protoreflect.Fixed64Kind:
		s.b = strconv.AppendUint(s.b, v.Uint(), 10)
	default:
		s.b = strconv.AppendInt(s.b, v.Int(), 10)
	}
}

// text adds a string: as it is where it cannot be mistaken for anything else.
func (s *summary) text(value string) {
	value = clip(withoutSecret(value), maxValue)
	if value == "" || strings.ContainsAny(value, " =,\"") || !printable(value) {
		s.b = strconv.AppendQuote(s.b, value)
		return
	}
	s.b = append(s.b, value...)
}

// withoutSecret keeps no more than the id of a key or a join token that somebody
// has put where a name belongs.
func withoutSecret(value string) string {
	const idLength = 16
	for _, prefix := range [...]string{identity.APIKeyPrefix, identity.JoinTokenPrefix} {
		if at := strings.Index(value, prefix); at >= 0 && len(value) > at+len(prefix)+idLength {
			return value[:at+len(prefix)+idLength] + hidden
		}
	}
	return value
}

// printable tells whether a text is valid and all of it can be seen.
func printable(text string) bool {
	for _, r := range text {
		if r == utf8.RuneError || !strconv.IsPrint(r) {
			return false
		}
	}
	return true
}

// secret tells whether a field must not be shown.
func secret(field protoreflect.FieldDescriptor) bool {
	options, ok := field.Options().(*descriptorpb.FieldOptions)
	return ok && options.GetDebugRedact()
}
