package integration

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
)

// guides are the documents whose commands TestGuides runs, in this order: each goes on where the one before it ended.
func guides() []string {
	return []string{"three-node-cluster.md", "join-a-hypervisor.md", "day-2.md", "disaster-recovery.md"}
}

// commands are one fenced block of commands of a guide, and what the comment before it says.
type commands struct {
	guide string
	line  int
	text  string
	// hosts are where it is run; none: it is not run, for the reason that the guide gives.
	hosts []string
	// packages has it run in the directory of packages.
	packages bool
	// says are words that its output must have.
	says []string
	// files are what is carried between hosts instead.
	files []carried
}

type carried struct{ path, from, to string }

// directive is the comment before a block:
//
//	<!-- run: hv1 hv2, in the packages' directory; says: WORDS; says: WORDS -->
//	<!-- not run: WHY; files: PATH from hv1 to hv2, PATH from hv1 to hv3 -->
var directive = regexp.MustCompile(`^<!-- (run|not run): (.*) -->$`)

// commandsOf reads a guide. Each block of shell commands says before it where it is run, or why it is not.
func commandsOf(guide string) ([]commands, error) {
	file, err := os.Open(filepath.Join("..", "docs", guide))
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	var all []commands
	var current *commands
	said, fenced := "", false
	lines := bufio.NewScanner(file)
	for number := 1; lines.Scan(); number++ {
		line := lines.Text()
		switch {
		case fenced && line == "```":
			fenced, current = false, nil
		case fenced && current != nil:
			current.text += line + "\n"
		case fenced:
		case line == "```sh":
			b := commands{guide: guide, line: number}
			if err := b.direct(said); err != nil {
				return nil, fmt.Errorf("docs/%s:%d: %w", guide, number, err)
			}
			all = append(all, b)
			fenced, current = true, &all[len(all)-1]
		case strings.HasPrefix(line, "```"):
			if line != "```text" && line != "```yaml" {
				return nil, fmt.Errorf("docs/%s:%d: %s: commands are in ```sh, what they print in ```text", guide, number, line)
			}
			fenced = true
		}
		said = line
	}
	return all, lines.Err()
}

// direct reads the comment before a block.
func (b *commands) direct(comment string) error {
	match := directive.FindStringSubmatch(comment)
	if match == nil {
		return fmt.Errorf("a block of commands without a comment that says where it is run, or why it is not: %q", comment)
	}
	head, rest, _ := strings.Cut(match[2], "; ")
	for part := range strings.SplitSeq(rest, "; ") {
		key, value, _ := strings.Cut(part, ": ")
		switch {
		case part == "":
		case key == "says" && match[1] == "run":
			b.says = append(b.says, value)
		case key == "files" && match[1] == "not run":
			for file := range strings.SplitSeq(value, ", ") {
				var c carried
				if n, err := fmt.Sscanf(file, "%s from %s to %s", &c.path, &c.from, &c.to); n != 3 {
					return fmt.Errorf("files: %q: %w", file, err)
				}
				b.files = append(b.files, c)
			}
		default:
			return fmt.Errorf("%q is not known here", part)
		}
	}
	if match[1] == "not run" {
		if len(head) < 10 {
			return fmt.Errorf("it is not said why it is not run: %q", head)
		}
		return nil
	}
	var hosts string
	hosts, b.packages = strings.CutSuffix(head, ", in the packages' directory")
	b.hosts = strings.Fields(hosts)
	if len(b.hosts) == 0 {
		return fmt.Errorf("it is not said where it is run")
	}
	return nil
}

// TestGuidesSayWhatIsRun reads all guides: each block says where it is run, or why it is not.
func TestGuidesSayWhatIsRun(t *testing.T) {
	for _, guide := range guides() {
		all, err := commandsOf(guide)
		if err != nil {
			t.Error(err)
			continue
		}
		ran := 0
		for _, b := range all {
			if len(b.hosts) > 0 {
				ran++
			}
		}
		if ran < 2 {
			t.Errorf("docs/%s: %d of %d blocks are run", guide, ran, len(all))
		}
	}
}

// guided are the hosts on which the guides' commands are run.
type guided struct {
	t   *testing.T
	lab *lab.Lab
}

// host gives the host that the guides call so.
func (g *guided) host(name string) *lab.Node {
	g.t.Helper()
	var number int
	if _, err := fmt.Sscanf(name, "hv%d", &number); err != nil || number < 1 || number > len(g.lab.Nodes) {
		g.t.Fatalf("there is no host %q", name)
	}
	return g.lab.Nodes[number-1]
}

// run runs a block on its hosts, one after the other, as root types it, with the addresses that they have here. Each line is
// run whatever came of nothing before it: the first that fails ends the test.
func (g *guided) run(b commands) {
	g.t.Helper()
	for _, c := range b.files {
		data, err := os.ReadFile(g.host(c.from).Root(c.path))
		if err == nil {
			err = os.WriteFile(g.host(c.to).Root(c.path), data, 0o600)
		}
		if err != nil {
			g.t.Fatalf("docs/%s:%d: %v", b.guide, b.line, err)
		}
	}
	for _, name := range b.hosts {
		script := "set -euo pipefail\nexport HOME=/root DEBIAN_FRONTEND=noninteractive\ncd /root\n"
		if b.packages {
			script += "cd " + filepath.Join(lab.PackagesSeen, packagedFirst) + "\n"
		}
		script += strings.ReplaceAll(b.text, "192.0.2.1", "10.77.0.2")
		ctx, cancel := context.WithTimeout(g.t.Context(), 2*time.Minute)
		began := time.Now()
		out, err := g.host(name).Run(ctx, "/bin/bash", "-c", script)
		cancel()
		g.t.Logf("docs/%s:%d on %s, %s:\n%s%s", b.guide, b.line, name, time.Since(began).Round(100*time.Millisecond), b.text, out)
		if err != nil {
			g.t.Fatalf("docs/%s:%d on %s: %v", b.guide, b.line, name, err)
		}
		for _, words := range b.says {
			if !strings.Contains(out, words) {
				g.t.Errorf("docs/%s:%d on %s does not say %q", b.guide, b.line, name, words)
			}
		}
	}
}

// TestGuides does what the guides say on three Debian hosts on which nothing of ours is: installs the packages, makes a cluster,
// joins the hypervisors, does what is done on the days after, loses everything and brings it back.
func TestGuides(t *testing.T) {
	t.Parallel() // beside TestMatrix, as TestEvacuation is; its hosts are its own
	var all [][]commands
	for _, guide := range guides() {
		these, err := commandsOf(guide)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, these)
	}
	packages := packagesDir(t)
	debs(t, packages, packagedFirst)
	l, err := lab.New(t.Context(), lab.Options{Nodes: 3, Systemd: true, Packages: packages, Kind: "test", Log: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	g := &guided{t: t, lab: l}
	t.Cleanup(func() {
		if t.Failed() {
			g.keep()
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, guide := range all {
		if guide[0].guide == "day-2.md" {
			if _, err := l.Nodes[0].StartGuest(t.Context(), lab.GuestSpec{Name: "web1"}); err != nil {
				t.Fatal(err)
			}
		}
		for _, b := range guide {
			g.run(b)
		}
	}
}

// keep logs what the daemons said last.
func (g *guided) keep() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(g.t.Context()), 30*time.Second)
	defer cancel()
	for _, n := range g.lab.Nodes {
		out, err := n.Run(ctx, "/bin/bash", "-c", "journalctl --no-pager -n 60; tail -n 60 /var/log/debvisor/rpc.log; true")
		g.t.Logf("%s (%v):\n%s", n.Name, err, out)
	}
}
