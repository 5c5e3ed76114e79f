package main

import (
	"bytes"
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"
)

// The formats of --output.
const (
	formatTable = "table"
	formatWide  = "wide"
	formatJSON  = "json"
	formatYAML  = "yaml"
)

// formats lists what --output accepts.
func formats() []string { return []string{formatTable, formatWide, formatJSON, formatYAML} }

// wide tells whether a table is to have every column.
func (a *app) wide() bool { return a.flags.output == formatWide }

// forPrograms tells whether the answer is for programs: the API's messages.
func (a *app) forPrograms() bool {
	return a.flags.output == formatJSON || a.flags.output == formatYAML
}

// print prints a message in the format asked for; people asks for its table.
func (a *app) print(m proto.Message, people func() error) error {
	if !a.forPrograms() {
		return people()
	}
	data, err := encode(m)
	if err != nil {
		return err
	}
	return a.printJSON(data)
}

// printStreamed prints one of many messages for programs: a line of JSON, or a
// document of YAML.
func (a *app) printStreamed(m proto.Message) error {
	data, err := encode(m)
	if err != nil {
		return err
	}
	if a.flags.output == formatYAML {
		if _, err := fmt.Fprintln(a.out, "---"); err != nil {
			return err
		}
		return a.printJSON(data)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, data); err != nil {
		return fmt.Errorf("encoding the answer: %w", err)
	}
	_, err = fmt.Fprintln(a.out, b.String())
	return err
}

// encode gives a message as JSON with the contract's own names.
func encode(m proto.Message) ([]byte, error) {
	data, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding the answer: %w", err)
	}
	return data, nil
}

// printValue prints a value of hvctl's own for programs.
func (a *app) printValue(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding the answer: %w", err)
	}
	return a.printJSON(data)
}

// printJSON prints encoded JSON as JSON or YAML.
func (a *app) printJSON(data []byte) error {
	if a.flags.output == formatYAML {
		text, err := yaml.JSONToYAML(data)
		if err != nil {
			return fmt.Errorf("encoding the answer: %w", err)
		}
		_, err = a.out.Write(text)
		return err
	}
	// protojson varies its white space on purpose: this makes it stable.
	var b bytes.Buffer
	if err := json.Indent(&b, data, "", "  "); err != nil {
		return fmt.Errorf("encoding the answer: %w", err)
	}
	b.WriteByte('\n')
	_, err := a.out.Write(b.Bytes())
	return err
}
