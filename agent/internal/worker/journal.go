package worker

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/debvisor/debvisor/shared/task"
)

var (
	metaBucket = []byte("meta")
	taskBucket = []byte("tasks")
	// vmBucket holds the newest placement told of each VM, by its UUID.
	vmBucket   = []byte("placements")
	keyJournal = []byte("journal_id")
	keyTerm    = []byte("highest_term")
)

// openWait bounds the wait for the journal's lock: a former agent that is
// still ending has it.
const openWait = 10 * time.Second

// journal is the file. Every write is on disk when it returns.
type journal struct {
	db *bolt.DB
	id string
}

// openJournal opens the journal, or makes it with a random id.
func openJournal(path string) (*journal, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: openWait})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("journal %s is in use: another agent runs with this data directory", path)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the journal %s: %w", path, err)
	}
	j := &journal{db: db}
	if err := db.Update(j.prepare); err != nil {
		return nil, errors.Join(fmt.Errorf("preparing the journal %s: %w", path, err), db.Close())
	}
	return j, nil
}

func (j *journal) prepare(tx *bolt.Tx) error {
	for _, name := range [][]byte{taskBucket, vmBucket} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	meta, err := tx.CreateBucketIfNotExists(metaBucket)
	if err != nil {
		return err
	}
	if id := meta.Get(keyJournal); id != nil {
		j.id = string(id)
		return nil
	}
	random := make([]byte, 16)
	_, _ = rand.Read(random) // never fails
	j.id = hex.EncodeToString(random)
	return meta.Put(keyJournal, []byte(j.id))
}

func (j *journal) close() error { return j.db.Close() }

func (j *journal) setTerm(t task.Term) error {
	value, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return j.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(metaBucket).Put(keyTerm, value) })
}

func (j *journal) put(e *entry) error {
	value, err := e.encode()
	if err != nil {
		return err
	}
	return j.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(taskBucket).Put([]byte(e.id), value) })
}

func (j *journal) drop(ids []string) error {
	return j.db.Update(func(tx *bolt.Tx) error {
		for _, id := range ids {
			if err := tx.Bucket(taskBucket).Delete([]byte(id)); err != nil {
				return err
			}
		}
		return nil
	})
}

// load reads all that the journal holds.
func (j *journal) load() (term task.Term, entries map[string]*entry, err error) {
	entries = map[string]*entry{}
	err = j.db.View(func(tx *bolt.Tx) error {
		if value := tx.Bucket(metaBucket).Get(keyTerm); value != nil {
			if err := json.Unmarshal(value, &term); err != nil {
				return fmt.Errorf("highest term: %w", err)
			}
		}
		return tx.Bucket(taskBucket).ForEach(func(key, value []byte) error {
			e, err := decodeEntry(string(key), value)
			if err != nil {
				return fmt.Errorf("task %s: %w", key, err)
			}
			entries[e.id] = e
			return nil
		})
	})
	if err != nil {
		err = fmt.Errorf("reading the journal: %w", err)
	}
	return term, entries, err
}
