package zfs

import (
	"strconv"
	"strings"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// Kind is what a name names.
type Kind int

// The kinds of name.
const (
	KindDataset Kind = iota
	KindSnapshot
	KindBookmark
)

const (
	// maxName is the length of the longest name, bytes, whatever it names
	// (ZFS_MAX_DATASET_NAME_LEN less the final NUL).
	maxName = 255
	// maxDepth is how many parts a dataset's name may have (zfs_max_dataset_nesting).
	maxDepth = 50
	// maxTag is the length of the longest tag of a hold, bytes.
	maxTag = 255

	acceptedName = "pool[/part…][@snapshot|#bookmark] of letters, digits, '_', '-', '.', ':' and spaces, at most 255 bytes, no part empty, '.' or '..'"
)

// Name is a name of ZFS, taken apart.
type Name struct {
	Kind Kind
	// Dataset is the part before @ or #, Short the part behind it.
	Dataset, Short string
}

// Pool is the pool that the name is in.
func (n Name) Pool() string {
	pool, _, _ := strings.Cut(n.Dataset, "/")
	return pool
}

// String is the name in full.
func (n Name) String() string {
	switch n.Kind {
	case KindSnapshot:
		return n.Dataset + "@" + n.Short
	case KindBookmark:
		return n.Dataset + "#" + n.Short
	default:
		return n.Dataset
	}
}

// ParseName takes a name apart; it accepts what ZFS itself accepts
// (zfs_namecheck.c), so that a name which passes means one thing only and cannot
// leave the dataset that it begins with. A refusal names field "name".
func ParseName(s string) (Name, error) { return parseName("name", s) }

func parseName(field, s string) (Name, error) {
	n := Name{Dataset: s}
	if i := strings.IndexAny(s, "@#"); i >= 0 {
		n.Dataset, n.Short, n.Kind = s[:i], s[i+1:], KindSnapshot
		if s[i] == '#' {
			n.Kind = KindBookmark
		}
	}
	parts := strings.Split(n.Dataset, "/")
	ok := len(s) <= maxName && len(parts) <= maxDepth && letter(s) && (n.Kind == KindDataset || part(n.Short))
	for _, p := range parts {
		ok = ok && part(p)
	}
	if !ok {
		return Name{}, errdefs.Field(field, shortened(s), acceptedName)
	}
	return n, nil
}

// parseKind is parseName for one kind of name.
func parseKind(field, s string, kind Kind, accepted string) (Name, error) {
	n, err := parseName(field, s)
	if err == nil && n.Kind != kind {
		err = errdefs.Field(field, s, accepted)
	}
	return n, err
}

func parseDataset(field, s string) (Name, error) {
	return parseKind(field, s, KindDataset, "a dataset, pool[/part…]")
}

func parseSnapshot(field, s string) (Name, error) {
	return parseKind(field, s, KindSnapshot, "a snapshot, dataset@name")
}

func parseBookmark(field, s string) (Name, error) {
	return parseKind(field, s, KindBookmark, "a bookmark, dataset#name")
}

// part tells whether s can stand between two slashes, or behind an @ or a #.
func part(s string) bool {
	if s == "" || s == "." || s == ".." {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !alphanumeric(c) && !strings.ContainsRune("_-.: ", rune(c)) {
			return false
		}
	}
	return true
}

func alphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// letter tells whether s begins as a pool's name must.
func letter(s string) bool { return s != "" && alphanumeric(s[0]) && (s[0] < '0' || s[0] > '9') }

// checkTag checks the tag of a hold.
func checkTag(tag string) error {
	ok := tag != "" && len(tag) <= maxTag
	for i := range len(tag) {
		ok = ok && tag[i] > ' ' && tag[i] < 0x7f
	}
	if !ok {
		return errdefs.Field("tag", shortened(tag), "1 to 255 printable ASCII characters without spaces")
	}
	return nil
}

// checkProperty checks a property's name, user or native.
func checkProperty(name string) error {
	ok := name != "" && len(name) <= maxName && (alphanumeric(name[0]) || name[0] == ':')
	for i := range len(name) {
		c := name[i]
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.ContainsRune(":._-", rune(c)))
	}
	if !ok {
		return errdefs.Field("property", shortened(name), "a property's name: lower-case letters, digits, ':', '.', '_', '-'")
	}
	return nil
}

// maxValue is the length of the longest value of a property, bytes
// (ZFS_MAXPROPLEN less the final NUL).
const maxValue = 8191

// checkValue checks a property's value. Tabs and line ends would tear the
// listings apart in which everybody reads it.
func checkValue(name, value string) error {
	ok := len(value) <= maxValue
	for i := range len(value) {
		ok = ok && value[i] >= ' ' && value[i] != 0x7f
	}
	if !ok {
		return errdefs.Field(name, shortened(value), "at most "+strconv.Itoa(maxValue)+" bytes without control characters")
	}
	return nil
}

// maxShown is how much of a bad value an error repeats, bytes.
const maxShown = 300

func shortened(s string) string {
	if len(s) > maxShown {
		return strings.ToValidUTF8(s[:maxShown], "") + "…"
	}
	return s
}
