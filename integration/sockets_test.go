package integration

import (
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
)

// An allowed row is one of the table in docs/ports.md: a program and the sockets it may listen on.
type allowed struct {
	program     string // the executable
	proto       string
	first, last uint16         // ports
	path        *regexp.Regexp // of a unix socket
}

// rowPattern is a row of the table: process, socket. The socket is "tcp 7443", "tcp 7450-7499" or "unix `/path/with/<id>/*`".
var rowPattern = regexp.MustCompile("^\\| ([^|]+) \\| (?:(tcp|udp) (\\d+)(?:-(\\d+))?|unix `([^`]+)`)[^|]*\\|")

// documented reads the table.
func documented(t *testing.T) []allowed {
	t.Helper()
	raw, err := os.ReadFile("../docs/ports.md")
	if err != nil {
		t.Fatal(err)
	}
	var rows []allowed
	for line := range strings.Lines(string(raw)) {
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "| process ") || strings.HasPrefix(line, "| ---") {
			continue
		}
		m := rowPattern.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("docs/ports.md: cannot read the row %q", line)
		}
		row := allowed{program: strings.Fields(m[1])[0], proto: m[2]}
		if m[5] != "" {
			row.proto, row.path = "unix", pathPattern(m[5])
		} else {
			first, err := strconv.ParseUint(m[3], 10, 16)
			last := first
			if m[4] != "" && err == nil {
				last, err = strconv.ParseUint(m[4], 10, 16)
			}
			if err != nil {
				t.Fatal(err)
			}
			row.first, row.last = uint16(first), uint16(last)
		}
		rows = append(rows, row)
	}
	if len(rows) < 5 {
		t.Fatalf("docs/ports.md has %d rows only", len(rows))
	}
	return rows
}

// pathPattern is a path of the table as a regular expression: DATA is the data directory, <id> and * stand for what varies in
// one part of the path.
func pathPattern(text string) *regexp.Regexp {
	p := regexp.QuoteMeta(text)
	p = strings.NewReplacer(`<id>`, `[^/]+`, `\*`, `[^/]+`, `DATA`, `/.+`).Replace(p)
	return regexp.MustCompile("^" + p + "$")
}

func (a allowed) allows(s lab.Socket) bool {
	if path.Base(s.Program) != a.program || s.Proto != a.proto {
		return false
	}
	if s.Proto == "unix" {
		return a.path.MatchString(s.Path)
	}
	return s.Addr.Port() >= a.first && s.Addr.Port() <= a.last
}

// unlisted are the sockets of a place that the table does not name.
func unlisted(rows []allowed, p *lab.Place) ([]lab.Socket, int, error) {
	all, err := p.Sockets()
	if err != nil {
		return nil, 0, err
	}
	var bad []lab.Socket
	for _, s := range all {
		listed := false
		for _, row := range rows {
			listed = listed || row.allows(s)
		}
		if !listed {
			bad = append(bad, s)
		}
	}
	return bad, len(all), nil
}

func (c *cluster) places() []*lab.Place {
	places := []*lab.Place{c.Operator}
	for _, r := range c.Replicas {
		places = append(places, r.Place)
	}
	for _, n := range c.Nodes {
		places = append(places, n.Place)
	}
	return places
}

// TestSockets compares everything that listens in the lab, at rest and while a guest moves, with the list that docs name.
func TestSockets(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	a, _ := c.follower()
	rows := documented(t)
	check := func(when string) {
		t.Helper()
		for _, p := range c.places() {
			// A socket whose process ended while we looked has no program: look again.
			c.eventually(5*time.Second, "everything that listens in "+p.Name+" "+when+" is in docs/ports.md", func() error {
				bad, n, err := unlisted(rows, p)
				if err != nil {
					return err
				}
				if len(bad) > 0 {
					return fmt.Errorf("it is not: %v", bad)
				}
				if n == 0 && p != c.Operator {
					return errors.New("nothing listens there at all")
				}
				return nil
			})
		}
	}
	check("at rest")
	c.must(g.from.SetMigrateSpeed(g.UUID, slow))
	id := g.begin(a)
	g.copying()
	carried := 0
	for _, n := range c.Nodes {
		all, err := n.Sockets()
		c.must(err)
		for _, s := range all {
			if s.Proto == "tcp" && s.Addr.Port() >= lab.TunnelsFirst && s.Addr.Port() <= lab.TunnelsLast {
				carried++
			}
		}
	}
	if carried != 1 {
		t.Errorf("%d tunnels listen while memory is copied, want 1", carried)
	}
	check("while a guest moves")
	if active, err := g.from.Migrating(g.UUID); err != nil || !active {
		t.Errorf("the guest moved too fast to look: %v", err)
	}
	c.must(g.from.SetMigrateSpeed(g.UUID, full))
	c.succeeded(time.Minute, a, id)
	g.arrived()
	check("after it")
}
