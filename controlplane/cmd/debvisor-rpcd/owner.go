package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/debvisor/debvisor/controlplane/internal/members"
)

const ownerNote = "Called by root for a directory that is somebody else's, such as the one of the package debvisor-rpcd, it becomes that user first,\n" +
	"so that the service can read what it makes."

// settle fills in what is the host's to say, and becomes the data directory's
// owner.
func settle(home members.Home, o *members.Options) error {
	if err := nameAfterHost(o); err != nil {
		return err
	}
	return becomeOwner(home.Dir)
}

func nameAfterHost(o *members.Options) error {
	if o.Name != "" {
		return nil
	}
	name, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("asking for the host's name: %w", err)
	}
	o.Name = name
	return nil
}

// owner is whom a directory belongs to.
type owner struct{ uid, gid int }

// ownerOf is the owner of a directory; root's where it is not there.
func ownerOf(dir string) (owner, error) {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return owner{}, nil
	}
	if err != nil {
		return owner{}, fmt.Errorf("looking at the data directory: %w", err)
	}
	of, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return owner{}, fmt.Errorf("the file system does not tell whose %s is", dir)
	}
	return owner{int(of.Uid), int(of.Gid)}, nil
}

// becomeOwner has root become the owner of a directory, with its group and no
// other, for good. Nothing is done for others, for a directory that is root's
// and for one that is not there.
func becomeOwner(dir string) error {
	of, err := ownerOf(dir)
	if err != nil || os.Geteuid() != 0 || of.uid == 0 {
		return err
	}
	// The groups and the group first: afterwards we may not any more.
	err = errors.Join(syscall.Setgroups([]int{of.gid}), syscall.Setgid(of.gid), syscall.Setuid(of.uid))
	if err != nil {
		return fmt.Errorf("becoming the owner of %s (user %d): %w", dir, of.uid, err)
	}
	return nil
}

// give gives a directory that root has filled to whom it belonged before, for
// what has to read files that are root's alone.
func (o owner) give(dir string) error {
	if os.Geteuid() != 0 || o.uid == 0 {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, o.uid, o.gid)
	})
}

// wrapKeyFile is where the key is if no flag says so: where the environment
// says, else the credential.
func wrapKeyFile() string {
	return cmp.Or(os.Getenv("RPC_WRAP_KEY_FILE"), wrapCredential())
}

// wrapCredential is the file of the credential "wrap.key"; empty: systemd has
// loaded none.
func wrapCredential() string {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return ""
	}
	file := filepath.Join(dir, "wrap.key")
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return file // also if it cannot be read, which is then told
}
