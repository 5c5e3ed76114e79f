package backup

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// keyPrefix begins a recovery key's file, so that nobody takes it for another's.
const keyPrefix = "dvrecovery_"

// ReadKey reads a recovery key. Its error names the file and what it should hold.
func ReadKey(path string) (*ecdh.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the recovery key: %w", err)
	}
	text, ok := strings.CutPrefix(strings.TrimSpace(string(data)), keyPrefix)
	raw, err := hex.DecodeString(text)
	if !ok || err != nil {
		return nil, fmt.Errorf("%s is no recovery key: it should hold %s and 64 hex digits", path, keyPrefix)
	}
	key, err := ecdh.X25519().NewPrivateKey(raw)
	if err != nil {
		return nil, fmt.Errorf("%s is no recovery key: %w", path, err)
	}
	return key, nil
}

// ReadOrMakeKey reads a recovery key, or makes one, readable for its owner only,
// where there is no such file.
func ReadOrMakeKey(path string) (key *ecdh.PrivateKey, made bool, err error) {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		key, err := ReadKey(path)
		return key, false, err
	}
	key, err = ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, false, fmt.Errorf("make a recovery key: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return nil, false, fmt.Errorf("make a recovery key: %w", err)
	}
	_, err = f.WriteString(keyPrefix + hex.EncodeToString(key.Bytes()) + "\n")
	if err = errors.Join(err, f.Sync(), f.Close(), syncDirOf(path)); err != nil {
		return nil, false, fmt.Errorf("make a recovery key: %w", errors.Join(err, os.Remove(path)))
	}
	return key, true, nil
}
