package obs

import "sync"

// maxWords is how many values of one label are told apart.
const maxWords = 64

// Other stands for values of a label that are not told apart.
const Other = "other"

// Words keeps a label's values few and plain: those of our own code, such as
// an error's. It is safe for use by many goroutines; its zero value is ready.
type Words struct {
	mu   sync.RWMutex
	seen map[string]struct{}
}

// Word gives the value to use for a word.
func (w *Words) Word(word string) string {
	w.mu.RLock()
	_, ok := w.seen[word]
	w.mu.RUnlock()
	if ok {
		return word
	}
	if !plain(word) {
		return Other
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.seen[word]; !ok && len(w.seen) >= maxWords {
		return Other
	}
	if w.seen == nil {
		w.seen = map[string]struct{}{}
	}
	w.seen[word] = struct{}{}
	return word
}

// plain tells whether a word is of the kind that stands in our code.
func plain(word string) bool {
	if word == "" || len(word) > 48 {
		return false
	}
	for _, c := range []byte(word) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (c < '0' || c > '9') && c != '_' && c != '-' && c != '.' {
			return false
		}
	}
	return true
}
