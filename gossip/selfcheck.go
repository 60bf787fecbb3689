package gossip

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"fleet/node/fleet"
)

// A host can be missing in the rings of the others and not know it: they sent
// its end around while it did not listen, they hold a newer record of it than
// its own (a machine that went back to an older image), or its packets get
// nowhere. memberlist finds that out for others only. So each host asks a few
// members, over connections with certificates, whether they list it, and what it
// does about a "no" grows with the number of times that it hears it in a row.
const (
	checkEvery     = 15 * time.Second // stretched or shrunk by up to a quarter
	fastCheckEvery = 2 * time.Second
	checkTimeout   = 5 * time.Second
	checkAsks      = 3
	announceAt     = 1 // say again that it is there, to those who do not list it first
	renewAt        = 2 // ask the quorum for a node record of now, which outranks all others
	remakeAt       = 4 // begin a new ring: whatever is wrong with this one ends with it

	// drastic is how long after a record was renewed or a ring remade it is not
	// done again: what did not help then will not help now, and peers that lie
	// must not keep a host busy.
	drastic = 10 * time.Minute
)

// remedy is what a host does that is not listed.
type remedy uint8

const (
	nothing remedy = iota
	announce
	renew
	remake
)

// standing is what the self-checks so far have shown.
type standing struct {
	misses  int
	renewed time.Time
	remade  time.Time
}

// step takes the answers of one check: how many list this host and how many do
// not. One voice against it is enough only where there is no other to ask.
func (s standing) step(yes, no, others int, now time.Time) (standing, remedy) {
	switch {
	case yes+no == 0:
		return s, nothing // nobody answered: that says nothing of what they list
	case no <= yes || no == 1 && others > 1:
		s.misses = 0
		return s, nothing
	}
	s.misses++
	switch {
	case s.misses >= remakeAt && now.Sub(s.remade) >= drastic:
		s.misses, s.remade = 0, now
		return s, remake
	case s.misses >= renewAt && now.Sub(s.renewed) >= drastic:
		s.renewed = now
		return s, renew
	case s.misses >= announceAt:
		return s, announce
	}
	return s, nothing
}

// selfCheck runs until ctx is done or the ring is to be remade.
func (r *Ring) selfCheck(ctx context.Context) {
	every := checkEvery
	if r.cfg.Fast {
		every = fastCheckEvery
	}
	s := standing{remade: time.Now()}
	for {
		timer := time.NewTimer(time.Duration(float64(every) * (0.75 + rand.Float64()/2)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		peers := r.alivePeers()
		yes, unlisted := r.ask(ctx, peers)
		if ctx.Err() != nil {
			return
		}
		var do remedy
		s, do = s.step(yes, len(unlisted), len(peers), time.Now())
		if do == nothing {
			continue
		}
		r.counts.unlisted.Add(1)
		r.cfg.Logger.Warn("this host is missing in the rings of others", "asked", yes+len(unlisted), "missing", len(unlisted), "times", s.misses)
		if do == remake {
			close(r.unlisted)
			return
		}
		r.speakUp(ctx, do, unlisted)
	}
}

// alivePeers are the other members that this host sees alive.
func (r *Ring) alivePeers() []Seed {
	var peers []Seed
	for _, m := range r.Members() {
		if m.State == Alive && m.Node != r.cfg.Self {
			peers = append(peers, Seed{Node: m.Node, Address: m.Addr.String()})
		}
	}
	return peers
}

// ask asks a few peers whether they list this host: how many do, and who does
// not.
func (r *Ring) ask(ctx context.Context, peers []Seed) (yes int, unlisted []Seed) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var mu sync.Mutex // guards yes and unlisted
	var wg sync.WaitGroup
	for _, i := range rand.Perm(len(peers))[:min(checkAsks, len(peers))] {
		wg.Go(func() {
			listed, err := r.cfg.Listed(ctx, peers[i].Node)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if listed {
				yes++
			} else {
				unlisted = append(unlisted, peers[i])
			}
		})
	}
	wg.Wait()
	return yes, unlisted
}

// speakUp says again that this host is there: by gossip with a higher
// incarnation, and to one of those who do not list it by an exchange of states.
func (r *Ring) speakUp(ctx context.Context, do remedy, unlisted []Seed) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if do == renew && r.cfg.Renew != nil {
		if err := r.cfg.Renew(ctx); err != nil {
			r.cfg.Logger.Debug("no newer node record", "err", err)
		}
	}
	if err := r.UpdateRecord(); err != nil {
		if fleet.KindOf(err) == fleet.Conflict { // its owner makes a new ring
			return
		}
		r.cfg.Logger.Debug("not announced", "err", err)
	}
	if _, err := r.Join(ctx, unlisted); err != nil && ctx.Err() == nil {
		r.cfg.Logger.Debug("not joined through those who do not list this host", "err", err)
	}
}

// Unlisted is closed when the others still do not list this host after it did
// what a running ring can do about it: leave, close, and make a new ring.
func (r *Ring) Unlisted() <-chan struct{} { return r.unlisted }

// Lists reports whether a node is alive as this host sees it.
func (r *Ring) Lists(node fleet.NodeID) bool { return r.members.alive(node) }
