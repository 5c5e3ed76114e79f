package config

import (
	"strings"

	"github.com/spf13/pflag"
)

// AddFlags gives each key its flag. What they are told is only kept here: Load
// judges it, with all the rest.
func (t *Table) AddFlags(f *pflag.FlagSet) {
	for _, k := range t.keys {
		flag := f.VarPF(given{k}, k.Flag(), "", k.Help+" (environment "+k.Env+")")
		if k.kind == "bool" {
			flag.NoOptDefVal = "true"
		}
	}
}

// given is a key's flag.
type given struct{ key *Key }

// Set keeps what a flag was told.
func (g given) Set(text string) error {
	switch k := g.key; {
	case !k.list:
		k.given = []string{text}
	case k.quiet:
		k.given = append(k.given, text)
	default:
		k.given = append(k.given, strings.Split(text, ",")...)
	}
	return nil
}

// String is the default, for the help.
func (g given) String() string {
	if g.key == nil {
		return "" // pflag asks the zero value
	}
	return strings.Join(g.key.otherwise, ",")
}

// Type is what the help calls the value.
func (g given) Type() string {
	if g.key.kind == "text" {
		return "string"
	}
	return g.key.kind
}
