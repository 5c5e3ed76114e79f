package tunnel

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// qemuSpace is the name space of a definition's parts that libvirt hands QEMU
// unread: arguments, environment, properties of devices.
const qemuSpace = "http://libvirt.org/schemas/domain/qemu/1.0"

// checkDefinition makes sure that libvirt, reading the same text, would define
// the right's VM and no other, with no disk that the right does not have.
func (g guard) checkDefinition(text []byte) error {
	found, err := g.domains(text, "domain")
	if err == nil && found != 1 {
		err = errors.New("no definition")
	}
	if err != nil {
		return fmt.Errorf("the definition is not let in: %w", err)
	}
	return nil
}

// checkCookie makes sure of the same for what libvirt puts beside: the
// definition that is to be kept comes in a cookie, and may have any name there.
func (g guard) checkCookie(cookie []byte) error {
	cookie, _ = bytes.CutSuffix(cookie, []byte{0})
	if len(cookie) == 0 {
		return nil
	}
	if _, err := g.domains(cookie, "qemu-migration"); err != nil {
		return fmt.Errorf("the migration's cookie is not let in: %w", err)
	}
	return nil
}

// domains reads an XML text whose root is to have that name, checks every domain
// in it and tells how many there are.
func (g guard) domains(text []byte, root string) (int, error) {
	d := xml.NewDecoder(bytes.NewReader(text))
	found := 0
	for depth := 0; ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return found, err
		}
		if err := plainXML(token); err != nil {
			return found, err
		}
		switch token := token.(type) {
		case xml.StartElement:
			if depth == 0 && token.Name != (xml.Name{Local: root}) {
				return found, fmt.Errorf("it is a %q", token.Name.Local)
			}
			if token.Name.Local != "domain" {
				depth++
				continue
			}
			if found++; found > 1 {
				return found, errors.New("a second domain")
			}
			if err := g.domain(d, token); err != nil {
				return found, err
			}
		case xml.EndElement:
			depth--
		}
	}
}

// plainXML refuses what could make libvirt read something else than is written
// here: a document type may define entities and attributes.
func plainXML(token xml.Token) error {
	switch token := token.(type) {
	case xml.Directive:
		return errors.New("a document type declaration")
	case xml.ProcInst:
		if token.Target != "xml" {
			return errors.New("a processing instruction")
		}
	}
	return nil
}

// domain reads one domain to its end.
func (g guard) domain(d *xml.Decoder, start xml.StartElement) error {
	if start.Name.Space != "" {
		return errors.New("a domain of another name space")
	}
	var names, uuids []string
	path := []string{"domain"}
	for len(path) > 0 {
		token, err := d.Token()
		if err != nil {
			return err
		}
		if err := plainXML(token); err != nil {
			return err
		}
		switch token := token.(type) {
		case xml.EndElement:
			path = path[:len(path)-1]
		case xml.StartElement:
			path = append(path, token.Name.Local)
			if err := g.element(path, token); err != nil {
				return err
			}
			if at := strings.Join(path, "/"); at != "domain/name" && at != "domain/uuid" {
				continue
			}
			value, err := onlyText(d)
			if err != nil {
				return fmt.Errorf("in %s: %w", token.Name.Local, err)
			}
			path = path[:len(path)-1]
			if token.Name.Local == "name" {
				names = append(names, value)
			} else {
				uuids = append(uuids, value)
			}
		}
	}
	if !slices.Equal(uuids, []string{g.cfg.VMUUID}) || !slices.Equal(names, []string{g.cfg.VMName}) {
		return fmt.Errorf("VM %.100q %.100q: the right is for %s", names, uuids, g.cfg.VMUUID)
	}
	return nil
}

// onlyText reads an element that has nothing but text in it.
func onlyText(d *xml.Decoder) (string, error) {
	var text strings.Builder
	for {
		token, err := d.Token()
		if err != nil {
			return "", err
		}
		switch token := token.(type) {
		case xml.CharData:
			text.Write(token)
		case xml.Comment:
		case xml.EndElement:
			return text.String(), nil
		default:
			return "", errors.New("more than text")
		}
	}
}

// element refuses what gives a guest more of the host than its right says.
func (g guard) element(path []string, e xml.StartElement) error {
	at := strings.Join(path, "/")
	switch {
	case e.Name.Space == qemuSpace:
		return fmt.Errorf("<qemu:%s>, which libvirt hands QEMU unread", e.Name.Local)
	case (at == "domain/name" || at == "domain/uuid") && e.Name.Space != "":
		return fmt.Errorf("%s of another name space", e.Name.Local)
	case at == "domain/seclabel" && attribute(e, "type") != "dynamic":
		return errors.New("a security label that is not libvirt's own to choose")
	case g.cfg.DiskPaths != nil && strings.HasPrefix(at, "domain/devices/disk"):
		return g.disk(at, e)
	default:
		return nil
	}
}

// disk refuses a disk in a place that the right does not name. What is on a
// network is reached by the source as well.
func (g guard) disk(at string, e xml.StartElement) error {
	if at == "domain/devices/disk" {
		switch kind := attribute(e, "type"); kind {
		case "file", "block", "network":
			return nil
		default:
			return fmt.Errorf("a disk of type %.40q", kind)
		}
	}
	for _, a := range e.Attr {
		place := a.Name.Local == "file" || a.Name.Local == "dev" && e.Name.Local != "target" || a.Name.Local == "dir" || a.Name.Local == "pool"
		if place && a.Value != "" && !slices.Contains(g.cfg.DiskPaths, a.Value) {
			return fmt.Errorf("a disk at %.200q", a.Value)
		}
	}
	return nil
}

func attribute(e xml.StartElement, name string) string {
	for _, a := range e.Attr {
		if a.Name == (xml.Name{Local: name}) {
			return a.Value
		}
	}
	return ""
}
