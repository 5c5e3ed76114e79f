package lab

import "context"

// Hvctl runs the real hvctl as the operator against one replica and returns what it prints. The error of one that fails holds
// what it said on standard error and, as an *exec.ExitError, its status.
func (l *Lab) Hvctl(ctx context.Context, at *Replica, args ...string) (string, error) {
	return l.Operator.RunInput(ctx, l.HvctlEnv(at), nil, append([]string{l.Program("hvctl")}, args...)...)
}

// HvctlEnv is the environment in which hvctl is the operator of the lab and speaks to the replica.
func (l *Lab) HvctlEnv(at *Replica) []string {
	first := l.Replicas[0]
	return []string{
		"HVCTL_SERVER=" + at.Callers(), "HVCTL_CA=" + first.PKI("ca.pem"),
		"HVCTL_CERT=" + first.PKI("operator.pem"), "HVCTL_KEY=" + first.PKI("operator-key.pem"),
	}
}
