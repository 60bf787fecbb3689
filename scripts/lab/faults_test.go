//go:build lab && linux

package lab_test

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"fleet/scripts/lab"
)

// Faults of fleet's processes, on a fleet of five with three voters. Each part
// shows that the helper did what it says and that the fleet stood it.
func TestFaults(t *testing.T) {
	t.Parallel()
	l := lab.New(t, lab.Options{Hosts: 5, Clocks: true})
	h := l.Hosts()
	l.Found(3)
	first, last := h[0], h[4]

	t.Run("kill", func(t *testing.T) {
		l.In(t)
		last.Kill()
		if last.Running() {
			t.Error("fleet runs after it was killed")
		}
		last.StartAgent()
		last.WaitReady()
		runsOn(t, first, h)
	})
	t.Run("pause", func(t *testing.T) {
		l.In(t)
		leader := l.WaitLeader(first, nil, time.Minute)
		asked, others := first, []*lab.Host{}
		for _, x := range h {
			if x != leader {
				others = append(others, x)
			}
		}
		if leader == first {
			first.CopyTo(h[1], credential)
			asked = h[1]
		}
		leader.Pause()
		now := l.WaitLeader(asked, leader, time.Minute)
		t.Logf("%s was paused, %s leads", leader.Name(), now.Name())
		runsOn(t, asked, others)
		leader.Resume()
		leader.WaitReady()
		runsOn(t, asked, h)
	})
	t.Run("clock", func(t *testing.T) {
		l.In(t)
		last.Kill()
		last.SkewClock(-24 * time.Hour)
		agent := last.StartAgent()
		agent.WaitLog("agent started")
		logged(t, agent, -24*time.Hour)
		last.WaitReady()
		last.SkewClock(time.Hour) // while it runs
		agent.Stop()
		logged(t, agent, time.Hour)
		last.SkewClock(0)
		last.StartAgent()
		last.WaitReady()
		runsOn(t, first, h)
	})
	t.Run("cut minority", func(t *testing.T) {
		l.In(t)
		leader := l.WaitLeader(first, nil, time.Minute)
		i := 1 // a voter that does not lead, and is not where things are typed
		if leader == h[1] {
			i = 2
		}
		asked := h[3-i] // a voter of the majority
		first.CopyTo(asked, credential)
		first.CopyTo(h[i], credential)
		l.Isolate(h[i])
		l.Wait(h[i].Name()+" to say that it is alone", time.Minute, func() bool {
			s, err := h[i].Status()
			return err == nil && !s.QuorumReachable
		})
		h[i].Fleet("quorum", "ls").Want(3)
		var others []*lab.Host
		for _, x := range h {
			if x != h[i] {
				others = append(others, x)
			}
		}
		runsOn(t, asked, others)
		l.Heal()
		h[i].WaitReady()
		runsOn(t, asked, h)
	})
}

// A fleet on IPv6 alone.
func TestFleetOnIPv6(t *testing.T) {
	t.Parallel()
	l := lab.New(t, lab.Options{Hosts: 3, Families: lab.IPv6Only})
	l.Found(3)
	runsOn(t, l.Hosts()[0], l.Hosts())
}

// Two hosts that nobody can dial take part in everything.
func TestInboundDropped(t *testing.T) {
	t.Parallel()
	l := lab.New(t, lab.Options{Hosts: 5})
	h := l.Hosts()
	deaf := h[3:]
	for _, x := range deaf {
		x.DropInbound()
	}
	l.Found(3)
	first := h[0]
	runsOn(t, first, h)
	runsOn(t, first, deaf)
	out := first.Fleet("run", "--node", deaf[0].Name(), "--", "seq 5000").OK().Stdout
	if !strings.Contains(out, "5000") {
		t.Errorf("5000 lines of output: %q", out[max(0, len(out)-200):])
	}

	// What it ran while nobody heard it arrives when it is heard again.
	l.Isolate(deaf[1])
	l.Wait(deaf[1].Name()+" to be alone", time.Minute, func() bool {
		s, err := deaf[1].Status()
		return err == nil && !s.QuorumReachable
	})
	l.Heal()
	deaf[1].WaitReady()
	runsOn(t, first, h)

	// The leader that it had its connections to goes.
	leader := l.WaitLeader(first, nil, time.Minute)
	asked := first
	if leader == first {
		asked = h[1]
		first.CopyTo(asked, credential)
	}
	leader.PowerOff()
	l.WaitLeader(asked, leader, time.Minute)
	runsOn(t, asked, deaf)
}

const credential = "/root/.config/fleet/acme"

// runsOn runs a command from one host on others, and wants each to answer with
// its own name.
func runsOn(t *testing.T, from *lab.Host, on []*lab.Host) {
	t.Helper()
	args := []string{"run"}
	for _, h := range on {
		args = append(args, "--node", h.Name())
	}
	r := from.Fleet(append(args, "--", "hostname")...).OK()
	for _, h := range on {
		if !strings.Contains(r.Stdout, "\n  "+h.Name()+"\n") {
			t.Errorf("%s did not answer:\n%s%s", h.Name(), r.Stdout, r.Stderr)
		}
	}
}

// logged checks the time of the last line of a log.
func logged(t *testing.T, p *lab.Proc, skew time.Duration) {
	t.Helper()
	all := regexp.MustCompile(`(?m)^time=(\S+)`).FindAllStringSubmatch(p.Log(), -1)
	if len(all) == 0 {
		t.Fatalf("no time in the log:\n%s", p.Log())
	}
	at, err := time.Parse(time.RFC3339, all[len(all)-1][1])
	if err != nil {
		t.Fatal(err)
	}
	if off := time.Until(at) - skew; off.Abs() > 2*time.Minute {
		t.Errorf("with a clock that is %v off, the log says %v", skew, at)
	}
}
