package presence

import (
	"slices"
	"time"

	"fleet/node/fleet"
)

// Two hosts with a copy of one data directory are one node to everybody. What
// tells them apart is that each start of an agent draws an instance: a host that
// was started anew is heard with another instance and never with the old one
// again, two that run are heard in turns.

const (
	// cloneTurns is how often an instance must be heard again after another was.
	// Once is not enough: a heartbeat may be late that was sent before a restart.
	cloneTurns = 2

	// maxInstances is how many instances of one node are remembered.
	maxInstances = 4
)

// instance is one run of an agent.
type instance struct {
	boot   string
	source string // where it was heard from
	heard  time.Time
}

// turns is what is remembered of the instances of one node.
type turns struct {
	known []instance // the one that was heard last stands last
	count int        // how often one came again, without a pause
	last  time.Time  // when that was

	boot   string      // the newest instance
	starts []time.Time // when newer ones were first heard, at most maxStarts
}

// A host that starts again and again is of no use as it is, and a person should
// look at it: so many starts in so long are told of.
const (
	startsSpan = 10 * time.Minute
	maxStarts  = 64 // are counted
)

// start notes the instance that was heard. The first of a node, after a voter's
// own start, is none.
func (t *turns) start(boot string, now time.Time) {
	if boot == t.boot || slices.ContainsFunc(t.known, func(i instance) bool { return i.boot == boot }) {
		return
	}
	if t.boot != "" {
		t.forgetStarts(now)
		if len(t.starts) == maxStarts {
			t.starts = slices.Delete(t.starts, 0, 1)
		}
		t.starts = append(t.starts, now)
	}
	t.boot = boot
}

func (t *turns) forgetStarts(now time.Time) {
	t.starts = slices.DeleteFunc(t.starts, func(at time.Time) bool { return now.Sub(at) > startsSpan })
}

// hear takes a heartbeat. Window is how long what was heard counts.
func (t *turns) hear(boot, source string, now time.Time, window time.Duration) {
	if now.Sub(t.last) > window {
		t.count = 0
	}
	t.known = slices.DeleteFunc(t.known, func(i instance) bool { return now.Sub(i.heard) > window })
	at := slices.IndexFunc(t.known, func(i instance) bool { return i.boot == boot })
	if at >= 0 && at < len(t.known)-1 {
		t.count, t.last = t.count+1, now
	}
	if at >= 0 {
		t.known = slices.Delete(t.known, at, at+1)
	} else if len(t.known) == maxInstances {
		t.known = slices.Delete(t.known, 0, 1)
	}
	t.known = append(t.known, instance{boot, source, now})
}

// clones is where the hosts that take turns were heard from, in order; nil for
// one host.
func (t *turns) clones(now time.Time, window time.Duration) []string {
	if t.count < cloneTurns || now.Sub(t.last) > window {
		return nil
	}
	var sources []string
	for _, i := range t.known {
		sources = append(sources, i.source)
	}
	slices.Sort(sources)
	return sources
}

// Hear notes which instance of a node was heard, and from where.
func (t *Table) Hear(node fleet.NodeID, boot, source string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.turns[node]
	if h == nil {
		h = &turns{}
		t.turns[node] = h
	}
	h.start(boot, now)
	h.hear(boot, source, now, t.window)
}

// Starts is how often a node was heard to have started in the last ten minutes.
func (t *Table) Starts(node fleet.NodeID, now time.Time) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.turns[node]
	if h == nil {
		return 0
	}
	h.forgetStarts(now)
	return len(h.starts)
}

// Clones is where the hosts were heard from that say they are this node; nil
// while one does.
func (t *Table) Clones(node fleet.NodeID, now time.Time) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.turns[node]; h != nil {
		return h.clones(now, t.window)
	}
	return nil
}
