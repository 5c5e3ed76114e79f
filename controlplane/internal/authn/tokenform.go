package authn

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// tokenForm is what a token's header says.
type tokenForm struct{ alg, kid string }

const (
	// maxKid is the most that a key's id may hold, bytes.
	maxKid = 256
	// maxDepth is how deep a token's JSON may nest.
	maxDepth = 16
)

// readForm reads a token's header, stricter than the library does, which takes
// the last of two members of one name and base64 with line breaks. The header
// is all that decides how the rest is read; nothing in it is believed but which
// of the keys that we have to try.
func readForm(text string, algorithms []string) (tokenForm, error) {
	parts := strings.Split(text, ".")
	if len(parts) != 3 || slices.ContainsFunc(parts, notBase64URL) {
		return tokenForm{}, badForm("it is not three parts in base64url")
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(parts[0])
	if err != nil {
		return tokenForm{}, badForm("its header is not in base64url")
	}
	header, err := strictObject(raw)
	if err != nil {
		return tokenForm{}, badForm("its header: %s", err)
	}
	return readHeader(header, algorithms)
}

func readHeader(header map[string]any, algorithms []string) (tokenForm, error) {
	for _, member := range []string{"crit", "jku", "jwk", "x5u", "x5c"} {
		if _, ok := header[member]; ok {
			return tokenForm{}, badForm("its header has %q, which is not accepted", member)
		}
	}
	alg, _ := header["alg"].(string)
	if !slices.Contains(algorithms, alg) {
		return tokenForm{}, badForm("its algorithm is not among %s", strings.Join(algorithms, ", "))
	}
	if typ, ok := header["typ"]; ok {
		name, _ := typ.(string)
		name = strings.TrimPrefix(strings.ToLower(name), "application/")
		if name != "jwt" && name != "at+jwt" {
			return tokenForm{}, badForm("its type is not JWT")
		}
	}
	kid := ""
	if member, ok := header["kid"]; ok {
		if kid, _ = member.(string); !validKid(kid) {
			return tokenForm{}, badForm("its kid is not the id of a key")
		}
	}
	return tokenForm{alg: alg, kid: kid}, nil
}

// validKid tells a key's id from what is meant for some other reader: a path, a
// query, a command. We look it up and do nothing else with it.
func validKid(kid string) bool {
	if kid == "" || len(kid) > maxKid || kid[0] == '/' || strings.Contains(kid, "..") {
		return false
	}
	return strings.Trim(kid, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~:=+@/-") == ""
}

// notBase64URL tells what is not entirely of base64url's letters: Go's decoder
// passes over line breaks.
func notBase64URL(part string) bool {
	return part == "" || strings.Trim(part, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") != ""
}

// strictObject reads one JSON object and nothing after it, in valid UTF-8, no
// object in it with two members of one name. Numbers are json.Number.
func strictObject(raw []byte) (map[string]any, error) {
	if !utf8.Valid(raw) || !json.Valid(raw) {
		return nil, errors.New("not JSON in UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	value, err := strictValue(d, 0)
	if err != nil {
		return nil, err
	}
	object, ok := value.(map[string]any)
	if !ok {
		return nil, errors.New("not a JSON object")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	return object, nil
}

func strictValue(d *json.Decoder, depth int) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, errors.New("not JSON")
	}
	delim, ok := token.(json.Delim)
	switch {
	case !ok:
		return token, nil
	case depth == maxDepth:
		return nil, errors.New("nested too deep")
	case delim == '{':
		return strictMembers(d, depth)
	}
	var list []any
	for d.More() {
		value, err := strictValue(d, depth+1)
		if err != nil {
			return nil, err
		}
		list = append(list, value)
	}
	_, err = d.Token() // the bracket
	return list, err
}

func strictMembers(d *json.Decoder, depth int) (any, error) {
	object := map[string]any{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return nil, errors.New("not JSON")
		}
		name, ok := token.(string)
		if !ok {
			return nil, errors.New("not JSON")
		}
		if _, twice := object[name]; twice {
			return nil, errors.New("two members of one name")
		}
		if object[name], err = strictValue(d, depth+1); err != nil {
			return nil, err
		}
	}
	_, err := d.Token() // the brace
	return object, err
}
