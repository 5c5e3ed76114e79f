package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/auditlog"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// codeNotWhole is the code of a log that something is wrong with.
const codeNotWhole = "AUDIT_NOT_WHOLE"

func auditVerify(a *app) *cobra.Command {
	var head, replica string
	var offline bool
	c := &cobra.Command{
		Use: "verify [FILE]...", Short: "Check that the audit log is whole",
		Long: "Check that no line of the audit log was changed, dropped, added or moved, and that its end is the\n" +
			"one that etcd knows. Without FILE every replica checks its own log. With FILEs a copy of one log is\n" +
			"checked here, oldest file first; .gz is unpacked. Its end is compared with --head, or with what etcd\n" +
			"knows now, which may be more than a copy has: note hvctl audit heads before copying.\n\n" +
			"The exit code is 4 when a log is not whole.",
		Example: "  hvctl audit verify\n  hvctl audit verify --offline rpc-audit.log.2.gz rpc-audit.log.1 rpc-audit.log",
		RunE: func(cmd *cobra.Command, files []string) error {
			switch {
			case len(files) == 0 && (head != "" || offline):
				return usage("--head and --offline are for the check of FILEs")
			case len(files) > 0 && replica != "":
				return usage("--replica is for the check by the replicas, and not for that of FILEs")
			case head != "" && offline:
				return usage("--head and --offline exclude each other")
			case len(files) == 0:
				return a.ask(cmd.Context(), func(ctx context.Context, c *client) error { return a.verifyReplicas(ctx, c, replica) })
			}
			return a.verifyFiles(cmd.Context(), files, head, offline)
		},
	}
	c.Flags().StringVar(&replica, "replica", "", "only this replica's log")
	c.Flags().StringVar(&head, "head", "", "NUMBER:HASH of a line that the FILEs must have, from hvctl audit heads")
	c.Flags().BoolVar(&offline, "offline", false, "do not ask the cluster for the end of the log")
	complete(c, "head", cobra.NoFileCompletions)
	complete(c, "replica", a.completeReplicas)
	return c
}

// verifyReplicas has each replica check its log.
func (a *app) verifyReplicas(ctx context.Context, c *client, only string) error {
	list, done, err := a.replicas(ctx, c, only)
	if err != nil {
		return err
	}
	defer done()
	t := table{head: []string{"REPLICA", "WHOLE", "LINES", "END", "ETCD'S", "FINDING"}}
	var missing error
	var broken, unknown []string
	for _, r := range list {
		verdict, err := r.verify(ctx)
		if err != nil {
			err = r.failed(err)
			missing = errors.Join(missing, err)
			t.add(r.name, "unknown", "", "", "", firstLine(asError(err).Message))
			continue
		}
		if !verdict.GetWhole() {
			broken = append(broken, r.name)
		}
		if verdict.GetRecorded() == nil {
			unknown = append(unknown, r.name)
		}
		if a.forPrograms() {
			if err := a.printStreamed(verdict); err != nil {
				return err
			}
			continue
		}
		recorded := ""
		if verdict.GetRecorded() != nil {
			recorded = fmt.Sprint(verdict.GetRecorded().GetSequence())
		}
		t.add(r.name, yesNo(verdict.GetWhole()), fmt.Sprint(verdict.GetLines()), fmt.Sprint(verdict.GetFound().GetSequence()), recorded, verdict.GetFinding())
	}
	if !a.forPrograms() {
		if err := a.printTable(t); err != nil {
			return err
		}
	}
	if len(unknown) > 0 {
		a.hint("etcd knows no end of the audit log of %s: nothing tells that the last line is the last", strings.Join(unknown, ", "))
	}
	if len(broken) > 0 {
		return notWhole("the audit log of %s is not whole", strings.Join(broken, ", "))
	}
	return missing
}

func notWhole(format string, args ...any) error {
	return errdefs.New(errdefs.FailedPrecondition, codeNotWhole, format, args...)
}

func (r replicaClient) verify(ctx context.Context) (*debvisorv1.AuditVerdict, error) {
	if r.err != nil {
		return nil, r.err
	}
	return r.audits.VerifyAudit(ctx, &debvisorv1.Empty{})
}

// verifyFiles checks a copy.
func (a *app) verifyFiles(ctx context.Context, files []string, head string, offline bool) error {
	var v auditlog.Verifier
	switch {
	case head != "":
		expected, err := parseHead(head)
		if err != nil {
			return err
		}
		v.Expect(expected, "--head")
	case !offline:
		if err := a.expectRecorded(ctx, &v, files[0]); err != nil {
			return err
		}
	}
	for _, name := range files {
		if err := verifyFile(&v, name); err != nil {
			return err
		}
	}
	return a.printReport(v.End(), len(files))
}

// parseHead reads NUMBER:HASH.
func parseHead(text string) (auditlog.Head, error) {
	number, hash, _ := strings.Cut(text, ":")
	seq, err := strconv.ParseUint(number, 10, 64)
	sum, hashErr := auditlog.ParseHash(hash)
	if err != nil || hashErr != nil || seq == 0 {
		return auditlog.Head{}, usage("--head %q is not accepted; expected NUMBER:HASH as hvctl audit heads has them", text)
	}
	return auditlog.Head{Sequence: seq, Hash: sum}, nil
}

// expectRecorded asks the cluster for the end of the log that a file is of.
func (a *app) expectRecorded(ctx context.Context, v *auditlog.Verifier, file string) error {
	replica, err := replicaOf(file)
	if err != nil {
		return err
	}
	return a.ask(ctx, func(ctx context.Context, c *client) error {
		list, err := c.audits.ListAuditHeads(ctx, &debvisorv1.Empty{})
		if err != nil {
			return err
		}
		for _, h := range list.GetHeads() {
			if h.GetReplica() != replica {
				continue
			}
			hash, err := auditlog.ParseHash(h.GetHash())
			if err != nil {
				return fmt.Errorf("the answer: %w", err)
			}
			v.Expect(auditlog.Head{Sequence: h.GetSequence(), Hash: hash}, "etcd, as of "+stamp(h.GetAt())+",")
			return nil
		}
		a.hint("etcd knows no log of a replica %q: nothing tells that the end of the copy is the end of the log", replica)
		return nil
	})
}

// replicaOf reads from the first line of a file whose log it is; empty where it
// cannot be read.
func replicaOf(file string) (string, error) {
	f, err := openCopy(file)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // it is only read
	line, err := bufio.NewReaderSize(f, auditlog.MaxLine).ReadSlice('\n')
	if err != nil {
		return "", nil //nolint:nilerr // the check tells what is wrong with it
	}
	parsed, _ := auditlog.Parse(line[:len(line)-1])
	return parsed.Replica, nil
}

// openCopy opens a file of a copy.
func openCopy(name string) (io.ReadCloser, error) {
	f, err := auditlog.Open(name)
	if err != nil {
		return nil, usage("%v", err)
	}
	return f, nil
}

func verifyFile(v *auditlog.Verifier, name string) error {
	f, err := openCopy(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it is only read
	if err := v.File(name, f); err != nil {
		return usage("%v", err)
	}
	return nil
}

// printReport prints what was found in a copy.
func (a *app) printReport(r auditlog.Report, files int) error {
	if a.forPrograms() {
		if err := a.print(&debvisorv1.AuditVerdict{
			Replica: r.Replica, Whole: r.Whole(), Finding: r.Finding, Line: r.Line, Lines: r.Lines,
			Found: &debvisorv1.AuditHead{Replica: r.Replica, Sequence: r.Head.Sequence, Hash: r.Head.Hash.String()},
		}, nil); err != nil {
			return err
		}
	} else {
		var f facts
		f.add("replica", r.Replica)
		f.add("files", fmt.Sprint(files))
		f.add("lines", fmt.Sprint(r.Lines))
		if r.Lines > 0 {
			f.add("begins with", fmt.Sprintf("line %d", r.First))
			f.add("ends with", fmt.Sprintf("line %d, %s", r.Head.Sequence, r.Head.Hash))
		}
		f.add("whole", yesNo(r.Whole()))
		if err := a.printFacts(f); err != nil {
			return err
		}
	}
	switch {
	case r.Whole():
		return nil
	case r.Line > 0:
		return notWhole("%s, line %d: %s%s", r.File, r.Line, r.Finding, more(r.Findings))
	}
	return notWhole("%s%s", r.Finding, more(r.Findings))
}

// more tells how many findings there are besides the first.
func more(findings int) string {
	if findings < 2 {
		return ""
	}
	return fmt.Sprintf(" (and %d more)", findings-1)
}
