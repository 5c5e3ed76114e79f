package failover

import (
	"strings"
	"testing"
	"time"
)

// TestJudge: want is the codes of all reasons, or where the VM goes.
func TestJudge(t *testing.T) {
	for said, want := range map[string]string{
		// Images: the fence is the proof.
		"":                        "→ b",
		"word":                    "→ b",
		"shut":                    "→ b",
		"up a":                    "NODE_REACHABLE",
		"novm":                    "VM_NOT_FOUND",
		"conflict":                "VM_CONFLICT",
		"nodef":                   "DEFINITION_UNKNOWN",
		"olddef":                  "DEFINITION_UNKNOWN",
		"bound":                   "BOUND_TO_HOST",
		"transient":               "DEFINITION_UNKNOWN",
		"file":                    "NOT_PROTECTED NO_PROOF",
		"file,word":               "NOT_PROTECTED",
		"shareable":               "IMAGE_SHARED",
		"alsodisk":                "IMAGE_SHARED",
		"unknownceph":             "NOT_PROTECTED b:CEPH_UNREACHABLE c:CEPH_UNREACHABLE",
		"nolock":                  "NO_EXCLUSIVE_LOCK",
		"blind b":                 "→ c",
		"blind b,blind c":         "b:CEPH_UNREACHABLE c:CEPH_UNREACHABLE",
		"holds c":                 "VM_ELSEWHERE",
		"holds c,off c":           "→ b",
		"lost b awaited":          "→ c",
		"lost c discarding":       "→ b",
		"holds c,lost c awaited":  "→ b",
		"lost b gone":             "→ b",
		"up a,nodef,file,holds c": "NODE_REACHABLE DEFINITION_UNKNOWN VM_ELSEWHERE NOT_PROTECTED NO_PROOF",

		// Replicas: somebody's word, and how much may be lost.
		"zfs":                                "NO_PROOF DATA_LOSS_NOT_ACCEPTED",
		"zfs,word":                           "DATA_LOSS_NOT_ACCEPTED",
		"zfs,word,loss 1m":                   "DATA_TOO_OLD",
		"zfs,word,loss 3m":                   "→ b",
		"zfs,word,rpo 1m":                    "DATA_TOO_OLD",
		"zfs,word,rpo 1h":                    "→ b",
		"zfs,word,rpo 1h,loss 1m":            "DATA_TOO_OLD",
		"zfs,word,rpo 1m,replica 12":         "→ b",
		"zfs,off a,loss 3m":                  "→ b",
		"zfs,off a,loss 3m,up a":             "NODE_REACHABLE NO_PROOF",
		"zfs,word,loss 3m,norepl":            "NOT_PROTECTED b:REPLICA_NOT_THERE c:REPLICA_NOT_THERE",
		"zfs,word,loss 3m,receiving":         "b:REPLICATION_RUNNING c:REPLICA_NOT_THERE",
		"zfs,word,loss 3m,down b":            "b:NODE_NOT_REACHABLE c:REPLICA_NOT_THERE",
		"both,loss 3m":                       "NO_PROOF",
		"both,loss 3m,word":                  "→ b",
		"both,loss 3m,word,blind b":          "b:CEPH_UNREACHABLE c:REPLICA_NOT_THERE",
		"zfs,word,loss 3m,other,down b":      "b:NODE_NOT_REACHABLE c:REPLICA_NOT_THERE",
		"zfs,word,loss 3m,lost b awaited":    "b:LOST_COPY c:REPLICA_NOT_THERE",
		"zfs,word,loss 3m,lost b gone":       "→ b",
		"zfs,word,loss 3m,down b,up a":       "NODE_REACHABLE b:NODE_NOT_REACHABLE c:REPLICA_NOT_THERE",
		"zfs,word,loss 3m,second 90s":        "→ c",
		"zfs,word,loss 3m,second 3m":         "→ b",
		"zfs,word,loss 3m,second 10m":        "→ b",
		"zfs,word,loss 1m,second 90s":        "→ c",
		"zfs,word,loss 3m,second 90s,down c": "→ b",
		"zfs,word,loss 1m,second 90s,down c": "DATA_TOO_OLD",
		"zfs,word,loss 10s,second 90s":       "DATA_TOO_OLD",
		"zfs,word,loss 3m,receiving,nodef":   "DEFINITION_UNKNOWN b:REPLICATION_RUNNING c:REPLICA_NOT_THERE",
	} {
		t.Run(said, func(t *testing.T) {
			snapshot, x := records(t, said)
			v := Judge(snapshot, x.req)
			got := "→ " + v.Target
			if !v.Allowed {
				var codes []string
				for _, code := range v.Codes() {
					if !strings.HasPrefix(code, "a:") {
						codes = append(codes, code)
					}
				}
				got = strings.Join(codes, " ")
				if v.Refusal() == "" {
					t.Error("it is refused without a word")
				}
			}
			if got != want {
				t.Errorf("%s, want %s (%s)", got, want, v.Refusal())
			}
		})
	}
}

// TestWhatItIsBroughtBackFrom: the definition may be that of the lost node that it
// was brought from, where the next was lost before it told of it.
func TestWhatItIsBroughtBackFrom(t *testing.T) {
	snapshot, x := records(t, "moved,lost a awaited,down c,up b")
	x.vm.Generation = 5
	x.copy.BroughtBackOn = "c"
	if v := Judge(snapshot, x.req); !v.Allowed || v.Definition.Value.GetNode() != "a" || v.Target != "b" {
		t.Errorf("%s %v", v.Target, v.Codes())
	}
	x.vm.Generation = 6 // it was c's again by other ways
	if v := Judge(snapshot, x.req); !contains(v.Codes(), DefinitionUnknown) {
		t.Errorf("%v", v.Codes())
	}
}

// TestWhatDisksBecome: of a replica the newest snapshot that was found, with its age.
func TestWhatDisksBecome(t *testing.T) {
	snapshot, x := records(t, "both,word,loss 3m,replica 12")
	x.req.Images = map[string]Image{"vda": {ID: image()}}
	v := Judge(snapshot, x.req)
	if len(v.Disks) != 2 || v.Disks[0].Image.GetId() != "abc" || v.FSID != fsid {
		t.Fatalf("%v in %s", v.Disks, v.FSID)
	}
	d := v.Disks[1]
	if d.Dataset != "back/web" || d.Snapshot.GetGuid() != 12 || d.Path != "/dev/zvol/back/web" || d.SourcePath != "/dev/zvol/tank/web" ||
		d.ReverseJobId != "j-back" || d.JobId != "j" || d.SourceDataset != "tank/web" {
		t.Errorf("%v from %s", d.FailoverDisk, d.SourceDataset)
	}
	if v.DataAge != 30*time.Second || len(v.Proof) != 2 || !v.Start {
		t.Errorf("%s old; %q", v.DataAge, v.Proof)
	}
}
