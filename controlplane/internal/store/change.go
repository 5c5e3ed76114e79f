package store

import (
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/shared/task"
)

// MaxRecordBytes is the most that one record may hold.
const MaxRecordBytes = 1 << 20

// MaxChangeOps is the most puts and deletes, and the most conditions, that one
// Change may hold. The embedded etcd is configured to take as many; an outside
// one must be (--max-txn-ops).
const MaxChangeOps = 1000

// Change is one etcd transaction. It is applied whole, or not at all. One
// without puts and deletes is a linearizable question: whether its fence and
// its conditions hold now.
type Change struct {
	// Fence, when set, lets the change through only while its term leads.
	Fence *Fence
	// Require are the conditions that must all hold.
	Require []Condition
	// Puts and Deletes name each key at most once between them.
	Puts    []Put
	Deletes []string
}

// Fence ties a change to leadership: it passes only while the election key
// exists as it was created in that term, in that term's epoch.
type Fence struct {
	// Key is the leader's election key.
	Key  string
	Term task.Term
}

// Condition is what must be true of one key for a change to be applied.
type Condition struct {
	key         string
	modRevision int64
}

// Absent requires that there is no such key.
func Absent(key string) Condition { return Condition{key: key} }

// Unchanged requires that the key was last changed at that revision. A
// revision of 0 is the same as Absent.
func Unchanged(key string, modRevision int64) Condition {
	return Condition{key: key, modRevision: modRevision}
}

// Put is one record to write.
type Put struct {
	key   string
	value []byte
	err   error
}

// PutProto writes a message as the record at key.
func PutProto(key string, m proto.Message) Put {
	value, err := proto.Marshal(m)
	if err != nil {
		err = fmt.Errorf("encoding %s: %w", key, err)
	}
	return Put{key: key, value: value, err: err}
}

// PutJSON writes a value in JSON as the record at key; a message with the field
// names of its proto file.
func PutJSON(key string, v any) Put {
	var value []byte
	var err error
	if m, ok := v.(proto.Message); ok {
		value, err = protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	} else {
		value, err = json.Marshal(v)
	}
	if err != nil {
		err = fmt.Errorf("encoding %s: %w", key, err)
	}
	return Put{key: key, value: value, err: err}
}

// PutString writes a string as the record at key.
func PutString(key, value string) Put {
	return Put{key: key, value: []byte(value)}
}
