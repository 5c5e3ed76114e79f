package main

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

// say writes to standard error: where that fails, nowhere is left to tell.
func say(w io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(w, format, args...)
}

// isTerminal tells whether f is a terminal that can move its cursor.
func isTerminal(f *os.File) bool {
	return term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}

// width is a terminal's width in columns; 80 where it does not say.
func width(f *os.File) int {
	if columns, _, err := term.GetSize(int(f.Fd())); err == nil && columns > 0 {
		return columns
	}
	return 80
}

// coloured tells whether colours are welcome on f (https://no-color.org).
func coloured(f *os.File) bool {
	return os.Getenv("NO_COLOR") == "" && isTerminal(f)
}
