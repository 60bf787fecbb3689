package quota

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

func TestTake(t *testing.T) {
	l := New[string](Rate{PerSecond: 2, Burst: 3}, 10)
	now := time.Unix(1000, 0)
	for i := range 3 {
		if wait := l.Take("a", now); wait != 0 {
			t.Errorf("take %d of a burst of 3 has to wait for %s", i+1, wait)
		}
	}
	if wait := l.Take("a", now); wait != 500*time.Millisecond {
		t.Errorf("the fourth has to wait for %s, want 500ms", wait)
	}
	if wait := l.Take("a", now); wait != 500*time.Millisecond {
		t.Errorf("a refusal cost something: %s", wait)
	}
	if wait := l.Take("b", now); wait != 0 {
		t.Errorf("another has to wait for %s", wait)
	}
	if wait := l.Take("a", now.Add(499*time.Millisecond)); wait <= 0 || wait > 2*time.Millisecond {
		t.Errorf("a little early: %s", wait)
	}
	if wait := l.Take("a", now.Add(500*time.Millisecond)); wait != 0 {
		t.Errorf("in time: %s", wait)
	}
	if wait := l.Take("a", now.Add(-time.Hour)); wait <= 0 {
		t.Error("a clock that went back earned something")
	}
	now = now.Add(time.Hour)
	taken := 0
	for l.Take("a", now) == 0 {
		taken++
	}
	if taken != 3 {
		t.Errorf("%d at once after a rest, want 3", taken)
	}
}

// In any run nobody does more than its rate allows, and the memory is bounded.
func TestNobodyExceeds(t *testing.T) {
	rate := Rate{PerSecond: 20, Burst: 40}
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		l := New[string](rate, 8)
		now, start := time.Unix(1000, 0), time.Unix(1000, 0)
		done := map[string]int{}
		for range 20000 {
			now = now.Add(time.Duration(r.IntN(4)) * time.Millisecond)
			who := fmt.Sprint(r.IntN(20))
			if l.Take(who, now) == 0 {
				done[who]++
			}
			if l.Known() > 8 {
				t.Fatalf("%d identities are remembered", l.Known())
			}
		}
		for who, n := range done {
			// Who was forgotten was full, and may begin with a burst again when
			// it had shared the last bucket before: two bursts at most.
			if most := 2*rate.Burst + int(now.Sub(start).Seconds()*rate.PerSecond) + 1; n > most {
				t.Errorf("seed %d: %s did %d things in %s, at most %d", seed, who, n, now.Sub(start), most)
			}
		}
	}
}

// Made-up identities take places, never those of who is busy.
func TestStrangersShare(t *testing.T) {
	l := New[int](Rate{PerSecond: 1, Burst: 5}, 100)
	now := time.Unix(1000, 0)
	for range 3 {
		l.Take(-1, now)
	}
	for i := range 100 * 1000 {
		l.Take(i, now)
	}
	if l.Known() > 100 {
		t.Errorf("%d identities are remembered", l.Known())
	}
	taken := 0
	for l.Take(-1, now) == 0 {
		taken++
	}
	if taken != 2 {
		t.Errorf("who was there before the strangers had %d left, want 2", taken)
	}
}
