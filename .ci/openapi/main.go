// Command openapi reads what protoc-gen-openapiv2 made of the messages and of
// proto/debvisor/v1/http.yaml, and writes the document that the gateway serves:
// with the errors, headers, identities and streams as the gateway has them,
// which the generator knows nothing of.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() {
	if err := convert(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "openapi:", err)
		os.Exit(1)
	}
}

type object = map[string]any

const description = `The HTTP/JSON gateway of DebVisor's control plane. Each path is a call of the
gRPC API: same identity, permissions, limits and audit. See docs/ci.md.

Names are as in the .proto files; 64-bit integers are strings; fields without
a value are there. A request with a field or parameter that is not known is
refused. Every failure is an application/problem+json (RFC 9457).`

func convert(from io.Reader, to io.Writer) error {
	var doc object
	if err := json.NewDecoder(from).Decode(&doc); err != nil {
		return fmt.Errorf("reading the generated document: %w", err)
	}
	doc["info"] = object{"title": "DebVisor", "version": "v1", "description": description}
	doc["schemes"] = []string{"https"}
	doc["securityDefinitions"] = object{
		"bearer": object{"type": "apiKey", "in": "header", "name": "Authorization", "description": "\"Bearer \" and an API key or a JWT. A client certificate goes before it."},
	}
	doc["security"] = []object{{"bearer": []string{}}, {}}
	doc["parameters"] = parameters()
	definitions, ok := doc["definitions"].(object)
	if !ok {
		return fmt.Errorf("the generated document has no definitions")
	}
	definitions["Problem"] = problem()
	paths, ok := doc["paths"].(object)
	if !ok || len(paths) == 0 {
		return fmt.Errorf("the generated document has no paths")
	}
	for path, item := range paths {
		for method, op := range item.(object) {
			if err := finish(method, op.(object)); err != nil {
				return fmt.Errorf("%s %s: %w", method, path, err)
			}
		}
	}
	enc := json.NewEncoder(to)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	return enc.Encode(doc)
}

// finish says of one call what the generator could not.
func finish(method string, op object) error {
	answer, ok := op["responses"].(object)["200"].(object)
	if !ok {
		return fmt.Errorf("it has no answer")
	}
	answer["description"] = "OK"
	answer["headers"] = object{
		"Debvisor-Trace-Id":  object{"type": "string", "description": "Leads to the server's log and audit log."},
		"Debvisor-Operation": object{"type": "string", "description": "The operation that the call began, if it did."},
	}
	if schema := answer["schema"].(object); strings.HasPrefix(fmt.Sprint(schema["title"]), "Stream result of ") {
		op["produces"] = []string{"application/x-ndjson", "application/problem+json"}
		answer["description"] = "A message a line, as they come. Where the stream fails, the last line is {\"error\": Problem}."
		answer["schema"] = schema["properties"].(object)["result"]
	} else {
		op["produces"] = []string{"application/json", "application/problem+json"}
	}
	op["responses"].(object)["default"] = object{
		"description": "The call failed.", "schema": object{"$ref": "#/definitions/Problem"},
	}
	list, _ := op["parameters"].([]any)
	for _, p := range list {
		if p := p.(object); p["in"] == "body" {
			p["required"] = false // none is an empty message
		}
	}
	list = append(list, object{"$ref": "#/parameters/trace"})
	if method != "get" {
		list = append(list, object{"$ref": "#/parameters/request_id"}, object{"$ref": "#/parameters/wait"})
	}
	op["parameters"] = list
	return nil
}

func parameters() object {
	header := func(name, description string) object {
		return object{"name": name, "in": "header", "required": false, "type": "string", "description": description}
	}
	return object{
		"request_id": header("Debvisor-Request-Id", "Makes a change happen once: repeated with the same id, it gives the first one's outcome."),
		"wait":       header("Debvisor-Wait", "\"none\": answer at once, with the operation in Debvisor-Operation."),
		"trace":      header("Debvisor-Trace-Id", "The trace id to use; traceparent is taken as well."),
	}
}

func problem() object {
	text := func(description string) object { return object{"type": "string", "description": description} }
	return object{
		"type":        "object",
		"description": "What went wrong (RFC 9457). Members beyond these are the values that the text speaks of.",
		"required":    []string{"type", "title", "status", "detail", "code", "grpc_code", "trace_id"},
		"properties": object{
			"type":        text("urn:debvisor:error: and the code."),
			"title":       text("What the HTTP status means."),
			"status":      object{"type": "integer", "description": "The HTTP status."},
			"detail":      text("What went wrong this time, for people."),
			"code":        text("Stable and for programs, such as VM_NOT_FOUND."),
			"grpc_code":   text("The gRPC code, such as FAILED_PRECONDITION: it tells apart what shares an HTTP status."),
			"trace_id":    text("Leads to the server's log and audit log."),
			"retry_after": object{"type": "number", "description": "Seconds after which to try again."},
		},
	}
}
