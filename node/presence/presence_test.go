package presence

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

var (
	v1 = fleet.NodeID("mi-00000000000000001")
	v2 = fleet.NodeID("mi-00000000000000002")
	v3 = fleet.NodeID("mi-00000000000000003")
)

func TestFleetTimeNeedsKVotersThatAgree(t *testing.T) {
	type answer struct {
		voter fleet.NodeID
		off   time.Duration
	}
	for _, tc := range []struct {
		name    string
		k       int
		answers []answer
		later   time.Duration
		want    bool
		off     time.Duration
	}{
		{"nothing heard", 1, nil, 0, false, 0},
		{"one of one", 1, []answer{{v1, time.Hour}}, 0, true, time.Hour},
		{"one of two", 2, []answer{{v1, 0}}, 0, false, 0},
		{"two agree", 2, []answer{{v1, 0}, {v2, 10 * time.Second}}, 0, true, 10 * time.Second},
		{"two disagree", 2, []answer{{v1, 0}, {v2, time.Hour}}, 0, false, 0},
		{"a liar among three", 2, []answer{{v1, 0}, {v2, 5 * time.Second}, {v3, 24 * time.Hour}}, 0, true, 5 * time.Second},
		{"a liar in the past", 2, []answer{{v1, 0}, {v2, 5 * time.Second}, {v3, -24 * time.Hour}}, 0, true, 5 * time.Second},
		{"not a voter", 1, []answer{{"mi-99999999999999999", 0}}, 0, false, 0},
		{"ten minutes old", 1, []answer{{v1, 0}}, MaxAge, true, 0},
		{"older than ten minutes", 1, []answer{{v1, 0}}, MaxAge + time.Second, false, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := NewClock(time.Now, func() ([]fleet.NodeID, int) { return []fleet.NodeID{v1, v2, v3}, tc.k })
				for _, a := range tc.answers {
					c.Heard(a.voter, time.Now().Add(a.off), time.Now())
				}
				time.Sleep(tc.later)
				off, ok := c.Offset()
				if ok != tc.want || off != tc.off {
					t.Errorf("got offset %v, %v; want %v, %v", off, ok, tc.off, tc.want)
				}
			})
		})
	}
}

func TestFleetTimeForgetsAfterASuspend(t *testing.T) {
	// A suspended machine's monotonic clock stands still while its wall clock
	// goes on: the answer must not count, whatever its monotonic age.
	base := time.Now()
	now := base
	c := NewClock(func() time.Time { return now }, func() ([]fleet.NodeID, int) { return []fleet.NodeID{v1}, 1 })
	c.Heard(v1, base, base)
	if _, ok := c.FleetTime(); !ok {
		t.Fatal("no fleet time right after an answer")
	}
	now = base.Round(0).Add(2 * time.Hour) // no monotonic reading: Sub falls back to the wall clock
	if _, ok := c.FleetTime(); ok {
		t.Error("fleet time survived a jump of two hours")
	}
}

func TestSlowAnswerIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClock(time.Now, func() ([]fleet.NodeID, int) { return []fleet.NodeID{v1}, 1 })
		sent := time.Now()
		said := sent
		time.Sleep(maxRoundTrip + time.Second)
		c.Heard(v1, said, sent)
		if _, ok := c.FleetTime(); ok {
			t.Error("an answer held back for 11 s became fleet time")
		}
	})
}

func TestBeatsReplaceAVoterThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		asked := map[fleet.NodeID]int{}
		down := v1
		c := NewClock(time.Now, func() ([]fleet.NodeID, int) { return []fleet.NodeID{v1, v2, v3}, 2 })
		b := NewBeats(BeatsConfig{
			Self: "mi-0000000000000000a", Voters: func() []fleet.NodeID { return []fleet.NodeID{v1, v2, v3} },
			Leader: func() fleet.NodeID { return v1 }, Clock: c, Now: time.Now, Logger: quiet(),
			Send: func(ctx context.Context, v fleet.NodeID) (time.Time, error) {
				mu.Lock()
				asked[v]++
				mu.Unlock()
				if v == down {
					return time.Time{}, errors.New("down")
				}
				return time.Now(), nil
			},
		})
		done := make(chan error, 1)
		go func() { done <- b.Run(ctx) }()
		synctest.Wait()
		if _, ok := c.FleetTime(); !ok {
			t.Error("two of three voters answered, yet there is no fleet time")
		}
		mu.Lock()
		for _, v := range []fleet.NodeID{v1, v2, v3} {
			if asked[v] != 1 {
				t.Errorf("voter %s was asked %d times in the first round, want 1", v, asked[v])
			}
		}
		mu.Unlock()
		time.Sleep(10 * time.Minute)
		mu.Lock()
		if n := asked[v2]; n < 30 || n > 60 {
			t.Errorf("voter was asked %d times in 10 minutes, want about 40", n)
		}
		mu.Unlock()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// TestAnyTwoHonestVotersAreEnough holds fleet time against one voter of three
// that lies or takes calls and is silent, whichever it is.
func TestAnyTwoHonestVotersAreEnough(t *testing.T) {
	voters := []fleet.NodeID{v1, v2, v3}
	for _, bad := range voters {
		for name, send := range map[string]func(ctx context.Context) (time.Time, error){
			"clock two minutes off": func(context.Context) (time.Time, error) { return time.Now().Add(2 * time.Minute), nil },
			"silent": func(ctx context.Context) (time.Time, error) {
				<-ctx.Done()
				return time.Time{}, ctx.Err()
			},
			"refuses": func(context.Context) (time.Time, error) { return time.Time{}, errors.New("no") },
		} {
			t.Run(name+" "+string(bad), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					ctx, cancel := context.WithCancel(t.Context())
					c := NewClock(time.Now, func() ([]fleet.NodeID, int) { return voters, 2 })
					b := NewBeats(BeatsConfig{
						Self: "mi-0000000000000000a", Voters: func() []fleet.NodeID { return voters },
						Leader: func() fleet.NodeID { return v1 }, Clock: c, Now: time.Now, Logger: quiet(),
						Send: func(ctx context.Context, v fleet.NodeID) (time.Time, error) {
							if v == bad {
								return send(ctx)
							}
							return time.Now(), nil
						},
					})
					done := make(chan error, 1)
					go func() { done <- b.Run(ctx) }()
					time.Sleep(15 * time.Second)
					for range 60 {
						if off, ok := c.Offset(); !ok || off != 0 {
							t.Fatalf("offset %v, %v; want the time of the two honest voters", off, ok)
						}
						time.Sleep(time.Minute)
					}
					cancel()
					if err := <-done; err != nil {
						t.Errorf("Run: %v", err)
					}
				})
			})
		}
	}
}

func TestMergeKeepsTheNewer(t *testing.T) {
	now := time.Now()
	tab := NewTable(time.Minute)
	tab.Record(v1, Seen{LastSeen: now, Version: "new"})
	tab.Record(v1, Seen{LastSeen: now.Add(-time.Minute), Version: "old"})
	all := tab.All()
	Merge(all, v1, Seen{LastSeen: now.Add(-time.Hour), Version: "older"})
	if got := all[v1].Version; got != "new" {
		t.Errorf("got %q, want the newest", got)
	}
}
