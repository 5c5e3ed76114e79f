package accessfile

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/identity"
	"github.com/debvisor/debvisor/shared/yamlfile"
)

// What the contract's messages accept (access.proto); a test holds them against
// each other.
const (
	maxRoles       = 64
	maxPermissions = 1000
	maxStorage     = 256
	maxRate        = 10_000_000
	maxType        = 32
	maxDescription = 256
	maxPlace       = 255
)

var (
	namePattern       = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	permissionPattern = regexp.MustCompile(`^[a-z0-9-]+(:[a-z0-9-]+)*(:\*)?$`)
	keyIDPattern      = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	hashPattern       = regexp.MustCompile(`^[0-9a-f]{64}$`)
	backendPattern    = regexp.MustCompile(`^(zfs|rbd)$`)
	// Printable ASCII without space, '@' and '#', and without '/' but between names.
	partPattern = regexp.MustCompile(`^[!"$-.0-?A-~]{1,255}$`)
	pathPattern = regexp.MustCompile(`^[!"$-.0-?A-~]+(/[!"$-.0-?A-~]+)*$`)
)

const (
	nameAccepted       = "1 to 63 of a-z, 0-9, '.', '_' and '-', the first a letter or a digit"
	hashAccepted       = "64 lower-case hex digits: what sha256sum prints of the whole key"
	permissionAccepted = "a permission such as vm:list, or vm:* for all below vm"
)

// Parse reads the content of an access file; name is what errors call it. It is
// taken whole or not at all: the error is "NAME:LINE: reason", and where a value
// is at fault it names the field, the value and what would be accepted.
func Parse(name string, content []byte) (*Policy, error) {
	if len(content) > MaxBytes {
		return nil, fmt.Errorf("%s: it has more than %d bytes", name, MaxBytes)
	}
	root, err := yamlfile.Document(name, content)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(content)
	p := &parser{reader: reader{file: name}, policy: newPolicy(hex.EncodeToString(sum[:]))}
	if root != nil {
		p.file(root)
	}
	if p.fault != nil {
		return nil, p.fault
	}
	return p.policy, nil
}

// parser fills one policy.
type parser struct {
	reader
	policy *Policy
}

func (p *parser) file(root *yaml.Node) {
	p.fields(root, "the file", map[string]func(*yaml.Node){
		"principals": p.principals,
		"roles":      p.roles,
		"tenants":    p.tenants,
		"keys":       p.keys,
	}, "principals, roles, tenants, keys")
}

func (p *parser) principals(n *yaml.Node) {
	for _, e := range p.entries(n, "principals") {
		p.principalName(e.key, "the name of a principal")
		field := "principal " + yamlfile.Clip(e.key.Value)
		record := &storev1.Principal{}
		p.fields(e.value, field, map[string]func(*yaml.Node){
			"type":        func(n *yaml.Node) { record.Type = p.short(n, field+": type", maxType) },
			"roles":       func(n *yaml.Node) { record.Roles = p.matches(n, field+": roles", maxRoles, namePattern, nameAccepted) },
			"permissions": func(n *yaml.Node) { record.Permissions = p.permissions(n, field) },
			"tenant":      func(n *yaml.Node) { record.Tenant = p.match(n, field+": tenant", namePattern, nameAccepted) },
			"limit":       func(n *yaml.Node) { record.Limit = p.limit(n, field) },
		}, "type, roles, permissions, tenant, limit")
		p.policy.Principals[e.key.Value] = record
	}
}

// principalName gives a principal's name, as certificates have it.
func (p *parser) principalName(n *yaml.Node, field string) string {
	const accepted = "1 to 128 printable ASCII characters without space, ':' and '/'"
	name := p.text(n, field, accepted)
	if p.fault == nil && identity.CheckPrincipal(name) != nil {
		p.refuse(n, field, accepted)
	}
	return name
}

func (p *parser) permissions(n *yaml.Node, of string) []string {
	return p.matches(n, of+": permissions", maxPermissions, permissionPattern, permissionAccepted)
}

func (p *parser) limit(n *yaml.Node, of string) *storev1.RateLimit {
	field := of + ": limit"
	limit := &storev1.RateLimit{}
	p.fields(n, field, map[string]func(*yaml.Node){
		"per_minute": func(n *yaml.Node) { limit.PerMinute = p.number(n, field+": per_minute") },
		"burst":      func(n *yaml.Node) { limit.Burst = p.number(n, field+": burst") },
		"unlimited":  func(n *yaml.Node) { limit.Unlimited = p.truth(n, field+": unlimited") },
	}, "per_minute, burst, unlimited")
	if limit.GetUnlimited() && (limit.GetPerMinute() != 0 || limit.GetBurst() != 0) {
		p.failf(n, "%s: unlimited goes with neither per_minute nor burst", field)
	}
	return limit
}

func (p *parser) number(n *yaml.Node, field string) uint32 {
	accepted := fmt.Sprintf("a whole number from 0 to %d", maxRate)
	number, err := strconv.ParseUint(p.text(n, field, accepted), 10, 32)
	if p.fault == nil && (err != nil || number > maxRate) {
		p.refuse(n, field, accepted)
	}
	return uint32(number)
}

func (p *parser) truth(n *yaml.Node, field string) bool {
	switch p.text(n, field, "true or false") {
	case "true":
		return true
	case "false":
	default:
		p.refuse(n, field, "true or false")
	}
	return false
}

func (p *parser) roles(n *yaml.Node) {
	for _, e := range p.entries(n, "roles") {
		p.match(e.key, "the name of a role", namePattern, nameAccepted)
		field := "role " + yamlfile.Clip(e.key.Value)
		record := &storev1.Role{}
		p.fields(e.value, field, map[string]func(*yaml.Node){
			"permissions": func(n *yaml.Node) { record.Permissions = p.permissions(n, field) },
			"limit":       func(n *yaml.Node) { record.Limit = p.limit(n, field) },
		}, "permissions, limit")
		p.policy.Roles[e.key.Value] = record
	}
}

// place is where a tenant's storage is.
type place struct {
	backend, pool, name string
}

func (w place) String() string {
	if w.name == "" {
		return w.backend + " pool " + w.pool
	}
	return w.backend + " " + w.pool + "/" + w.name
}

// holding is that a tenant has a place, and where the file says so.
type holding struct {
	tenant string
	at     *yaml.Node
}

func (p *parser) tenants(n *yaml.Node) {
	held := map[place]holding{}
	var order []place
	for _, e := range p.entries(n, "tenants") {
		p.match(e.key, "the name of a tenant", namePattern, nameAccepted)
		field := "tenant " + yamlfile.Clip(e.key.Value)
		record := &storev1.Tenant{}
		p.fields(e.value, field, map[string]func(*yaml.Node){
			"description": func(n *yaml.Node) { record.Description = p.short(n, field+": description", maxDescription) },
			"storage": func(n *yaml.Node) {
				for _, item := range p.list(n, field+": storage", maxStorage) {
					s := p.storage(item, field)
					record.Storage = append(record.Storage, s)
					where := place{s.GetBackend(), s.GetPool(), s.GetName()}
					if other, ok := held[where]; ok {
						p.failf(item, "%s: storage: %s is tenant %s's already, in line %d", field, where, other.tenant, other.at.Line)
					}
					held[where] = holding{tenant: e.key.Value, at: item}
					order = append(order, where)
				}
			},
		}, "description, storage")
		p.policy.Tenants[e.key.Value] = record
	}
	p.apart(order, held)
}

// apart refuses storage that lies within other storage.
func (p *parser) apart(order []place, held map[place]holding) {
	for _, where := range order {
		inner := held[where]
		for above := where; above.name != ""; {
			above.name = above.name[:max(0, strings.LastIndexByte(above.name, '/'))]
			if outer, ok := held[above]; ok {
				p.failf(inner.at, "tenant %s: storage: %s lies within %s, which is tenant %s's (line %d)",
					inner.tenant, where, above, outer.tenant, outer.at.Line)
			}
		}
	}
}

func (p *parser) storage(n *yaml.Node, of string) *storev1.TenantStorage {
	field := of + ": storage"
	s := &storev1.TenantStorage{}
	name := &yaml.Node{}
	p.fields(n, field, map[string]func(*yaml.Node){
		"backend": func(n *yaml.Node) { s.Backend = p.match(n, field+": backend", backendPattern, "zfs or rbd") },
		"pool": func(n *yaml.Node) {
			s.Pool = p.match(n, field+": pool", partPattern, "a pool's name, without '/' and what lies below it")
		},
		"name": func(n *yaml.Node) {
			name = n
			s.Name = p.match(n, field+": name", pathPattern, "a dataset below the pool, or a namespace; without it the whole pool")
		},
	}, "backend, pool, name")
	switch {
	case s.GetBackend() == "":
		p.failf(n, "%s lacks its backend", field)
	case s.GetPool() == "":
		p.failf(n, "%s lacks its pool", field)
	case s.GetBackend() == "rbd" && strings.Contains(s.GetName(), "/"):
		p.refuse(name, field+": name", "a namespace of the pool, without '/'")
	case len(s.GetName()) > maxPlace:
		p.refuse(name, field+": name", fmt.Sprintf("at most %d characters", maxPlace))
	}
	return s
}

func (p *parser) keys(n *yaml.Node) {
	p.secret = true
	defer func() { p.secret = false }()
	owners := map[string]string{}
	for _, e := range p.entries(n, "keys") {
		p.keyID(e.key)
		field := "key " + yamlfile.Clip(e.key.Value)
		record := &storev1.APIKey{Source: Source}
		p.fields(e.value, field, map[string]func(*yaml.Node){
			"sha256":      func(n *yaml.Node) { record.Sha256 = p.match(n, field+": sha256", hashPattern, hashAccepted) },
			"principal":   func(n *yaml.Node) { record.Principal = p.principalName(n, field+": principal") },
			"description": func(n *yaml.Node) { record.Description = p.short(n, field+": description", maxDescription) },
			"expires":     func(n *yaml.Node) { record.ExpiresAt = p.time(n, field+": expires") },
		}, "sha256, principal, description, expires")
		switch {
		case p.fault != nil:
			return
		case record.GetSha256() == "":
			p.failf(e.key, "%s lacks its sha256", field)
		case record.GetPrincipal() == "":
			p.failf(e.key, "%s lacks its principal", field)
		}
		if other, ok := owners[record.GetSha256()]; ok {
			p.failf(e.key, "%s has the same sha256 as key %s", field, other)
		}
		owners[record.GetSha256()] = e.key.Value
		p.policy.Keys[e.key.Value] = record
	}
}

// keyID gives the id of a key, which is not the key.
func (p *parser) keyID(n *yaml.Node) {
	const accepted = "1 to 128 letters, digits, '.', '_' and '-', such as the 16 hex digits after dvk_"
	p.match(n, "the id of a key", keyIDPattern, accepted)
	if strings.HasPrefix(n.Value, "dvk_") {
		p.failf(n, "the id of a key begins with dvk_: if that is the key itself, revoke it; expected %s", accepted)
	}
}

func (p *parser) time(n *yaml.Node, field string) *timestamppb.Timestamp {
	const accepted = "a time such as 2027-01-31T00:00:00Z"
	at, err := time.Parse(time.RFC3339, p.text(n, field, accepted))
	if err != nil {
		p.refuse(n, field, accepted)
		return nil
	}
	return timestamppb.New(at)
}
