package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/debvisor/debvisor/integration/lab"
	"github.com/debvisor/debvisor/shared/identity"
)

// secret notes what must be found nowhere when the tests have ended: a key, a token, or what cannot be told from one.
func (c *cluster) secret(text string) {
	c.t.Helper()
	if len(text) < 16 {
		c.t.Fatalf("%q is too short to be looked for", text)
	}
	c.shared.secrets = append(c.shared.secrets, text)
}

// leaks looks for the secrets of all tests, and for private keys, in the replicas' and agents' logs, in what they print, in the
// audit logs and in etcd.
func (s *shared) leaks() error {
	secrets := append(s.lab.Tokens(), s.secrets...)
	secrets = append(secrets, "PRIVATE KEY")
	places, err := s.told()
	if err != nil {
		return fmt.Errorf("looking for secrets: %w", err)
	}
	var found []error
	size := 0
	for name, content := range places {
		size += len(content)
		for _, secret := range secrets {
			if bytes.Contains(content, []byte(core(secret))) {
				found = append(found, fmt.Errorf("%s holds the secret %.12s…", name, secret))
			}
		}
	}
	if size == 0 {
		found = append(found, errors.New("nothing was found to look for secrets in"))
	}
	fmt.Printf("looked for %d secrets in %d places, %d MiB\n", len(secrets), len(places), size>>20)
	return errors.Join(found...)
}

// core is what of an API key or a join token is secret: without its prefix and its id, which may be told.
func core(secret string) string {
	for _, prefix := range []string{identity.APIKeyPrefix, identity.JoinTokenPrefix} {
		if parts := strings.Split(secret, "_"); strings.HasPrefix(secret, prefix) && len(parts) > 3 {
			return parts[2]
		}
	}
	return secret
}

// told is all that the lab's daemons have written down, by place.
func (s *shared) told() (map[string][]byte, error) {
	places := map[string][]byte{}
	err := filepath.WalkDir(filepath.Join(s.lab.Dir, "logs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		places[path], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	records, err := s.records(ctx)
	for key, value := range records {
		places["etcd's "+key] = value
	}
	return places, err
}

// records is all that etcd holds, asked of a replica that runs.
func (s *shared) records(ctx context.Context) (map[string][]byte, error) {
	var runs *lab.Replica
	for _, r := range s.lab.Replicas {
		if r.Process.Alive() && r.Process.Cont() == nil {
			runs = r
		}
	}
	if runs == nil {
		return nil, errors.New("no replica runs")
	}
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + runs.EtcdSocket()}, DialTimeout: 5 * time.Second, Context: ctx, Logger: zap.NewNop()})
	if err != nil {
		return nil, err
	}
	defer func() { _ = cli.Close() }()
	got, err := cli.Get(ctx, "", clientv3.WithPrefix(), clientv3.WithSerializable())
	if err != nil {
		return nil, err
	}
	all := map[string][]byte{}
	for _, kv := range got.Kvs {
		all[strings.ToValidUTF8(string(kv.Key), "?")] = kv.Value
	}
	return all, nil
}
