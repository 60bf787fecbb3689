package node

import (
	"context"
	"crypto/rand"
	"log/slog"
	"sync"
	"time"

	"fleet/gossip"
	"fleet/node/control"
	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/presence"
	"fleet/node/rpc"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// This file rotates the gossip key: the leader makes a new one, when an operator
// asks, when a host is removed that knows the old one, or when that is old; hosts
// get it in the answers to their heartbeats; and the old one is dropped when they
// have it. Whoever was away gets it with his first heartbeat, which needs no
// gossip.

// ringKeys are the gossip keys that this host uses. The zero value holds none
// and loads them from the data directory.
type ringKeys struct {
	mu      sync.Mutex // guards the rest
	version uint32     // 0 until a voter said it
	keys    [][]byte   // nil until loaded

	// What the ring had opened and refused, and since when it opened no more.
	opened, refused uint64
	since           time.Time
}

// load gives the keys, from the data directory the first time.
func (k *ringKeys) load(dir *enrol.Dir) ([][]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys == nil {
		keys, err := dir.GossipKeys()
		if err != nil {
			return nil, err
		}
		k.keys = keys
	}
	return k.keys, nil
}

// into gives a ring the keys as they are now.
func (k *ringKeys) into(ring *gossip.Ring, log *slog.Logger) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys == nil {
		return
	}
	if err := ring.SetKeys(k.keys); err != nil {
		log.Warn("gossip keys not taken into use", "err", err)
	}
}

// A host that was told false keys is noticed by nobody: its connections still
// work, and memberlist falls back to them. When it could open no packet for so
// long, and refused some, it asks for the keys whatever their version.
const (
	keysDoubtedAfter = time.Minute
	keysDoubtedFor   = 20 // packets
)

// wanted is the version that a heartbeat says is held; 0 asks for the keys.
func (k *ringKeys) wanted(s gossip.Stats, now time.Time) uint32 {
	k.mu.Lock()
	defer k.mu.Unlock()
	if s.PacketsOpened != k.opened || s.PacketsRefused < k.refused || k.since.IsZero() { // another ring counts anew
		k.opened, k.refused, k.since = s.PacketsOpened, s.PacketsRefused, now
	}
	if now.Sub(k.since) >= keysDoubtedAfter && s.PacketsRefused-k.refused >= keysDoubtedFor {
		return 0
	}
	return k.version
}

// gossipStats are the counters of the ring as it is; none without one.
func (n *Node) gossipStats() gossip.Stats {
	if ring := n.ringRef.Load(); ring != nil {
		return ring.Stats()
	}
	return gossip.Stats{}
}

// takeGossipKeys takes what a voter said for use; asked is the version that the
// heartbeat named.
func (n *Node) takeGossipKeys(said *rpc.GossipKeys, asked uint32) {
	if said == nil {
		return
	}
	k := &n.ringKeys
	k.mu.Lock()
	defer k.mu.Unlock()
	if said.Version <= k.version && asked != 0 || said.Version == k.version {
		return
	}
	// Written down first: a host that starts with keys that count no more would
	// be alone until its first heartbeat.
	if err := n.dir.SaveGossipKeys(said.Keys); err != nil {
		n.log.Warn("gossip keys not written down", "err", err)
		return
	}
	n.log.Info("gossip keys changed", "version", said.Version, "was", k.version)
	k.version, k.keys = said.Version, said.Keys
	n.beats.Kick() // the leader waits to hear of it
	if ring := n.ringRef.Load(); ring != nil {
		if err := ring.SetKeys(k.keys); err != nil {
			n.log.Warn("gossip keys not taken into use", "err", err)
		}
	}
}

// keyPolicy says when the leader takes the next step of a rotation.
type keyPolicy struct {
	age   time.Duration // after which a new key is made
	beats time.Duration // after a step, until each live host has been heard again
	grace time.Duration // after a step, until those that were not are not waited for
}

func (n *Node) keyPolicy() keyPolicy {
	p := keyPolicy{age: control.GossipKeyAge, beats: 2 * n.heartbeatInterval(), grace: 10 * time.Minute}
	if n.cfg.Timing.Fast {
		p.grace = time.Minute
	}
	return p
}

// next is the step that is due at now; 0 if none. Behind is how many live hosts
// do not have the keys as they are, removed the log index of the last removal of
// a host.
func (p keyPolicy) next(keys *state.GossipKeys, behind int, removed uint64, now time.Time) entry.GossipStep {
	since := now.Sub(time.Unix(0, keys.Stepped))
	spread := since >= p.grace || behind == 0 && since >= p.beats
	switch {
	case keys.Spreading() && spread:
		return entry.GossipKeyUsed
	case keys.Retiring() && spread:
		return entry.GossipKeyDropped
	case len(keys.Keys) == 1 && (removed > keys.Index || now.Sub(time.Unix(0, keys.Newest().Made)) >= p.age):
		return entry.GossipKeyMade
	}
	return 0
}

// rotateGossipKeys takes the steps of a rotation while this host leads.
func (m *member) rotateGossipKeys(ctx context.Context) {
	policy := m.n.keyPolicy()
	began := m.n.cfg.Now()
	for {
		timer := time.NewTimer(policy.beats / 4)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		store := m.fsm.Store()
		keys := store.GossipKeys()
		if keys == nil {
			continue
		}
		var removed uint64
		for _, r := range store.Removals() {
			removed = max(removed, r.Index)
		}
		now := m.n.cfg.Now()
		behind := 0
		if len(keys.Keys) > 1 { // else nobody is waited for
			behind = m.behindKeys(ctx, store, keys.Version, now)
		}
		step := policy.next(keys, behind, removed, now)
		if step == 0 || ctx.Err() != nil || now.Sub(began) < policy.beats {
			continue // a new leader has yet to hear who lives
		}
		if err := m.stepGossipKeys(ctx, step, keys.Version, now); err != nil {
			m.n.log.Warn("rotation of the gossip key delayed", "step", step, "err", err)
		}
	}
}

// behindKeys counts the live hosts that are not known to hold this version.
func (m *member) behindKeys(ctx context.Context, store *state.Store, version uint32, now time.Time) int {
	heard := m.control.Presence(ctx)
	behind := 0
	for _, node := range store.Nodes() {
		if seen := heard[node.ID]; m.n.isLive(seen, now) && seen.Keys < version {
			behind++
		}
	}
	return behind
}

// isLive reports whether a host was heard of lately.
func (n *Node) isLive(seen presence.Seen, now time.Time) bool {
	return now.Sub(seen.LastSeen) < 3*n.heartbeatInterval()
}

func (m *member) stepGossipKeys(ctx context.Context, step entry.GossipStep, version uint32, now time.Time) error {
	e := &entry.GossipKey{Stamp: now.UnixNano(), Step: step, Version: version}
	if step == entry.GossipKeyMade {
		e.Key = make([]byte, entry.GossipKeySize)
		if _, err := rand.Read(e.Key); err != nil {
			return err
		}
	}
	answer, err := m.control.Propose(ctx, e)
	if err == nil {
		err = answer.Err
	}
	if fleet.KindOf(err) == fleet.Conflict {
		return nil // an operator was first; the next look knows more
	}
	if err == nil {
		m.n.log.Info("gossip key", "step", gossipSteps[step], "version", version+1)
	}
	return err
}

var gossipSteps = map[entry.GossipStep]string{
	entry.GossipKeyMade: "made", entry.GossipKeyUsed: "in use", entry.GossipKeyDropped: "old one dropped",
}
