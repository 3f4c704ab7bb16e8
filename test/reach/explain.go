package reach

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/pghardend/pghardend/internal/testbed"
)

// Answer is what explain said about a cell.
type Answer struct {
	On      string // the node that was asked
	Allowed bool
	Code    int // its exit code
}

// questions runs explain for each line of its input. One shell for all questions to a node, because entering a host for
// each of a thousand takes longer than the answers.
const questions = `while read -r from to proto port; do
	"$0" explain --config "$1" --json --from "$from" --to "$to" --proto "$proto" ${port:+--port "$port"}
	echo "$?"
done`

// Explain asks the nodes in turn about the measured cells that have a node at one end or both; the others are not for
// pghardend to say. Both ends are named by address, since a name stands for both families. It takes a while: tell, if not
// nil, is called with each answer and learns how many there are of how many.
func Explain(ctx context.Context, bed *testbed.Bed, agents []*testbed.Agent, got map[Cell]Outcome, tell func(done, all int)) (map[Cell]Answer, error) {
	isNode := map[string]bool{}
	for _, a := range agents {
		isNode[a.Host().Name()] = true
	}
	shares := make([][]Cell, len(agents))
	n := 0
	for _, c := range sorted(got) {
		if isNode[c.From] || isNode[c.To] {
			shares[n%len(agents)] = append(shares[n%len(agents)], c)
			n++
		}
	}
	answers := make(map[Cell]Answer, n)
	var mu sync.Mutex
	take := func(c Cell, a Answer) {
		mu.Lock()
		defer mu.Unlock()
		answers[c] = a
		if tell != nil {
			tell(len(answers), n)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	for i, a := range agents {
		group.Go(func() error { return ask(ctx, bed, a, shares[i], take) })
	}
	return answers, group.Wait()
}

// ask asks one node.
func ask(ctx context.Context, bed *testbed.Bed, a *testbed.Agent, cells []Cell, take func(Cell, Answer)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var input, stderr strings.Builder
	for _, c := range cells {
		fmt.Fprintf(&input, "%s %s %s", addressOf(bed.Host(c.From), c.V6), addressOf(bed.Host(c.To), c.V6), c.Probe.Proto)
		if c.Probe.Port != 0 {
			fmt.Fprintf(&input, " %d", c.Probe.Port)
		}
		input.WriteString("\n")
	}
	cmd := a.Host().Command(ctx, "sh", "-c", questions, a.Binary, a.ConfigPath)
	cmd.Env = append(cmd.Env, a.Env...)
	cmd.Stdin, cmd.Stderr = strings.NewReader(input.String()), &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("cannot ask %s: %w", a.Host().Name(), err)
	}
	stream := json.NewDecoder(out)
	for _, c := range cells {
		answer := Answer{On: a.Host().Name()}
		err := stream.Decode(&answer)
		if err == nil {
			err = stream.Decode(&answer.Code)
		}
		if err != nil { // no answer but its exit code, for example
			cancel()
			_ = cmd.Wait() // it was killed
			return fmt.Errorf("cannot read what explain on %s says about %s: %w\n%s", answer.On, c, err, stderr.String())
		}
		take(c, answer)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("cannot ask %s: %w: %s", a.Host().Name(), err, stderr.String())
	}
	return nil
}

// Disagree lists the cells where explain says something else than the packets, or contradicts itself.
func Disagree(got map[Cell]Outcome, answers map[Cell]Answer) []string {
	var wrong []string
	for _, c := range sorted(got) {
		a, asked := answers[c]
		if !asked {
			continue
		}
		code, want := 4, Blocked
		if a.Allowed {
			code, want = 0, Through
		}
		if got[c] != want || a.Code != code {
			wrong = append(wrong, fmt.Sprintf("%s: %s, but explain on %s says allowed: %v, exit code %d", c, got[c], a.On, a.Allowed, a.Code))
		}
	}
	return wrong
}
