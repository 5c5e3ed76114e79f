package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/auditlog"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// auditPatience is how long lines that come are held, so that those of all
// replicas are shown in the order of time.
const auditPatience = 300 * time.Millisecond

// told is one line of a replica's log, or its end.
type told struct {
	replica, raw string
	line         auditlog.Line
	broken       bool
	// ended says that nothing more comes of the replica, err why.
	ended bool
	err   error
}

// showAudit prints the lines that a filter wants, of all replicas.
func (a *app) showAudit(ctx context.Context, c *client, f *auditFilter) error {
	list, done, err := a.replicas(ctx, c, f.replica)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	feeds := make([]chan told, len(list))
	for i, r := range list {
		feeds[i] = make(chan told, 64)
		go r.search(ctx, &f.query, feeds[i])
	}
	p := &auditPrinter{app: a}
	if f.query.GetFollow() {
		err = p.follow(ctx, feeds)
	} else {
		err = p.merge(feeds, int(f.query.GetLast()))
	}
	return errors.Join(p.flush(), err)
}

// search sends what one replica tells, and then that it is all.
func (r replicaClient) search(ctx context.Context, q *debvisorv1.AuditQuery, to chan<- told) {
	send := func(t told) {
		select {
		case to <- t:
		case <-ctx.Done():
		}
	}
	defer close(to)
	err := r.err
	if err == nil {
		err = r.read(ctx, q, send)
	}
	if err != nil {
		err = r.failed(err)
	}
	send(told{replica: r.name, ended: true, err: err})
}

// failed tells of which replica an error is.
func (r replicaClient) failed(err error) error {
	if r.client != nil {
		err = r.told(err)
	}
	e := asError(err)
	return errdefs.New(e.Kind, e.Code, "replica %s: %s", r.name, e.Message)
}

func (r replicaClient) read(ctx context.Context, q *debvisorv1.AuditQuery, send func(told)) error {
	stream, err := r.audits.SearchAudit(ctx, q)
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		line, err := auditlog.Parse([]byte(m.GetLine()))
		send(told{replica: m.GetReplica(), raw: m.GetLine(), line: line, broken: err != nil})
	}
}

// auditPrinter prints lines.
type auditPrinter struct {
	*app
	headed  bool
	pending strings.Builder
}

// merge prints the lines of several feeds, each of which is in the order of
// time, in the order of time: all, or the last so many.
func (p *auditPrinter) merge(feeds []chan told, last int) error {
	var errs []error
	var kept []told
	heads := map[int]told{}
	next := func(i int) {
		t, ok := <-feeds[i]
		switch {
		case !ok:
		case t.ended:
			errs = append(errs, t.err)
		default:
			heads[i] = t
		}
	}
	for i := range feeds {
		next(i)
	}
	for len(heads) > 0 {
		first := -1
		for i, t := range heads {
			if first < 0 || t.before(heads[first]) {
				first = i
			}
		}
		t := heads[first]
		delete(heads, first)
		next(first)
		if last == 0 {
			if err := p.show(t); err != nil {
				return err
			}
			continue
		}
		if kept = append(kept, t); len(kept) > last {
			kept = kept[1:]
		}
	}
	for _, t := range kept {
		if err := p.show(t); err != nil {
			return err
		}
	}
	return firstError(errs)
}

// before orders lines: by time, and of one time by replica.
func (t told) before(other told) bool {
	return cmp.Or(t.line.Time.Compare(other.line.Time), cmp.Compare(t.replica, other.replica)) < 0
}

func firstError(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// follow prints lines as they come, until all feeds have ended. One that ends
// early is told of, and the others go on.
func (p *auditPrinter) follow(ctx context.Context, feeds []chan told) error {
	all := make(chan told)
	for _, feed := range feeds {
		go func() {
			for t := range feed {
				select {
				case all <- t:
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	var held []told
	var errs []error
	release := func() error {
		slices.SortStableFunc(held, func(a, b told) int { return a.line.Time.Compare(b.line.Time) })
		for _, t := range held {
			if err := p.show(t); err != nil {
				return err
			}
		}
		held = held[:0]
		return p.flush()
	}
	tick := time.NewTicker(auditPatience)
	defer tick.Stop()
	for left := len(feeds); left > 0; {
		select {
		case t := <-all:
			if !t.ended {
				held = append(held, t)
				continue
			}
			if left--; ctx.Err() != nil {
				return over(ctx, release)
			}
			errs = append(errs, t.err)
			if t.err != nil && left > 0 {
				p.hint("%v; the others are followed", t.err)
			}
		case <-tick.C:
			if err := release(); err != nil {
				return err
			}
		case <-ctx.Done():
			return over(ctx, release)
		}
	}
	return errors.Join(release(), firstError(errs))
}

// over ends a following: an interrupt is its ordinary end.
func over(ctx context.Context, release func() error) error {
	if err := release(); err != nil || errors.Is(ctx.Err(), context.Canceled) {
		return err
	}
	return ctx.Err()
}

// auditColumns are the widths of a table whose rows are not known before.
func auditColumns(wide bool) (heads []string, widths []int) {
	if wide {
		return []string{"TIME", "REPLICA", "SEQ", "EVENT", "PRINCIPAL", "CREDENTIAL", "PEER", "METHOD", "CODE", "TOOK", "OPERATION", "TRACE", "WHAT"},
			[]int{23, 8, 7, 22, 16, 24, 15, 24, 18, 6, 29, 32, 0}
	}
	return []string{"TIME", "EVENT", "PRINCIPAL", "METHOD", "CODE", "WHAT"}, []int{23, 22, 16, 24, 18, 0}
}

// show prints one line.
func (p *auditPrinter) show(t told) error {
	switch p.flags.output {
	case formatJSON:
		p.pending.WriteString(t.raw + "\n")
	case formatYAML:
		if err := p.flush(); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(p.out, "---"); err != nil {
			return err
		}
		if !json.Valid([]byte(t.raw)) {
			return p.printValue(map[string]string{"broken": t.raw, "replica": t.replica})
		}
		return p.printJSON([]byte(t.raw))
	default:
		p.row(t)
	}
	if p.pending.Len() > 32<<10 {
		return p.flush()
	}
	return nil
}

// row adds a line's row to what is printed next.
func (p *auditPrinter) row(t told) {
	heads, widths := auditColumns(p.wide())
	if !p.headed {
		p.headed = true
		p.cells(heads, widths)
	}
	l := t.line
	if t.broken {
		fmt.Fprintf(&p.pending, "a line of %s that cannot be read: %s\n", t.replica, firstLine(t.raw))
		return
	}
	at := l.Time.UTC().Format("2006-01-02 15:04:05.000")
	what := strings.TrimSpace(strings.Join([]string{l.Args, l.Reason}, " "))
	code := orWord(l.Code, l.Error)
	if p.wide() {
		took := ""
		if l.DurationMS > 0 {
			took = duration(time.Duration(l.DurationMS * float64(time.Millisecond)))
		}
		p.cells([]string{
			at, t.replica, fmt.Sprint(l.Seq), l.Event, l.Principal, l.Credential, l.Peer, methodName(l.Method), code, took, l.Operation, l.TraceID, what,
		}, widths)
		return
	}
	p.cells([]string{at, l.Event, l.Principal, methodName(l.Method), code, what}, widths)
}

// methodName is a method's own name.
func methodName(full string) string {
	if full == "" {
		return ""
	}
	return path.Base(full)
}

func (p *auditPrinter) cells(cells []string, widths []int) {
	var b strings.Builder
	for i, cell := range cells {
		cell = firstLine(cell)
		b.WriteString(cell)
		b.WriteString(strings.Repeat(" ", 2+max(0, widths[i]-utf8.RuneCountInString(cell))))
	}
	p.pending.WriteString(strings.TrimRight(b.String(), " ") + "\n")
}

// flush prints what is waiting.
func (p *auditPrinter) flush() error {
	text := p.pending.String()
	p.pending.Reset()
	_, err := io.WriteString(p.out, text)
	return err
}
