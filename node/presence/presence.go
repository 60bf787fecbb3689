// Package presence knows who was heard from, and what time the fleet says it
// is. Both come from heartbeats, which every host sends to two voters.
//
// A voter keeps the last heartbeat of each host in a Table, in memory only:
// after a restart a host is unknown, not lost. A host keeps in a Clock what
// time the voters said, because it may start a command only on the word of k
// of them (k as in trust.json), never on its own clock, which may be wrong or
// set back on purpose. Beats is the loop that feeds both.
package presence

import (
	"sync"
	"time"

	"fleet/node/fleet"
)

// Seen is what a voter last heard from a host.
type Seen struct {
	LastSeen time.Time              // by the voter's clock
	Version  string                 // of the program on the host
	Program  fleet.Digest           // its SHA-256; zero for not known
	Boot     string                 // the host's boot ID
	Trust    uint32                 // version of trust.json that the host holds
	Warnings []string               // codes, at most 8
	Starts   int                    // how often it was started in the last ten minutes, in answers; 0 in a Table
	Keys     uint32                 // version of the gossip keys that the host holds; 0 for not known
	Reach    map[fleet.NodeID]Reach // by quorum host, in answers that several made; nil in a Table
	Clones   []string               // where several hosts were heard from that say they are this one; nil for one
}

// Reach is how one quorum host gets to a host.
type Reach struct {
	Reverse bool // the host keeps a connection open to it
	Dial    Dial
}

// Dial is what a quorum host knows of dialling a host. The numbers cross the
// wire: append only.
type Dial uint8

// What is known of dialling.
const (
	NotDialled Dial = 0
	Answers    Dial = 1
	Silent     Dial = 2 // it did not answer several times
)

// Table holds the newest heartbeat of each host. It is bounded by its caller,
// which records enrolled hosts only.
type Table struct {
	window time.Duration // for which instances of a node are compared

	mu    sync.Mutex // guards rows and turns
	rows  map[fleet.NodeID]Seen
	turns map[fleet.NodeID]*turns
}

// NewTable makes an empty table. Window is for how long two hosts that say they
// are one node are remembered: a few heartbeats.
func NewTable(window time.Duration) *Table {
	return &Table{window: window, rows: map[fleet.NodeID]Seen{}, turns: map[fleet.NodeID]*turns{}}
}

// Record keeps s if it is newer than what is known.
func (t *Table) Record(node fleet.NodeID, s Seen) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.LastSeen.After(t.rows[node].LastSeen) {
		t.rows[node] = s
	}
}

// Get answers what is known of one host.
func (t *Table) Get(node fleet.NodeID) (Seen, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, ok := t.rows[node]
	return s, ok
}

// Forget drops a host that is of the fleet no more.
func (t *Table) Forget(node fleet.NodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.rows, node)
	delete(t.turns, node)
}

// All is a copy of the table.
func (t *Table) All() map[fleet.NodeID]Seen {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make(map[fleet.NodeID]Seen, len(t.rows))
	for id, s := range t.rows {
		all[id] = s
	}
	return all
}

// Merge adds rows of another voter's table; the newer of two rows stays. What
// each says of its way to the host is kept.
func Merge(into map[fleet.NodeID]Seen, node fleet.NodeID, s Seen) {
	have := into[node]
	reach, clones, starts := have.Reach, have.Clones, have.Starts
	if clones == nil { // one voter may hear only one of the hosts
		clones = s.Clones
	}
	if s.LastSeen.After(have.LastSeen) {
		have = s
	}
	for voter, r := range s.Reach {
		if reach == nil {
			reach = map[fleet.NodeID]Reach{}
		}
		reach[voter] = r
	}
	have.Reach, have.Clones, have.Starts = reach, clones, max(starts, s.Starts)
	into[node] = have
}
