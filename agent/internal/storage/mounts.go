package storage

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// mount is one line of /proc/self/mountinfo.
type mount struct {
	id, parent string
	device     string // major:minor
	root       string // of what is mounted, within its file system
	point      string
	kind       string // such as ext4, nfs4, fuse.glusterfs
	source     string
	readOnly   bool
}

// maxLine bounds a line of mountinfo: an overlay's options can be long.
const maxLine = 1 << 20

var errMountLine = errors.New("not a line of mountinfo")

// parseMounts reads mountinfo and gives what can be seen of it: without the
// mounts that later ones cover.
func parseMounts(r io.Reader) ([]mount, error) {
	var all []mount
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		m, err := parseMount(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("reading the mounts: %w", err)
		}
		all = append(all, m)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading the mounts: %w", err)
	}
	return visible(all), nil
}

// parseMount reads a line as proc(5) has it: "36 35 98:0 /root /point options
// [optional fields] - type source superoptions".
func parseMount(line string) (mount, error) {
	before, after, ok := strings.Cut(line, " - ")
	words, rest := strings.Fields(before), strings.Split(after, " ")
	if !ok || len(words) < 6 || len(rest) < 3 {
		return mount{}, fmt.Errorf("%w: %.200q", errMountLine, line)
	}
	m := mount{
		id: words[0], parent: words[1], device: words[2], root: unescape(words[3]), point: path.Clean(unescape(words[4])),
		kind: unescape(rest[0]), source: unescape(rest[1]),
	}
	if !strings.HasPrefix(m.point, "/") {
		return mount{}, fmt.Errorf("%w: %.200q", errMountLine, line)
	}
	m.readOnly = listed(words[5], "ro") || listed(rest[2], "ro")
	return m, nil
}

func listed(options, option string) bool {
	for o := range strings.SplitSeq(options, ",") {
		if o == option {
			return true
		}
	}
	return false
}

// unescape undoes what the kernel does to spaces and the like: \ooo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c, ok := octal(s[i:]); ok {
			b.WriteByte(c)
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func octal(s string) (byte, bool) {
	if len(s) < 4 || s[0] != '\\' || s[1] > '3' {
		return 0, false
	}
	var c byte
	for _, d := range []byte(s[1:4]) {
		if d < '0' || d > '7' {
			return 0, false
		}
		c = c<<3 | (d - '0')
	}
	return c, true
}

// visible leaves out the mounts that another covers: one at the same place or
// above it that is no ancestor of theirs.
func visible(all []mount) []mount {
	at, byID := map[string][]mount{}, map[string]mount{}
	for _, m := range all {
		at[m.point] = append(at[m.point], m)
		byID[m.id] = m
	}
	var seen []mount
	for _, m := range all {
		above := ancestors(m, byID)
		covered := false
		for dir := m.point; !covered; dir = path.Dir(dir) {
			for _, other := range at[dir] {
				covered = covered || !above[other.id]
			}
			if dir == "/" {
				break
			}
		}
		if !covered {
			seen = append(seen, m)
		}
	}
	return seen
}

// ancestors are the ids of a mount and of those it stands on.
func ancestors(m mount, byID map[string]mount) map[string]bool {
	ids := map[string]bool{}
	for ok := true; ok && !ids[m.id]; m, ok = byID[m.parent] {
		ids[m.id] = true
	}
	return ids
}

// under tells whether a path is dir or below it; both are clean.
func under(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir) && p[len(dir)] == '/'
}

// deepest is the mount that holds a clean absolute path; false: none does.
func deepest(mounts []mount, p string) (mount, bool) {
	var best mount
	for _, m := range mounts {
		if under(p, m.point) && len(m.point) > len(best.point) {
			best = m
		}
	}
	return best, best.point != ""
}
