package stagger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var errAway = errors.New("away")

const while = 250 * time.Millisecond

// host is how one of those who are asked behaves.
type host struct {
	begins  time.Duration // answering is called; 0 never
	answers time.Duration
	err     error
}

var silent = host{answers: time.Hour}

func TestFirst(t *testing.T) {
	for name, c := range map[string]struct {
		hosts []host
		want  int // who answers; -1 nobody
		after time.Duration
		asked int32
	}{
		"one":                               {[]host{{answers: time.Second}}, 0, time.Second, 1},
		"the first, at once":                {[]host{{answers: 100 * time.Millisecond}, {answers: 0}}, 0, 100 * time.Millisecond, 1},
		"the second, as the first fails":    {[]host{{err: errAway}, {answers: time.Millisecond}}, 1, time.Millisecond, 2},
		"the third, as two are silent":      {[]host{silent, silent, {answers: time.Millisecond}}, 2, 2*while + time.Millisecond, 3},
		"the first, though it was slow":     {[]host{{answers: 300 * time.Millisecond}, silent}, 0, 300 * time.Millisecond, 2},
		"one that is answering is left to":  {[]host{{begins: time.Millisecond, answers: time.Minute}, {answers: 0}}, 0, time.Minute, 1},
		"one that began and failed":         {[]host{{begins: time.Millisecond, answers: time.Second, err: errAway}, {answers: time.Millisecond}}, 1, time.Second + time.Millisecond, 2},
		"a silent one and one that answers": {[]host{silent, {begins: 100 * time.Millisecond, answers: time.Minute}, {answers: 0}}, 1, while + time.Minute, 2},
		"nobody":                            {[]host{{err: errAway}, {answers: time.Second, err: errAway}}, -1, time.Second, 2},
		"none to ask":                       {nil, -1, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				var asked, ended atomic.Int32
				got, errs := First(t.Context(), len(c.hosts), while, func(ctx context.Context, i int, answering func()) (int, error) {
					asked.Add(1)
					defer ended.Add(1)
					h := c.hosts[i]
					for _, step := range []time.Duration{h.begins, h.answers - h.begins} {
						timer := time.NewTimer(step)
						select {
						case <-ctx.Done():
							timer.Stop()
							return 0, ctx.Err()
						case <-timer.C:
						}
						if h.begins > 0 {
							answering()
						}
					}
					return i, h.err
				})
				if c.want >= 0 && (got != c.want || errs != nil) || c.want < 0 && len(errs) != len(c.hosts) {
					t.Errorf("First = %d, %v; want %d", got, errs, c.want)
				}
				if c.want < 0 && slices.ContainsFunc(errs, func(err error) bool { return !errors.Is(err, errAway) }) {
					t.Errorf("errors %v", errs)
				}
				if took := time.Since(start); took != c.after || asked.Load() != c.asked || ended.Load() != c.asked {
					t.Errorf("it took %s, %d were asked and %d ended; want %s, %d", took, asked.Load(), ended.Load(), c.after, c.asked)
				}
			})
		})
	}
}

func TestFirstEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeoutCause(t.Context(), 3*while/2, fmt.Errorf("the caller had enough"))
		defer cancel()
		_, errs := First(ctx, 5, while, func(ctx context.Context, _ int, _ func()) (int, error) {
			<-ctx.Done()
			return 0, context.Cause(ctx)
		})
		if len(errs) != 5 || errs[1] == nil || errs[2] != nil || errs[0].Error() != "the caller had enough" {
			t.Errorf("errors %v; want those of the two that were asked", errs)
		}
	})
}
