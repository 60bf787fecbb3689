// Package quota bounds how much one identity may ask for in a time, so that one
// that was stolen, or runs wild, takes its own share and not that of others.
//
// It is a token bucket for each identity, and knows no clock. The number of
// buckets is bounded: one that is full says nothing and is forgotten, and when
// there is no place for another, all newcomers share one.
package quota

import (
	"sync"
	"time"
)

// Rate is what one identity may do.
type Rate struct {
	PerSecond float64 // in the long run
	Burst     int     // at once, after a rest
}

// Limiter counts what identities of a kind do. It may be used from any goroutine.
type Limiter[K comparable] struct {
	rate Rate
	most int

	mu      sync.Mutex // guards the rest
	buckets map[K]bucket
	rest    bucket // of all that found no place
}

type bucket struct {
	spent float64 // tokens that are missing in a full bucket
	at    time.Time
}

// New makes a limiter that tells at most so many identities apart.
func New[K comparable](rate Rate, most int) *Limiter[K] {
	return &Limiter[K]{rate: rate, most: most, buckets: make(map[K]bucket)}
}

// Take takes one token of an identity. Zero means that there was one; else it is
// how long until there is, and nothing was taken.
func (l *Limiter[K]) Take(who K, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, known := l.buckets[who]
	if !known && len(l.buckets) >= l.most && !l.makePlaceLocked(now) {
		wait := l.take(&l.rest, now)
		return wait
	}
	wait := l.take(&b, now)
	l.buckets[who] = b
	return wait
}

// Known is how many identities are told apart now.
func (l *Limiter[K]) Known() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.buckets)
}

func (l *Limiter[K]) take(b *bucket, now time.Time) time.Duration {
	b.refill(l.rate, now)
	if missing := b.spent + 1 - float64(l.rate.Burst); missing > 0 {
		return max(time.Duration(missing/l.rate.PerSecond*float64(time.Second)), 1)
	}
	b.spent++
	return 0
}

// refill gives back what time has earned. A clock that went back earns nothing.
func (b *bucket) refill(rate Rate, now time.Time) {
	if passed := now.Sub(b.at); passed > 0 {
		b.spent = max(0, b.spent-passed.Seconds()*rate.PerSecond)
	}
	b.at = now
}

// makePlaceLocked forgets the buckets that are full again.
func (l *Limiter[K]) makePlaceLocked(now time.Time) bool {
	for who, b := range l.buckets {
		if b.refill(l.rate, now); b.spent == 0 {
			delete(l.buckets, who)
		}
	}
	return len(l.buckets) < l.most
}
