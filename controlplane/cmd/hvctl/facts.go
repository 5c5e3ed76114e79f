package main

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// facts are names with values, for showing one thing.
type facts [][2]string

// add adds a fact; one without a value is left out.
func (f *facts) add(name, value string) {
	if value != "" {
		*f = append(*f, [2]string{name, value})
	}
}

// printFacts prints facts on standard output, their values aligned.
func (a *app) printFacts(f facts) error {
	wide := 0
	for _, fact := range f {
		wide = max(wide, utf8.RuneCountInString(fact[0])+1)
	}
	var b strings.Builder
	for _, fact := range f {
		value := strings.ReplaceAll(clean(fact[1]), "\n", "\n"+strings.Repeat(" ", wide+2))
		fmt.Fprintf(&b, "%-*s  %s\n", wide, fact[0]+":", value)
	}
	_, err := fmt.Fprint(a.out, b.String())
	return err
}
