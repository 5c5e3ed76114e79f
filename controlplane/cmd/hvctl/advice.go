package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// The codes of hvctl's own errors.
const (
	codeUsage         = "USAGE"
	codeConfiguration = "CONFIGURATION"
	codeContext       = "CONTEXT_NOT_FOUND"
	codeInternal      = "INTERNAL"
	codeInterrupted   = "INTERRUPTED"
	codeTimeout       = "TIMEOUT"
	codeRefused       = "PLAN_REFUSED"
	codeBlocked       = "PLAN_BLOCKED"
	codeUnreachable   = "UNREACHABLE"
	codeLost          = "CONNECTION_LOST"
	codeServerCA      = "SERVER_CERTIFICATE"
	codeServerName    = "SERVER_NAME"
	codeClientCert    = "CLIENT_CERTIFICATE"
)

// advice tells what to do next about an error of the command what: by its code
// where something particular is known, else by its kind.
func advice(e *errdefs.Error, what string) []string {
	if list := adviceByCode(e); len(list) > 0 {
		return list
	}
	return adviceByKind(e, what)
}

// adviceByCode knows what can be done about particular codes.
func adviceByCode(e *errdefs.Error) []string {
	if op := operationIn(e); op != "" && e.Code == "IN_USE" {
		return []string{"wait for it: hvctl operation watch " + op, "or cancel it: hvctl operation cancel " + op}
	}
	switch e.Code {
	case codeConfiguration:
		return []string{"hvctl help configuration"}
	case codeContext:
		return []string{"hvctl config list"}
	case codeUnreachable:
		return []string{"check --server, and that debvisor-rpcd runs there"}
	case codeLost:
		return []string{"hvctl operation list shows whether something was begun; then try again"}
	case codeServerCA:
		return []string{"check that --ca is this cluster's CA: pki/ca.pem in a replica's data directory"}
	case codeServerName:
		return []string{"use a name or address in --server that the replica was given with --host"}
	case codeClientCert:
		return []string{"check that --cert was made by this cluster and is not expired; debvisor-rpcd client makes a new one"}
	case codeNotReplicable:
		return []string{"clear the reasons above; hvctl replication status " + orWord(e.Context["job"], "JOB")}
	case "AMBIGUOUS_DATASET":
		return []string{"name it with its node, NODE:POOL/PATH: hvctl storage list"}
	case "DATASET_NOT_FOUND", "SEVERAL_NODES", "SEVERAL_POOLS", "DISK_NOT_ON_ZFS":
		return []string{"hvctl storage list shows the nodes' datasets, and which VM uses what"}
	case "SNAPSHOTS_NEEDED", "SNAPSHOT_NOT_FOUND":
		return []string{"hvctl snapshot list DATASET --all shows what holds which"}
	case "REPLICATION_DIVERGED", "TARGET_UNRELATED", "SOURCE_REPLACED", "PLAN_CHANGED", "PLAN_NOT_FOUND":
		if e.Code != "PLAN_NOT_FOUND" || e.Context["job"] != "" {
			return []string{"hvctl replication plan DATASET --to NODE tells what has diverged, and what can be done"}
		}
	case "JOB_NOT_FOUND", "REPLICATED_ALREADY", "TARGET_TAKEN", "REPLICATION_LOOP":
		return []string{"hvctl replication list"}
	case "JOB_OF_POLICY":
		return []string{"hvctl replication policy show " + orWord(e.Context["policy"], "POLICY")}
	case codeRefused:
		return []string{"choose another node with --to, or clear the reasons above"}
	case codeBlocked:
		return []string{"clear the reasons above; what can move moves with hvctl plan execute all the same"}
	case "PLAN_STALE", "PLAN_EMPTY":
		return []string{"make another plan: hvctl migrate plan VM, hvctl plan evacuate NODE or hvctl plan rebalance"}
	case "PLAN_EXECUTED":
		return []string{"hvctl operation show " + orWord(e.Context["operation"], "OPERATION")}
	case "EVACUATION_BLOCKED", "NODE_UNCORDONED":
		node := orWord(e.Context["node"], "NODE")
		return []string{"clear what is in the way; hvctl node evacuate " + node + " goes on from here", "or give it up: hvctl node evacuate " + node + " --restore"}
	case "RESTORE_BLOCKED":
		return []string{"clear what is in the way; hvctl node evacuate " + orWord(e.Context["node"], "NODE") + " --restore goes on from here"}
	case "NODE_EXISTS":
		return []string{"--replace makes a token with which it enrols anew; hvctl node show " + orWord(e.Context["node"], "NODE")}
	case "KEY_SHOWN_ONCE":
		return []string{"revoke the key whose answer was lost (hvctl key list, hvctl key revoke ID) and run the command again"}
	case "TOO_MANY_KEYS":
		return []string{"hvctl key list --principal " + orWord(e.Context["principal"], "PRINCIPAL")}
	case "NO_OPERATOR_LEFT":
		return []string{"hvctl principal list --role operator shows who is one"}
	case "ROLE_IN_USE":
		return []string{"hvctl principal list --role " + orWord(e.Context["role"], "ROLE")}
	case "IN_ACCESS_FILE":
		return []string{"change the access file on every replica; they read it anew within 2 s"}
	case "TENANT_IN_USE":
		tenant := orWord(e.Context["tenant"], "TENANT")
		return []string{"hvctl principal list --tenant " + tenant, "give its VMs to another: hvctl vm policy set VM --tenant OTHER"}
	case "STORAGE_OF_ANOTHER_TENANT":
		return []string{"hvctl tenant list"}
	case "CONFINED":
		return []string{"use an identity that no tenant confines (--context)"}
	case "OWN_CERTIFICATE":
		return []string{"use another identity (--context); hvctl auth whoami shows the present one"}
	case "TOKEN_SHOWN_ONCE":
		return []string{"revoke the token whose answer was lost (hvctl token list, hvctl token revoke ID) and run the command again"}
	}
	if strings.Contains(e.Code, "AMBIGUOUS") {
		return []string{"name it by its UUID: hvctl vm list -o wide"}
	}
	return nil
}

// operationIn is the operation that an error speaks of.
func operationIn(e *errdefs.Error) string {
	for _, key := range []string{"operation", "operation_id"} {
		if id := e.Context[key]; id != "" {
			return id
		}
	}
	return ""
}

// adviceByKind knows what can be done about errors in general.
func adviceByKind(e *errdefs.Error, what string) []string {
	switch e.Kind {
	case errdefs.NotFound:
		return []string{listOf(e.Code, what)}
	case errdefs.InvalidArgument:
		return []string{"hvctl " + nounVerb(what) + " --help"}
	case errdefs.FailedPrecondition, errdefs.AlreadyExists:
		return refusedAdvice(what)
	case errdefs.Unauthenticated:
		return []string{"give an identity that this cluster knows: --cert and --key, --api-key or --token", "hvctl help configuration"}
	case errdefs.PermissionDenied:
		return []string{"ask an operator for " + orWord(e.Context["permission"], "the permission") + ", or use another identity (--context)"}
	case errdefs.ResourceExhausted:
		return []string{"try again " + afterText(e, "in a minute")}
	case errdefs.Aborted:
		return []string{"try again"}
	case errdefs.Unavailable:
		return []string{"try again " + afterText(e, "later") + "; hvctl node list shows which nodes are heard"}
	case errdefs.DeadlineExceeded, errdefs.Cancelled:
		return []string{"hvctl operation list shows whether something was begun; --timeout allows more time"}
	case errdefs.Unimplemented:
		return []string{"this cluster's version does not have it"}
	default:
		return []string{"look for the trace id in the replicas' log"}
	}
}

// refusedAdvice is what to look at when the present state does not allow it.
func refusedAdvice(what string) []string {
	words := strings.Fields(what)
	if len(words) >= 3 && words[0] == "migrate" {
		return []string{fmt.Sprintf("hvctl migrate plan %s shows every node and its reasons", words[2])}
	}
	if len(words) >= 3 && words[0] == "failover" {
		return []string{fmt.Sprintf("hvctl failover plan %s shows every reason, and what would have to be said", words[2]), "hvctl failover list"}
	}
	if len(words) >= 3 && words[0] == "replication" && words[1] != "policy" && words[1] != "plan" {
		return []string{fmt.Sprintf("hvctl replication status %s shows its present state", words[2])}
	}
	if len(words) >= 3 && !slices.Contains([]string{"token", "key", "tenant", "certificate", "snapshot", "replication", "template", "clone"}, words[0]) {
		return []string{fmt.Sprintf("hvctl %s show %s shows its present state", words[0], words[2])}
	}
	return []string{"hvctl " + nounVerb(what) + " --help"}
}

// listOf is the command that lists what was not found.
func listOf(code, what string) string {
	for _, noun := range []string{"PRINCIPAL", "ROLE", "TENANT", "KEY", "OPERATION", "TOKEN", "PLAN", "NODE", "VM"} {
		if strings.Contains(code, noun) {
			return "hvctl " + strings.ToLower(noun) + " list"
		}
	}
	noun, rest, _ := strings.Cut(what, " ")
	if noun == "replication" && strings.HasPrefix(rest, "policy ") {
		noun = "replication policy"
	}
	if noun == "migrate" {
		noun = "vm"
	}
	return "hvctl " + noun + " list"
}

// nounVerb is a command without its arguments.
func nounVerb(what string) string {
	words := strings.Fields(what)
	return strings.Join(words[:min(2, len(words))], " ")
}

// afterText says when to try again.
func afterText(e *errdefs.Error, unsaid string) string {
	if e.RetryAfter > 0 {
		return "in " + duration(e.RetryAfter)
	}
	return unsaid
}
