package tunnel

import (
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
)

// TestSeveralStreamsSayTheSame: streams that end at once all leave word, none is in another's way, and nothing else is left.
func TestSeveralStreamsSayTheSame(t *testing.T) {
	path := filepath.Join(t.TempDir(), "broken")
	var group sync.WaitGroup
	for i := range 16 {
		group.Go(func() {
			for range 50 {
				if err := writeFile(path, strconv.Itoa(i)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	if i, err := strconv.Atoi(readFile(path)); err != nil || i > 15 {
		t.Errorf("it says %q", readFile(path))
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
		t.Errorf("left are %v, %v", files, err)
	}
}
