package api

import (
	"errors"
	"fmt"
	"strings"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

// Validator holds the rules that the messages of the contract carry.
type Validator struct {
	rules protovalidate.Validator
}

// NewValidator makes a validator; rules are compiled when first needed.
func NewValidator() (*Validator, error) {
	rules, err := protovalidate.New()
	if err != nil {
		return nil, fmt.Errorf("reading the messages' rules: %w", err)
	}
	return &Validator{rules: rules}, nil
}

// Check refuses a malformed message: InvalidArgument, which names every field
// that is wrong, its value and what is accepted.
func (v *Validator) Check(message any) error {
	if err := rpc.Decoded(message); err != nil {
		return err
	}
	m, ok := message.(proto.Message)
	if _, empty := message.(*debvisorv1.Empty); empty || !ok {
		return nil
	}
	err := v.rules.Validate(m)
	var violations *protovalidate.ValidationError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &violations):
		return invalid(violations)
	}
	return fmt.Errorf("validating a %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
}

// shownValue is how much of a wrong value is repeated, bytes.
const shownValue = 64

func invalid(violations *protovalidate.ValidationError) error {
	texts := make([]string, 0, len(violations.Violations))
	e := errdefs.New(errdefs.InvalidArgument, "INVALID_FIELD", "")
	for i, violation := range violations.Violations {
		field := protovalidate.FieldPathString(violation.Proto.GetField())
		expected := violation.Proto.GetMessage()
		value := ""
		if violation.FieldDescriptor != nil && violation.FieldDescriptor.Message() == nil && violation.FieldValue.IsValid() {
			value = clip(violation.FieldValue.String())
		}
		text := expected
		if field != "" {
			text = fmt.Sprintf("%s: %q is not accepted: %s", field, value, expected)
		} else {
			field, _, _ = strings.Cut(expected, " ") // a rule of the whole message begins with the field
		}
		texts = append(texts, text)
		if i == 0 {
			e = e.With("field", field).With("value", value).With("expected", expected)
		} else {
			e = e.With("field."+field, expected)
		}
	}
	e.Message = strings.Join(texts, "; ")
	return e
}

// clip shortens what a caller sent, so that it can be repeated.
func clip(s string) string {
	if len(s) <= shownValue {
		return s
	}
	return strings.ToValidUTF8(s[:shownValue], "") + "…"
}
