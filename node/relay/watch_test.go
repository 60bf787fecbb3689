package relay

import (
	"testing"
	"time"
)

// TestWatch: when a child is given up, whatever it did last.
func TestWatch(t *testing.T) {
	start := time.Unix(1_790_000_000, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	const accept = time.Second // so quiet is 2.5 s, and silence 3.5 s
	type message struct{ at, fresh int }
	for _, tc := range []struct {
		name    string
		missing int
		got     []message
		due     int
		why     string
	}{
		{"nothing came", 3, nil, 1000, "did not accept in time"},
		{"accepted", 3, []message{{100, 0}}, 2600, "carried nothing to the rest in time"},
		{"beats alone do not help", 3, []message{{100, 0}, {1100, 0}, {2100, 0}}, 2600, "carried nothing to the rest in time"},
		{"news do", 3, []message{{100, 0}, {1100, 1}, {2100, 1}}, 4600, "carried nothing to the rest in time"},
		{"nothing is missing", 3, []message{{100, 0}, {1100, 3}}, 4600, "fell silent"},
		{"and beats keep it", 3, []message{{100, 0}, {1100, 3}, {9100, 0}}, 12600, "fell silent"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := &watch{accept: accept, opened: start, missing: tc.missing}
			for _, m := range tc.got {
				w.got(at(m.at), m.fresh)
			}
			due, why := w.due()
			if !due.Equal(at(tc.due)) || why != tc.why {
				t.Errorf("given up after %s because it %s, want after %d ms because it %s", due.Sub(start), why, tc.due, tc.why)
			}
		})
	}
}

// TestPace: the wait for a child follows what children took, and grows when
// they are given up, between its limits.
func TestPace(t *testing.T) {
	p := &Pace{}
	if got := p.Accept(); got != time.Second {
		t.Errorf("at first %s", got)
	}
	for range 100 {
		p.Saw(time.Millisecond)
	}
	if got := p.Accept(); got != minAccept {
		t.Errorf("with fast children %s, want %s", got, minAccept)
	}
	before := p.Accept()
	for range 5 {
		p.Saw(400 * time.Millisecond)
	}
	if got := p.Accept(); got <= before || got > 3*400*time.Millisecond+100*time.Millisecond {
		t.Errorf("with slow children %s", got)
	}
	now := time.Unix(1_790_000_000, 0)
	began := now
	once := func() time.Duration {
		p := &Pace{}
		for range 20 { // waited for at the same time
			p.Missed(began, now.Add(time.Second))
		}
		return p.Accept()
	}()
	if want := 3*2*firstEstimate + 100*time.Millisecond; once != want {
		t.Errorf("with 20 children given up at once %s, want %s", once, want)
	}
	for i := range 20 { // one after another
		p.Missed(now.Add(time.Duration(i)*time.Minute), now.Add(time.Duration(i)*time.Minute+time.Second))
	}
	if got := p.Accept(); got != maxAccept {
		t.Errorf("with children that are given up %s, want %s", got, maxAccept)
	}
}
