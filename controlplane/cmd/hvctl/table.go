package main

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// table is rows under a head. A cell may have several lines.
type table struct {
	head []string
	rows [][]string
}

// add adds a row.
func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// render writes the table with aligned columns, two spaces between them and
// nothing behind the last. Paint, if any, gives a cell its colour.
func (t *table) render(paint func(cell string) string) string {
	lines := t.lines()
	widths := make([]int, len(t.head))
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for n, line := range lines {
		last := len(line) - 1
		for last > 0 && line[last] == "" {
			last--
		}
		for i, cell := range line[:last+1] {
			gap := widths[i] + 2 - utf8.RuneCountInString(cell)
			if paint != nil && n > 0 {
				cell = paint(cell)
			}
			b.WriteString(cell)
			if i < last {
				b.WriteString(strings.Repeat(" ", gap))
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// lines gives the head and the rows as lines of one-line cells.
func (t *table) lines() [][]string {
	lines := [][]string{t.head}
	for _, row := range t.rows {
		for n := 0; ; n++ {
			line, more := make([]string, len(t.head)), false
			for i, cell := range row {
				parts := strings.Split(clean(cell), "\n")
				if n < len(parts) {
					line[i] = parts[n]
				}
				more = more || n+1 < len(parts)
			}
			lines = append(lines, line)
			if !more {
				break
			}
		}
	}
	return lines
}

// printTable prints a table on standard output.
func (a *app) printTable(t table) error {
	var paint func(string) string
	if coloured(a.out) {
		paint = colour
	}
	_, err := fmt.Fprint(a.out, t.render(paint))
	return err
}

// printTableBelow prints a table under something else.
func (a *app) printTableBelow(t table) error {
	if _, err := fmt.Fprintln(a.out); err != nil {
		return err
	}
	return a.printTable(t)
}

// colour paints the words of states by whether they are good.
func colour(cell string) string {
	word, _, _ := strings.Cut(cell, ",")
	code := ""
	switch word {
	case "ONLINE", "RUNNING", "SUCCEEDED", "OK", "yes":
		code = "32"
	case "SUSPECT", "WARN", "PENDING", "PAUSED", "INCOMING", "CANCELLED":
		code = "33"
	case "UNREACHABLE", "ERROR", "FAILED", "CRASHED", "CONFLICT":
		code = "31"
	default:
		return cell
	}
	return "\x1b[" + code + "m" + cell + "\x1b[0m"
}
