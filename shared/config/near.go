package config

import "strings"

// suggestion says what would be accepted in the place of a key that is not there.
func (t *Table) suggestion(name string) string {
	best, least := "", 1+max(1, len(name)/3)
	same := strings.ToLower(strings.ReplaceAll(name, "-", "_"))
	for _, k := range t.keys {
		if d := distance(same, k.Name); d < least {
			best, least = k.Name, d
		}
	}
	if best != "" {
		return "did you mean " + best + "?"
	}
	return t.program + " config show lists all keys"
}

// distance is how many letters must be changed, added, taken away or swapped
// with the next to make one word of the other.
func distance(a, b string) int {
	older, old := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range old {
		old[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			change := 1
			if a[i] == b[j] {
				change = 0
			}
			row[j+1] = min(old[j]+change, old[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], older[j-1]+1)
			}
		}
		older, old = old, row
	}
	return old[len(b)]
}
