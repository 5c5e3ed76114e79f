package store

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// collection decodes the records of one collection into a draft.
type collection struct {
	// put decodes a record; on an error the draft is as it was.
	put func(d *cluster.Draft, id string, kv *mvccpb.KeyValue) error
	// drop takes a record out.
	drop func(d *cluster.Draft, id string)
	// broken, unless nil, puts what stands for a record that cannot be decoded:
	// left out, it would give way to what is there without a record.
	broken func(d *cluster.Draft, id string, kv *mvccpb.KeyValue)
}

// codec decodes everything under the prefix that a snapshot holds.
type codec struct {
	collections map[string]collection
}

func newCodec() codec {
	return codec{collections: map[string]collection{
		nodes:        records(func(d *cluster.Draft) *cluster.Table[*storev1.Node] { return d.Nodes }, message[storev1.Node]),
		statuses:     records(func(d *cluster.Draft) *cluster.Table[*storev1.NodeStatus] { return d.Statuses }, message[storev1.NodeStatus]),
		healths:      records(func(d *cluster.Draft) *cluster.Table[*storev1.NodeHealth] { return d.Healths }, message[storev1.NodeHealth]),
		vms:          records(func(d *cluster.Draft) *cluster.Table[*storev1.VM] { return d.VMs }, message[storev1.VM]),
		goneVMs:      records(func(d *cluster.Draft) *cluster.Table[*storev1.VM] { return d.GoneVMs }, message[storev1.VM]),
		operations:   records(func(d *cluster.Draft) *cluster.Table[*storev1.Operation] { return d.Operations }, message[storev1.Operation]),
		tasks:        records(func(d *cluster.Draft) *cluster.Table[*storev1.Task] { return d.Tasks }, message[storev1.Task]),
		plans:        records(func(d *cluster.Draft) *cluster.Table[*storev1.Plan] { return d.Plans }, message[storev1.Plan]),
		joinTokens:   records(func(d *cluster.Draft) *cluster.Table[*storev1.JoinToken] { return d.JoinTokens }, message[storev1.JoinToken]),
		replicas:     records(func(d *cluster.Draft) *cluster.Table[*storev1.Replica] { return d.Replicas }, message[storev1.Replica]),
		principals:   standIn(func(d *cluster.Draft) *cluster.Table[*storev1.Principal] { return d.Principals }, principal, brokenPrincipal),
		roles:        standIn(func(d *cluster.Draft) *cluster.Table[*storev1.Role] { return d.Roles }, role, brokenRole),
		tenants:      records(func(d *cluster.Draft) *cluster.Table[*storev1.Tenant] { return d.Tenants }, jsonMessage[storev1.Tenant]),
		apiKeys:      records(func(d *cluster.Draft) *cluster.Table[*storev1.APIKey] { return d.APIKeys }, apiKey),
		keyUses:      records(func(d *cluster.Draft) *cluster.Table[*storev1.KeyUse] { return d.KeyUses }, message[storev1.KeyUse]),
		auditHeads:   records(func(d *cluster.Draft) *cluster.Table[*storev1.AuditHead] { return d.AuditHeads }, message[storev1.AuditHead]),
		nodeCeph:     records(func(d *cluster.Draft) *cluster.Table[*storev1.NodeCeph] { return d.Ceph }, message[storev1.NodeCeph]),
		definitions:  records(func(d *cluster.Draft) *cluster.Table[*storev1.Definition] { return d.Definitions }, message[storev1.Definition]),
		lostCopies:   records(func(d *cluster.Draft) *cluster.Table[*storev1.LostCopy] { return d.LostCopies }, message[storev1.LostCopy]),
		nodeZFS:      records(func(d *cluster.Draft) *cluster.Table[*storev1.NodeZFS] { return d.ZFS }, message[storev1.NodeZFS]),
		replications: records(func(d *cluster.Draft) *cluster.Table[*storev1.ReplicationJob] { return d.Replications }, message[storev1.ReplicationJob]),
		policies:     storagePolicies(),
		inUse:        records(func(d *cluster.Draft) *cluster.Table[string] { return d.InUse }, text),
		certificates: records(func(d *cluster.Draft) *cluster.Table[*storev1.Certificate] { return d.Certificates }, message[storev1.Certificate]),
		revoked:      records(func(d *cluster.Draft) *cluster.Table[string] { return d.Revoked }, text),
		replicaStatuses: records(func(d *cluster.Draft) *cluster.Table[*storev1.ReplicaStatus] { return d.ReplicaStatuses },
			message[storev1.ReplicaStatus]),
		election: {put: putCandidate, drop: (*cluster.Draft).DeleteCandidate},
	}}
}

// apply brings one key's new value, or its end, into the draft. Keys of which a
// snapshot holds nothing are passed over. After an error the draft no longer
// holds the record, or holds what stands for a broken one.
func (c codec) apply(d *cluster.Draft, kv *mvccpb.KeyValue, deleted bool) error {
	rest := strings.TrimPrefix(string(kv.Key), prefix)
	switch rest {
	case "epoch":
		return putEpoch(d, kv, deleted)
	case "accessturn":
		putAccessTurn(d, kv, deleted)
		return nil
	case ca:
		return putCA(d, kv, deleted)
	case restored:
		return putRestore(d, kv, deleted)
	case lastBackup:
		return putLastBackup(d, kv, deleted)
	}
	name, id, ok := strings.Cut(rest, "/")
	if !ok {
		return nil
	}
	col, ok := c.collections[name+"/"]
	switch {
	case !ok:
		return nil
	case deleted:
		col.drop(d, id)
		return nil
	}
	err := col.put(d, id, kv)
	switch {
	case err == nil:
		return nil
	case col.broken == nil:
		col.drop(d, id)
	default:
		col.broken(d, id, kv)
	}
	return fmt.Errorf("decoding %s: %w", kv.Key, err)
}

// storagePolicies is a collection of two kinds, told apart by their ids.
func storagePolicies() collection {
	kinds := map[string]collection{
		retentionPolicies: records(func(d *cluster.Draft) *cluster.Table[*storev1.RetentionPolicy] { return d.RetentionPolicies },
			message[storev1.RetentionPolicy]),
		replicationPolicies: records(func(d *cluster.Draft) *cluster.Table[*storev1.ReplicationPolicy] { return d.ReplicationPolicies },
			message[storev1.ReplicationPolicy]),
	}
	find := func(id string) (collection, string, bool) {
		kind, name, _ := strings.Cut(id, "/")
		col, ok := kinds[kind+"/"]
		return col, name, ok
	}
	return collection{
		put: func(d *cluster.Draft, id string, kv *mvccpb.KeyValue) error {
			if col, name, ok := find(id); ok {
				return col.put(d, name, kv)
			}
			return nil
		},
		drop: func(d *cluster.Draft, id string) {
			if col, name, ok := find(id); ok {
				col.drop(d, name)
			}
		},
	}
}

// records is a collection whose records stand in one table of the draft.
func records[T any](table func(*cluster.Draft) *cluster.Table[T], decode func([]byte) (T, error)) collection {
	return collection{
		put: func(d *cluster.Draft, id string, kv *mvccpb.KeyValue) error {
			value, err := decode(kv.Value)
			if err != nil {
				return err
			}
			table(d).Put(id, value, kv.ModRevision)
			return nil
		},
		drop: func(d *cluster.Draft, id string) { table(d).Delete(id) },
	}
}

// standIn is records whose broken ones are replaced.
func standIn[T any](table func(*cluster.Draft) *cluster.Table[T], decode func([]byte) (T, error), broken func() T) collection {
	c := records(table, decode)
	c.broken = func(d *cluster.Draft, id string, kv *mvccpb.KeyValue) { table(d).Put(id, broken(), kv.ModRevision) }
	return c
}

// putCandidate never fails: an election key counts whatever its value says.
func putCandidate(d *cluster.Draft, id string, kv *mvccpb.KeyValue) error {
	leader, err := message[storev1.Leader](kv.Value)
	if err != nil {
		leader = &storev1.Leader{}
	}
	d.PutCandidate(id, leader, kv.CreateRevision)
	return nil
}

// putEpoch keeps the epoch that was where the new one cannot be read, since no
// term may ever go back.
func putEpoch(d *cluster.Draft, kv *mvccpb.KeyValue, deleted bool) error {
	if deleted {
		return nil
	}
	epoch, err := strconv.ParseUint(string(kv.Value), 10, 64)
	if err != nil {
		return fmt.Errorf("decoding %s: %w", kv.Key, err)
	}
	d.SetEpoch(epoch)
	return nil
}

// putCA keeps the CAs that were where the new record cannot be read: nothing is
// trusted, and nothing no longer trusted, by mistake.
func putCA(d *cluster.Draft, kv *mvccpb.KeyValue, deleted bool) error {
	if deleted {
		d.SetCA(nil, 0)
		return nil
	}
	record, err := message[storev1.CARotation](kv.Value)
	if err != nil {
		return fmt.Errorf("decoding %s: %w", kv.Key, err)
	}
	d.SetCA(record, kv.ModRevision)
	return nil
}

// putAccessTurn has no use for the value: whose turn it was does not matter.
func putAccessTurn(d *cluster.Draft, kv *mvccpb.KeyValue, deleted bool) {
	if deleted {
		d.SetAccessTurn(0)
		return
	}
	d.SetAccessTurn(kv.ModRevision)
}

// putRestore takes a record that cannot be read for a restore that nobody has
// confirmed: nothing is begun that could be another cluster's to do.
func putRestore(d *cluster.Draft, kv *mvccpb.KeyValue, deleted bool) error {
	if deleted {
		d.SetRestore(nil, 0)
		return nil
	}
	record, err := message[storev1.Restore](kv.Value)
	if err != nil {
		d.BrokenRestore(kv.ModRevision)
		return fmt.Errorf("decoding %s: %w", kv.Key, err)
	}
	d.SetRestore(record, kv.ModRevision)
	return nil
}

func putLastBackup(d *cluster.Draft, kv *mvccpb.KeyValue, deleted bool) error {
	if deleted {
		d.SetLastBackup(nil, 0)
		return nil
	}
	record, err := message[storev1.BackupNote](kv.Value)
	if err != nil {
		return fmt.Errorf("decoding %s: %w", kv.Key, err)
	}
	d.SetLastBackup(record, kv.ModRevision)
	return nil
}

func message[M any, P interface {
	*M
	proto.Message
}](value []byte) (P, error) {
	m := P(new(M))
	if err := proto.Unmarshal(value, m); err != nil {
		return nil, err
	}
	return m, nil
}

// jsonMessage decodes a record in JSON, with the field names of its proto file.
func jsonMessage[M any, P interface {
	*M
	proto.Message
}](value []byte) (P, error) {
	m := P(new(M))
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(value, m); err != nil {
		return nil, err
	}
	return m, nil
}

// principal decodes a principal. The text of a key, which the contract's manual
// set-up puts here, is nowhere kept: its hash takes its place.
func principal(value []byte) (*storev1.Principal, error) {
	p, err := jsonMessage[storev1.Principal](value)
	if err != nil {
		return nil, undisclosed(err)
	}
	p.Plain = false // it is ours to say
	if id := p.GetApikeyId(); id != "" && !keyHash(id) && !keyID(id) {
		p.ApikeyId, p.Plain = HashKey(id), true
	}
	return p, nil
}

// Unreadable is the tenant of a principal whose record cannot be decoded. No
// tenant can be called so.
const Unreadable = "(unreadable)"

// brokenPrincipal may do nothing: its roles are lost, a founder is none any
// more, and what a token grants it reaches nobody's things.
func brokenPrincipal() *storev1.Principal { return &storev1.Principal{Tenant: Unreadable} }

// brokenRole grants nothing, also where a built-in role has its name.
func brokenRole() *storev1.Role { return &storev1.Role{} }

var inLine = regexp.MustCompile(`\(line \d+:\d+\)`)

// undisclosed says where a record is broken and shows nothing of it: there may
// be a key's text in it, which must not come into a log.
func undisclosed(err error) error {
	return errors.New(strings.TrimSpace("it is not the JSON of such a record " + inLine.FindString(err.Error())))
}

// HashedKey begins an apikey_id that is the hash of the key's text, in hex.
const HashedKey = "sha256:"

// HashKey gives what stands in a principal's apikey_id in the place of a key's
// text: HashedKey and the SHA-256 of the text, in hex. Space around the text,
// which editors and shells add, is no part of it.
func HashKey(text string) string {
	sum := sha256.Sum256([]byte(strings.TrimSpace(text)))
	return HashedKey + hex.EncodeToString(sum[:])
}

// keyHash tells what HashKey gave from a key's text.
func keyHash(s string) bool {
	digits, ok := strings.CutPrefix(s, HashedKey)
	return ok && len(digits) == 2*sha256.Size && strings.Trim(digits, hexDigits) == ""
}

// keyID tells the id of a key that we made from a key's text.
func keyID(s string) bool { return len(s) == 16 && strings.Trim(s, hexDigits) == "" }

const hexDigits = "0123456789abcdef"

// role decodes a role: an object, or the bare list of its permissions.
func role(value []byte) (*storev1.Role, error) {
	if strings.HasPrefix(strings.TrimSpace(string(value)), "[") {
		var list []string
		if err := json.Unmarshal(value, &list); err != nil {
			return nil, err
		}
		return &storev1.Role{Permissions: list}, nil
	}
	return jsonMessage[storev1.Role](value)
}

// apiKey decodes a key's record. A plain key, which the contract's manual
// set-up puts there, becomes a record that has nothing of it but its hash.
func apiKey(value []byte) (*storev1.APIKey, error) {
	text := strings.TrimSpace(string(value))
	if !strings.HasPrefix(text, "{") {
		hash := strings.TrimPrefix(HashKey(text), HashedKey)
		return &storev1.APIKey{Sha256: hash, Source: "etcd", Plain: true, MustRotate: true}, nil
	}
	k, err := jsonMessage[storev1.APIKey](value)
	if err != nil {
		return nil, undisclosed(err)
	}
	k.Plain = false // it is ours to say
	return k, nil
}

func text(value []byte) (string, error) { return string(value), nil }
