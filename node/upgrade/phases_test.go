package upgrade

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"fleet/node/fleet"
)

func hostN(n int) Host {
	return Host{ID: fleet.NodeID(fmt.Sprintf("mi-%017x", n)), Name: fmt.Sprintf("h%d", n), Online: true}
}

// describe is a plan in one line.
func describe(p Plan) string {
	var parts []string
	names := func(hosts []Host) string {
		var all []string
		for _, h := range hosts {
			all = append(all, h.Name)
		}
		return strings.Join(all, " ")
	}
	for _, phase := range p.Phases {
		parts = append(parts, fmt.Sprintf("%s/%d/%d: %s", phase.Name, phase.AtOnce, phase.MaxErrors, names(phase.Hosts)))
	}
	if len(p.Done) > 0 {
		parts = append(parts, "done: "+names(p.Done))
	}
	if len(p.Away) > 0 {
		parts = append(parts, "away: "+names(p.Away))
	}
	return strings.Join(parts, "; ")
}

func TestPlan(t *testing.T) {
	program := fleet.Sum([]byte("new"))
	wanted := map[fleet.Digest]bool{program: true}
	// 1 to 3 vote, 2 leads, 4 to 9 do not vote.
	fleetOf := func(change func(n int, h *Host)) []Host {
		var all []Host
		for n := 9; n >= 1; n-- {
			h := hostN(n)
			h.Voter, h.Leader = n <= 3, n == 2
			if change != nil {
				change(n, &h)
			}
			all = append(all, h)
		}
		return all
	}
	choice := Choice{Programs: wanted, Canary: 2, AtOnce: Portion{50, true}, MaxErrors: Portion{0, false}}
	tests := []struct {
		name   string
		hosts  []Host
		choice Choice
		want   string
	}{
		{"all", fleetOf(nil), choice, "canaries/2/0: h4 h5; hosts/2/0: h6 h7 h8 h9; voters/1/0: h1 h3 h2"},
		{"begun", fleetOf(func(n int, h *Host) {
			if n == 4 || n == 7 || n == 3 {
				h.Digest = program
			}
		}), choice, "canaries/1/0: h5; hosts/2/0: h6 h8 h9; voters/1/0: h1 h2; done: h4 h7 h3"},
		{"over", fleetOf(func(_ int, h *Host) { h.Digest = program }), choice, "done: h4 h5 h6 h7 h8 h9 h1 h3 h2"},
		{"some are away", fleetOf(func(n int, h *Host) { h.Online = n != 4 && n != 1 && n != 9 }), choice,
			"canaries/2/0: h5 h6; hosts/2/0: h7 h8; voters/1/0: h3 h2; away: h4 h9 h1"},
		{"named canaries", fleetOf(nil), Choice{Programs: wanted, Canary: 2, Named: []fleet.NodeID{hostN(9).ID}, AtOnce: Portion{2, false}, MaxErrors: Portion{1, false}},
			"canaries/1/0: h9; hosts/2/1: h4 h5 h6 h7 h8; voters/1/0: h1 h3 h2"},
		{"a voter as canary", fleetOf(nil), Choice{Programs: wanted, Named: []fleet.NodeID{hostN(1).ID, hostN(5).ID}, AtOnce: Portion{100, true}},
			"canaries/1/0: h1 h5; hosts/5/0: h4 h6 h7 h8 h9; voters/1/0: h3 h2"},
		{"only voters", fleetOf(nil)[6:], choice, "voters/1/0: h1 h3 h2"},
		{"a small share", fleetOf(nil), Choice{Programs: wanted, AtOnce: Portion{10, true}, MaxErrors: Portion{50, true}},
			"hosts/1/3: h4 h5 h6 h7 h8 h9; voters/1/0: h1 h3 h2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := describe(MakePlan(tt.hosts, tt.choice)); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

// Of any fleet and any choice: each host stands in one place; voters come one at
// a time after all others; past the errors of a phase nobody begins; and never
// more at once than was said.
func TestPlanProperties(t *testing.T) {
	program := fleet.Sum([]byte("new"))
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		var hosts []Host
		for n := range r.IntN(40) {
			h := hostN(n)
			h.Voter, h.Online = n < 5, r.IntN(5) > 0
			h.Leader = n == 3
			if r.IntN(4) == 0 {
				h.Digest = program
			}
			hosts = append(hosts, h)
		}
		c := Choice{
			Programs: map[fleet.Digest]bool{program: true}, Canary: r.IntN(4),
			AtOnce: Portion{1 + r.IntN(50), r.IntN(2) == 0}, MaxErrors: Portion{r.IntN(5), r.IntN(2) == 0},
		}
		p := MakePlan(hosts, c)
		seen := map[fleet.NodeID]int{}
		for _, h := range append(append([]Host{}, p.Done...), p.Away...) {
			seen[h.ID]++
		}
		for i, phase := range p.Phases {
			if len(phase.Hosts) == 0 || phase.AtOnce < 1 || phase.AtOnce > len(phase.Hosts) {
				t.Fatalf("seed %d: phase %+v", seed, phase)
			}
			if phase.Name == Voters && (i != len(p.Phases)-1 || phase.AtOnce != 1 || phase.MaxErrors != 0) {
				t.Fatalf("seed %d: voters %+v", seed, phase)
			}
			for j, h := range phase.Hosts {
				seen[h.ID]++
				if h.Voter != (phase.Name == Voters) || h.Leader && j != len(phase.Hosts)-1 {
					t.Fatalf("seed %d: %s stands in %s at %d", seed, h.Name, phase.Name, j)
				}
			}
			done, failed, began := 0, 0, 0
			for next := phase.Next(done, failed); next != nil; next = phase.Next(done, failed) {
				at, errors := phase.Pace(len(next))
				n, err := ParsePortion(at, 1)
				if err != nil || n.of(len(next), 1) > phase.AtOnce || failed > phase.MaxErrors {
					t.Fatalf("seed %d: %d hosts, %s at once, begin after %d failures", seed, len(next), at, failed)
				}
				if m, err := ParsePortion(errors, 0); err != nil || phase.Name == Rest && m.of(len(next), 0) > phase.MaxErrors {
					t.Fatalf("seed %d: %s errors of %d hosts are let pass, %d may be", seed, errors, len(next), phase.MaxErrors)
				}
				if next[0].Voter && len(next) != 1 {
					t.Fatalf("seed %d: %d voters at once", seed, len(next))
				}
				began += len(next)
				done += len(next)
				if r.IntN(3) == 0 {
					failed++
				}
			}
			if failed <= phase.MaxErrors && began != len(phase.Hosts) {
				t.Fatalf("seed %d: %d of %d began", seed, began, len(phase.Hosts))
			}
		}
		if len(seen) != len(hosts) {
			t.Fatalf("seed %d: %d of %d hosts are in the plan", seed, len(seen), len(hosts))
		}
		for id, n := range seen {
			if n != 1 {
				t.Fatalf("seed %d: %s stands %d times", seed, id, n)
			}
		}
	}
}

func TestPortion(t *testing.T) {
	for text, want := range map[string]int{"5": 5, "10%": 4, "100%": 40, "1%": 1, "500": 40, "1": 1} {
		p, err := ParsePortion(text, 1)
		if err != nil || p.of(40, 1) != want || p.String() != text {
			t.Errorf("%s of 40: %d, %v", text, p.of(40, 1), err)
		}
	}
	for _, bad := range []string{"", "0", "-1", "101%", "1.5", "05", "%", "x"} {
		if p, err := ParsePortion(bad, 1); err == nil {
			t.Errorf("%q is read as %v", bad, p)
		}
	}
}
