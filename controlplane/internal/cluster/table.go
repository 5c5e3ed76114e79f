package cluster

import "maps"

// Table is one collection of a Draft.
type Table[T any] struct {
	entries map[string]Entry[T]
	owned   bool
	// changed, when set, is told each change: what was there and what is.
	changed func(key string, was T, had bool, is T, has bool)
}

func newTable[T any](entries map[string]Entry[T], changed func(string, T, bool, T, bool)) *Table[T] {
	return &Table[T]{entries: entries, changed: changed}
}

// Put sets a record, which must never be changed afterwards.
func (t *Table[T]) Put(key string, value T, modRevision int64) {
	t.own()
	was, had := t.entries[key]
	t.entries[key] = Entry[T]{Value: value, ModRevision: modRevision}
	if t.changed != nil {
		t.changed(key, was.Value, had, value, true)
	}
}

// Delete takes a record out; one that is not there is no error.
func (t *Table[T]) Delete(key string) {
	was, had := t.entries[key]
	if !had {
		return
	}
	t.own()
	delete(t.entries, key)
	if t.changed != nil {
		var none T
		t.changed(key, was.Value, true, none, false)
	}
}

func (t *Table[T]) own() {
	if !t.owned {
		t.entries, t.owned = maps.Clone(t.entries), true
	}
}
