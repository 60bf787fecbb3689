package upgrade

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"fleet/node/fleet"
)

// Host is a host as a plan sees it.
type Host struct {
	ID      fleet.NodeID
	Name    string
	Version string
	Digest  fleet.Digest // of its program; zero for not known
	Voter   bool
	Leader  bool
	Online  bool
}

// Phase is a part of a plan that has to be over before the next one begins.
type Phase struct {
	Name      string
	Hosts     []Host // in the order in which they are upgraded
	AtOnce    int    // of them, at most
	MaxErrors int    // more than these end the phase
}

// Names of the phases.
const (
	Canaries = "canaries"
	Rest     = "hosts"
	Voters   = "voters"
)

// Plan is an upgrade of a fleet.
type Plan struct {
	Phases []Phase // none is empty
	Done   []Host  // run the program already
	Away   []Host  // are not heard of: they are not upgraded now
}

// Portion is a number of hosts, or a share of them.
type Portion struct {
	N       int
	Percent bool
}

// ParsePortion reads "5" or "10%". The least is 0 or 1.
func ParsePortion(s string, least int) (Portion, error) {
	text, percent := strings.CutSuffix(s, "%")
	n, err := strconv.Atoi(text)
	if err != nil || n < least || percent && n > 100 || n > 1<<20 || text != strconv.Itoa(n) {
		return Portion{}, fleet.Errorf(fleet.Invalid, "%.20q is neither a number of hosts from %d on, nor a share of them such as 10%%", s, least)
	}
	return Portion{n, percent}, nil
}

func (p Portion) String() string {
	if p.Percent {
		return fmt.Sprintf("%d%%", p.N)
	}
	return strconv.Itoa(p.N)
}

// of is the portion of so many, rounded down, as SSM rounds; at least least.
func (p Portion) of(all, least int) int {
	n := p.N
	if p.Percent {
		n = all * p.N / 100
	}
	return max(least, min(n, all))
}

// Choice is what an operator said of a plan.
type Choice struct {
	Programs  map[fleet.Digest]bool
	Canary    int            // so many hosts that do not vote
	Named     []fleet.NodeID // these instead, whatever they are
	AtOnce    Portion
	MaxErrors Portion
}

// MakePlan puts hosts into phases: canaries, the others, then voters one at a
// time, the leader last. The canaries of a number are the same ones each time:
// who begins again after a failure goes on where it was.
func MakePlan(hosts []Host, c Choice) Plan {
	hosts = slices.SortedFunc(slices.Values(hosts), func(a, b Host) int { return strings.Compare(string(a.ID), string(b.ID)) })
	var canaries, rest, voters []Host
	left := c.Canary
	for _, h := range hosts {
		named := slices.Contains(c.Named, h.ID)
		switch {
		case named:
			canaries = append(canaries, h)
		case h.Voter:
			voters = append(voters, h)
		case len(c.Named) == 0 && left > 0 && h.Online:
			left--
			canaries = append(canaries, h)
		default:
			rest = append(rest, h)
		}
	}
	slices.SortStableFunc(voters, func(a, b Host) int {
		switch {
		case a.Leader == b.Leader:
			return 0
		case a.Leader:
			return 1
		}
		return -1
	})
	var p Plan
	add := func(name string, all []Host, atOnce, maxErrors int) {
		var todo []Host
		for _, h := range all {
			switch {
			case c.Programs[h.Digest]:
				p.Done = append(p.Done, h)
			case !h.Online:
				p.Away = append(p.Away, h)
			default:
				todo = append(todo, h)
			}
		}
		if len(todo) > 0 {
			p.Phases = append(p.Phases, Phase{name, todo, max(1, min(atOnce, len(todo))), maxErrors})
		}
	}
	// A voter among the canaries goes alone too.
	atOnce := len(canaries)
	if slices.ContainsFunc(canaries, func(h Host) bool { return h.Voter }) {
		atOnce = 1
	}
	add(Canaries, canaries, atOnce, 0)
	add(Rest, rest, c.AtOnce.of(len(rest), 1), c.MaxErrors.of(len(rest), 0))
	add(Voters, voters, 1, 0)
	return p
}

// Hosts is how many are to be upgraded.
func (p Plan) Hosts() (n int) {
	for _, phase := range p.Phases {
		n += len(phase.Hosts)
	}
	return n
}

// Next are the hosts of a phase that the next command goes to, when the first
// done of them are over and failed of those did not succeed; none when the phase
// is over. One command has a whole phase, paced by the quorum, which goes on
// when the terminal that began it has gone. Only voters get one each, because
// before each of them is looked whether the others answer.
func (p Phase) Next(done, failed int) []Host {
	if failed > p.MaxErrors || done >= len(p.Hosts) {
		return nil
	}
	if p.voters() {
		return p.Hosts[done : done+1]
	}
	return p.Hosts[done:]
}

func (p Phase) voters() bool {
	return slices.ContainsFunc(p.Hosts, func(h Host) bool { return h.Voter })
}

// Pace is how a command of a phase is paced: how many of so many hosts at once,
// and past how many failures it begins nowhere any more. A host that begins and is
// not heard of again is a failure when it must be over (fleet.Command.Failures).
func (p Phase) Pace(hosts int) (concurrency, maxErrors string) {
	if p.AtOnce >= hosts && p.Name != Rest {
		return "100%", "100%"
	}
	return strconv.Itoa(min(p.AtOnce, hosts)), strconv.Itoa(min(p.MaxErrors, hosts))
}

// Rounds is how often, one after the other, hosts of a command begin.
func (p Phase) Rounds(hosts int) int { return (hosts + p.AtOnce - 1) / p.AtOnce }

// Spread are hosts that have a program, for those that come next to ask: those
// that were last, and not too many.
func Spread(have []Host) []fleet.NodeID {
	var ids []fleet.NodeID
	for _, h := range slices.Backward(have) {
		if len(ids) < maxSources && !slices.Contains(ids, h.ID) {
			ids = append(ids, h.ID)
		}
	}
	slices.SortFunc(ids, func(a, b fleet.NodeID) int { return cmp.Compare(a, b) })
	return ids
}
