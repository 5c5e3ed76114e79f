package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// steps are the bursts of the ladder: long enough for the clock of processor
// time, short enough for all of them to meet the same neighbours.
const (
	stepBurst = 300 * time.Millisecond
	waitBurst = 1500 * time.Millisecond
	// turns are how often targets of which a ratio is wanted are measured each
	// round, A B B A: short and many, since neighbours come and go.
	turns = 5
)

// frontDoor measures what the chain costs, stage by stage and as a whole, what
// a refused call costs, and what limits, rules and audit cost and bear. The
// stages are internal to the control plane: a program of its own serves them
// (docs/adr/0015-front-door.md).
func (b *bench) frontDoor(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "debvisor-rungs-*")
	if err != nil {
		return fmt.Errorf("a directory for the ladder: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	r, err := startRungs(ctx, dir)
	if err != nil {
		return err
	}
	defer r.stop()
	for _, measure := range []func(context.Context, *rungs) error{b.ladder, b.chainVsBare, b.credentials, b.rejected, b.flood, b.names} {
		if err := measure(ctx, r); err != nil {
			return err
		}
	}
	if err := b.auditLog(ctx); err != nil {
		return err
	}
	return b.ghz(ctx)
}

// goBenchmark runs a package's benchmark once and gives the metric of a unit.
func goBenchmark(ctx context.Context, pkg, name, unit string) (float64, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^"+name+"$", "-benchtime", "1x", pkg)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("running %s: %w: %s", name, err, out)
	}
	found := regexp.MustCompile(`\s([\d.e+-]+) ` + regexp.QuoteMeta(unit) + `(\s|$)`).FindSubmatch(out)
	if found == nil {
		return 0, fmt.Errorf("%s tells nothing in %s: %s", name, unit, out)
	}
	return strconv.ParseFloat(string(found[1]), 64)
}

// series are the shots of one target.
type series struct{ one, many []shot }

func of(shots []shot, value func(shot) float64) float64 {
	var values []float64
	for _, s := range shots {
		values = append(values, value(s))
	}
	return median(values)
}

func perSecond(s shot) float64 { return s.perSecond }
func cpu(s shot) float64       { return s.cpu }
func allocs(s shot) float64    { return s.allocs }
func p50(s shot) float64       { return float64(s.p50.Microseconds()) }
func p99(s shot) float64       { return float64(s.p99.Microseconds()) }

// ratio is the median of what one target came to against another in each turn.
func ratio(ours, theirs []shot, value func(shot) float64) float64 {
	var ratios []float64
	for i := 0; i+1 < min(len(ours), len(theirs)); i += 2 {
		ratios = append(ratios, (value(ours[i])+value(ours[i+1]))/(value(theirs[i])+value(theirs[i+1])))
	}
	return median(ratios)
}

// climb measures targets up and down again, A B … B A, so that what changes on
// the machine meanwhile meets all alike. A first round warms everything up.
func (b *bench) climb(ctx context.Context, r *rungs, targets []target, times int) (map[string]*series, error) {
	result := map[string]*series{}
	for round := range times + 1 {
		order := make([]target, 0, 2*len(targets))
		order = append(order, targets...)
		for i := len(targets) - 1; i >= 0; i-- {
			order = append(order, targets[i])
		}
		if round == 0 {
			order = targets
		}
		for _, t := range order {
			many, err := r.burst(ctx, t, callers, stepBurst, accepted)
			if err != nil {
				return nil, err
			}
			one, err := r.burst(ctx, t, 1, stepBurst, accepted)
			if err != nil {
				return nil, err
			}
			if round == 0 {
				continue
			}
			key := fmt.Sprint(t)
			if result[key] == nil {
				result[key] = &series{}
			}
			result[key].one, result[key].many = append(result[key].one, one), append(result[key].many, many)
		}
	}
	return result, nil
}

// caller is the principal of the ladder that has no limit to speak of.
const caller = "caller"

// ladder measures every rung.
func (b *bench) ladder(ctx context.Context, r *rungs) error {
	var targets []target
	for _, rung := range r.offer.Rungs {
		targets = append(targets, target{rung: rung.Name, certificate: caller})
	}
	got, err := b.climb(ctx, r, targets, 2*b.rounds)
	if err != nil {
		return err
	}
	bare := got[fmt.Sprint(target{rung: "mtls", certificate: caller})]
	for i, t := range targets {
		s := got[fmt.Sprint(t)]
		b.add(Figure{
			Name: fmt.Sprintf("ladder_%d_%s", i+1, t.rung), Value: of(s.many, perSecond) / of(bare.many, perSecond), Better: "higher", Unit: "ratio",
			Detail: fmt.Sprintf("throughput at %d callers ÷ bare mTLS; %.0f/s, CPU %.1f µs, %.1f allocations a call; one caller: %.0f/s, p50 %.0f µs, CPU %.1f µs; an answer of %d bytes",
				callers, of(s.many, perSecond), of(s.many, cpu), of(s.many, allocs), of(s.one, perSecond), of(s.one, p50), of(s.one, cpu), r.offer.AnswerBytes),
		})
	}
	return nil
}

// chainVsBare measures the whole chain against a bare server over mTLS.
func (b *bench) chainVsBare(ctx context.Context, r *rungs) error {
	chain, bare := target{rung: "chain", certificate: caller}, target{rung: "mtls", certificate: caller}
	got, err := b.climb(ctx, r, []target{chain, bare}, turns*b.rounds)
	if err != nil {
		return err
	}
	ours, theirs := got[fmt.Sprint(chain)], got[fmt.Sprint(bare)]
	how := fmt.Sprintf("the whole chain ÷ a bare server over mTLS with the same answer of %d bytes; the median of %d turns of A B B A", r.offer.AnswerBytes, turns*b.rounds)
	for _, f := range []struct {
		name, better, unit string
		goal               float64
		value              func(shot) float64
		shots              func(*series) []shot
		minus              bool
	}{
		{"chain_vs_bare_throughput_100", "higher", "ratio", 0.85, perSecond, many, false},
		{"chain_vs_bare_p50_1", "lower", "ratio", 1.10, p50, one, false},
		{"chain_vs_bare_cpu", "lower", "ratio", 1.25, cpu, many, false},
		{"chain_extra_allocs", "lower", "allocations", 12, allocs, many, true},
	} {
		a, z := of(f.shots(ours), f.value), of(f.shots(theirs), f.value)
		value := ratio(f.shots(ours), f.shots(theirs), f.value)
		if f.minus {
			value = a - z
		}
		b.add(Figure{Name: f.name, Value: value, Goal: f.goal, Better: f.better, Unit: f.unit, Detail: fmt.Sprintf("%.4g against %.4g; %s", a, z, how)})
	}
	return nil
}

func one(s *series) []shot  { return s.one }
func many(s *series) []shot { return s.many }

// credentials measures what an API key and a JWT cost beside a certificate.
func (b *bench) credentials(ctx context.Context, r *rungs) error {
	certificate := target{rung: "chain", certificate: caller}
	for _, f := range []struct{ name, bearer string }{{"apikey_vs_cert", r.offer.APIKey}, {"jwt_vs_cert", r.offer.JWT}} {
		if f.bearer == "" {
			return fmt.Errorf("%s: the ladder's server offers no such credential", f.name)
		}
		token := target{rung: "chain", bearer: f.bearer}
		got, err := b.climb(ctx, r, []target{token, certificate}, turns*b.rounds)
		if err != nil {
			return err
		}
		ours, theirs := got[fmt.Sprint(token)].many, got[fmt.Sprint(certificate)].many
		b.add(Figure{
			Name: f.name, Value: ratio(ours, theirs, perSecond), Goal: 0.95, Better: "higher", Unit: "ratio",
			Detail: fmt.Sprintf("throughput at %d callers through the whole chain, %.0f/s ÷ %.0f/s with a certificate; the median of %d turns of A B B A", callers, of(ours, perSecond), of(theirs, perSecond), turns*b.rounds),
		})
	}
	return nil
}

// limited wants calls to be refused for their number.
func limited(err error) bool { return status.Code(err) == codes.ResourceExhausted }

// rejected measures what a call costs the server that is over its rate.
func (b *bench) rejected(ctx context.Context, r *rungs) error {
	good, bad := target{rung: "chain", certificate: caller}, target{rung: "chain", certificate: "greedy"}
	if _, err := r.burst(ctx, bad, 1, 10*time.Millisecond, func(error) bool { return true }); err != nil {
		return err // the one call that it has is spent
	}
	var a, z []shot
	for round := range turns*b.rounds + 1 {
		for _, step := range []struct {
			target
			want func(error) bool
			into *[]shot
		}{{bad, limited, &a}, {good, accepted, &z}, {good, accepted, &z}, {bad, limited, &a}} {
			s, err := r.burst(ctx, step.target, callers, stepBurst, step.want)
			if err != nil {
				return err
			}
			if round > 0 {
				*step.into = append(*step.into, s)
			}
		}
	}
	b.add(Figure{
		Name: "rejected_vs_accepted", Value: ratio(a, z, cpu), Goal: 0.5, Better: "lower", Unit: "ratio",
		Detail: fmt.Sprintf("the server's CPU time a call over the limit, %.1f µs ÷ %.1f µs for one of the same method that is answered; the median of %d turns of A B B A", of(a, cpu), of(z, cpu), turns*b.rounds),
	})
	return nil
}

// names measures the memory of a limiter that a million names have called.
func (b *bench) names(_ context.Context, r *rungs) error {
	before, err := rssMB(r.cmd.Process.Pid)
	if err != nil {
		return err
	}
	if _, err := r.ask("names"); err != nil {
		return err
	}
	after, err := rssMB(r.cmd.Process.Pid)
	if err != nil {
		return err
	}
	b.add(Figure{
		Name: "limiter_1m_rss_mb", Value: after - before, Better: "lower", Unit: "MiB",
		Detail: fmt.Sprintf("resident memory by which a process grows in whose limiter a million names have called within seconds: %.0f MiB, then %.0f", before, after),
	})
	return nil
}

// flood measures how long one caller waits while another floods the server with
// calls that are refused.
func (b *bench) flood(ctx context.Context, r *rungs) error {
	good, bad := target{rung: "chain", certificate: caller}, target{rung: "chain", certificate: "greedy"}
	flooding, err := r.dial(bad, connections)
	if err != nil {
		return err
	}
	var calm, flooded []shot
	for round := range b.rounds + 1 {
		for _, flood := range []bool{false, true, true, false} {
			done := make(chan error, 1)
			if flood {
				go func() {
					_, err := volley(ctx, flooding, 2, time.Now().Add(waitBurst), func(error) bool { return true })
					done <- err
				}()
			} else {
				done <- nil
			}
			s, err := r.burst(ctx, good, 1, waitBurst, accepted)
			if err != nil {
				return err
			}
			if err := <-done; err != nil {
				return err
			}
			switch {
			case round == 0:
			case flood:
				flooded = append(flooded, s)
			default:
				calm = append(calm, s)
			}
		}
	}
	b.add(Figure{
		Name: "flood_p99_ratio", Value: ratio(flooded, calm, p99), Goal: 2, Better: "lower", Unit: "ratio",
		Detail: fmt.Sprintf("p99 of a caller's calls while another's are refused as fast as it can make them, %.0f µs ÷ %.0f µs without; medians of %d rounds of A B B A", of(flooded, p99), of(calm, p99), b.rounds),
	})
	return nil
}
