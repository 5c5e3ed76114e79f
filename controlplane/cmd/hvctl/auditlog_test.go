package main

import (
	"context"
	"fmt"

	"google.golang.org/grpc"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/auditlog"
)

// fakeAudit is the log of r1: five lines, and one that cannot be read.
type fakeAudit struct {
	debvisorv1.UnimplementedAuditServiceServer
	made *cluster
}

// madeAudit gives the lines of a log.
func madeAudit() (lines []string, head auditlog.Head) {
	for i, rest := range []string{
		`"event":"audit_log_opened","principal":"system:audit","reason":"begins a chain"`,
		`"event":"rpc_call","trace_id":"t1","principal":"ci","peer":"192.0.2.7","method":"/debvisor.v1.MigrationService/MigrateVM","args":"vm=web1 target=n3"`,
		`"event":"rpc_result","trace_id":"t1","principal":"ci","peer":"192.0.2.7","method":"/debvisor.v1.MigrationService/MigrateVM","code":"OK","operation":"op-web","duration_ms":1500`,
		`"event":"permission_denied","trace_id":"t2","principal":"panel","method":"/debvisor.v1.NodeService/CordonNode","error":"PERMISSION_DENIED","reason":"panel lacks node:cordon"`,
		`"event":"system_action","principal":"system:power","method":"start","reason":"a \u001b[1mboot"`,
	} {
		line := auditlog.AppendLink(nil, head.Sequence+1, head.Hash)
		line = fmt.Appendf(line, `"replica":"r1","time":"2026-01-01T00:00:0%d.000000Z",%s}`, i, rest)
		head = auditlog.Head{Sequence: head.Sequence + 1, Hash: auditlog.HashOf(line)}
		lines = append(lines, string(line))
	}
	return lines, head
}

func (f *fakeAudit) SearchAudit(q *debvisorv1.AuditQuery, stream grpc.ServerStreamingServer[debvisorv1.AuditLine]) error {
	lines, _ := madeAudit()
	for i, line := range lines {
		parsed, err := auditlog.Parse([]byte(line))
		if err != nil {
			return err
		}
		if q.GetPrincipal() != "" && q.GetPrincipal() != parsed.Principal || q.GetLast() > 0 && len(lines)-i > int(q.GetLast()) {
			continue
		}
		if err := stream.Send(&debvisorv1.AuditLine{Replica: "r1", Line: line}); err != nil {
			return err
		}
	}
	if q.GetOperation() == "op-broken" {
		return stream.Send(&debvisorv1.AuditLine{Replica: "r1", Line: "\x00 garbage"})
	}
	if !q.GetFollow() {
		return nil
	}
	select {
	case <-stream.Context().Done():
		return stream.Context().Err()
	case <-f.made.stopped:
		return nil
	}
}

func (f *fakeAudit) VerifyAudit(context.Context, *debvisorv1.Empty) (*debvisorv1.AuditVerdict, error) {
	_, head := madeAudit()
	verdict := &debvisorv1.AuditVerdict{Replica: "r1", Whole: true, Lines: 5, Found: headOf(head), Recorded: headOf(head)}
	f.made.mu.Lock()
	defer f.made.mu.Unlock()
	if f.made.nodes["n1"].GetSummary().GetCordoned() { // how a script makes it so
		verdict.Whole, verdict.Line, verdict.Finding = false, 3, "rpc-audit.log, line 3: 2 lines before it are missing"
		verdict.Recorded = nil
	}
	return verdict, nil
}

func (f *fakeAudit) ListAuditHeads(context.Context, *debvisorv1.Empty) (*debvisorv1.AuditHeadList, error) {
	_, head := madeAudit()
	return &debvisorv1.AuditHeadList{Heads: []*debvisorv1.AuditHead{headOf(head)}}, nil
}

func headOf(head auditlog.Head) *debvisorv1.AuditHead {
	return &debvisorv1.AuditHead{Replica: "r1", Sequence: head.Sequence, Hash: head.Hash.String(), At: madeTime(5)}
}
