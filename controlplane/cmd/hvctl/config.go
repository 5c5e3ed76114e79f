package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// config is the configuration file: named contexts, one of them current.
type config struct {
	Current  string              `json:"current-context,omitempty"`
	Contexts map[string]endpoint `json:"contexts,omitempty"`
	path     string
}

// configPath is where the configuration file is: HVCTL_CONFIG, or
// hvctl/config.yaml in the user's configuration directory (~/.config).
func configPath() (string, error) {
	if path := os.Getenv("HVCTL_CONFIG"); path != "" {
		return path, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", badConfig("there is no place for the configuration file: %v; set HVCTL_CONFIG", err)
	}
	return filepath.Join(dir, "hvctl", "config.yaml"), nil
}

// loadConfig reads the configuration file; one that does not exist is empty.
func loadConfig() (*config, error) {
	path, err := configPath()
	if err != nil {
		return nil, err
	}
	c := &config{Contexts: map[string]endpoint{}, path: path}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, badConfig("reading the configuration: %v", err)
	}
	if err := yaml.UnmarshalStrict(data, c); err != nil {
		return nil, badConfig("%s: %v", path, err)
	}
	if c.Contexts == nil {
		c.Contexts = map[string]endpoint{}
	}
	return c, nil
}

// names lists the contexts in order.
func (c *config) names() []string {
	return slices.Sorted(maps.Keys(c.Contexts))
}

// context gives one context, with its files found from the configuration
// file's directory where their paths are relative.
func (c *config) context(name string) (endpoint, error) {
	e, ok := c.Contexts[name]
	if !ok {
		return endpoint{}, errdefs.New(errdefs.NotFound, codeContext,
			"there is no context %q in %s; there is %s", name, c.path, orNone(c.names()))
	}
	dir := filepath.Dir(c.path)
	return e.resolved(func(path string) string {
		if filepath.IsAbs(path) {
			return path
		}
		return filepath.Join(dir, path)
	}), nil
}

// resolved gives an endpoint whose paths have been passed through find.
func (e endpoint) resolved(find func(string) string) endpoint {
	for _, path := range []*string{&e.CA, &e.Cert, &e.Key} {
		if *path != "" {
			*path = find(*path)
		}
	}
	for _, secret := range []*string{&e.APIKey, &e.Token} {
		if path, ok := strings.CutPrefix(*secret, "@"); ok {
			*secret = "@" + find(path)
		}
	}
	return e
}

// save writes the configuration file for its owner only, all of it or nothing.
func (c *config) save() error {
	data, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	if err := writePrivate(c.path, data); err != nil {
		return badConfig("writing the configuration: %v", err)
	}
	return nil
}

// writePrivate replaces a file by one that only its owner can read.
func writePrivate(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".config-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone already once it is renamed
	_, err = f.Write(data)
	// A name must not come to the disk before what it names.
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// endpoint says which cluster this run talks to: flags first, then a context
// that a flag names, then the environment, then HVCTL_CONTEXT's or the current
// context.
func (a *app) endpoint() (endpoint, error) {
	file, err := loadConfig()
	if err != nil {
		return endpoint{}, err
	}
	layers := []endpoint{a.flags.given, environment()}
	names := []string{"flags", "environment"}
	at, name := 2, os.Getenv("HVCTL_CONTEXT")
	if name == "" {
		name = file.Current
	}
	if a.flags.context != "" {
		at, name = 1, a.flags.context
	}
	if name != "" {
		e, err := file.context(name)
		if err != nil {
			return endpoint{}, err
		}
		layers = slices.Insert(layers, at, e)
		names = slices.Insert(names, at, fmt.Sprintf("context %q", name))
	}
	a.warnReadable(file)
	var merged endpoint
	for i, layer := range layers {
		if err := layer.check(names[i]); err != nil {
			return endpoint{}, err
		}
		merged = merged.over(layer)
	}
	return merged, nil
}

// warnReadable tells when others can read secrets in the configuration file.
func (a *app) warnReadable(c *config) {
	secret := false
	for _, e := range c.Contexts {
		for _, s := range []string{e.APIKey, e.Token} {
			secret = secret || (s != "" && !strings.HasPrefix(s, "@"))
		}
	}
	if !secret {
		return
	}
	if st, err := os.Stat(c.path); err == nil && st.Mode().Perm()&0o077 != 0 {
		a.hint("warning: %s holds secrets and others may read it; chmod 600 it", c.path)
	}
}
