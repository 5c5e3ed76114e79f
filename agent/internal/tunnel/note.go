package tunnel

import "path/filepath"

// Note leaves word for the agent's next process, for as long as this end is not
// closed. It is in memory only, so that it costs a guest that waits no time: a
// host's end is its end too.
func (t *Tunnel) Note(name, text string) error { return writeFile(t.layout.note(name), text) }

// Noted is what Note was last told under the name; empty: nothing.
func (t *Tunnel) Noted(name string) string { return readFile(t.layout.note(name)) }

func (l layout) note(name string) string { return filepath.Join(l.dir, "note-"+name) }
