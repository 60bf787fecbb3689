package dispatch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
	"fleet/raftfsm"
	"fleet/raftfsm/entry"
)

const commandA, commandB = fleet.CommandID("00000000-0000-4000-8000-00000000000a"), fleet.CommandID("00000000-0000-4000-8000-00000000000b")

// log stands for the log: it notes each entry, holds it as long as the test
// says and answers with its number.
type log struct {
	t       *testing.T
	begin   time.Time
	takes   time.Duration // of one proposal
	fails   error
	refuses error

	entries chan logged
}

type logged struct {
	at   time.Duration
	rows []fleet.Invocation
	id   fleet.CommandID
}

func (l *log) propose(ctx context.Context, body entry.Body) (raftfsm.Answer, error) {
	e := body.(*entry.Results)
	if err := e.Check(); err != nil {
		l.t.Errorf("an entry that would be refused: %v", err)
	}
	l.entries <- logged{time.Since(l.begin), e.Rows, e.Command}
	index := uint64(len(l.entries))
	select {
	case <-time.After(l.takes):
	case <-ctx.Done():
		return raftfsm.Answer{}, ctx.Err()
	}
	return raftfsm.Answer{Index: index, Err: l.refuses}, l.fails
}

// collecting runs a collector over a log in a bubble.
func collecting(t *testing.T, name string, f func(t *testing.T, c *collector, l *log)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := &log{t: t, begin: time.Now(), entries: make(chan logged, 1000)}
			c := newCollector(Config{Propose: l.propose, Now: time.Now, Logger: quiet()})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); c.run(ctx) }()
			t.Cleanup(func() { cancel(); <-done })
			f(t, c, l)
		})
	})
}

func final(command fleet.CommandID, index uint32, reply chan<- decided) item {
	return item{command: command, attempt: 1, row: fleet.Invocation{Index: index, State: fleet.Success}, reply: reply}
}

func (c *collector) mustAdd(t *testing.T, it item) {
	t.Helper()
	if err := c.add(t.Context(), it); err != nil {
		t.Fatal(err)
	}
}

// all is what was logged so far: command, states by index and time.
func (l *log) all() (lines []string) {
	for {
		select {
		case e := <-l.entries:
			line := fmt.Sprintf("%s %s", e.at, e.id[len(e.id)-1:])
			for _, r := range e.rows {
				line += fmt.Sprintf(" %d:%s", r.Index, r.State)
			}
			lines = append(lines, line)
		default:
			slices.Sort(lines)
			return lines
		}
	}
}

func wantLog(t *testing.T, l *log, want ...string) {
	t.Helper()
	synctest.Wait()
	if got := l.all(); !slices.Equal(got, want) {
		t.Errorf("logged %q, want %q", got, want)
	}
}

func TestCollector(t *testing.T) {
	cmd := &fleet.Command{ID: commandA, Attempt: 1}
	collecting(t, "one row goes at once", func(t *testing.T, c *collector, l *log) {
		reply := make(chan decided, 1)
		c.mustAdd(t, final(commandA, 3, reply))
		wantLog(t, l, "0s a 3:Success")
		if d := <-reply; d.err != nil || d.index == 0 {
			t.Errorf("replied %+v", d)
		}
	})
	collecting(t, "rows gather while a proposal is under way", func(t *testing.T, c *collector, l *log) {
		l.takes = time.Second
		c.mustAdd(t, final(commandA, 0, nil))
		synctest.Wait()
		for _, i := range []uint32{5, 2, 300, 1, 299} {
			c.mustAdd(t, final(commandA, i, nil))
		}
		c.mustAdd(t, final(commandB, 7, nil))
		wantLog(t, l, "0s a 0:Success")
		time.Sleep(time.Second)
		wantLog(t, l, "1s a 1:Success 2:Success 5:Success", "1s a 299:Success 300:Success", "1s b 7:Success")
	})
	collecting(t, "a mark waits for the result", func(t *testing.T, c *collector, l *log) {
		c.mark(cmd, 1, fleet.InProgress)
		c.mark(cmd, 2, fleet.InProgress)
		time.Sleep(markDelay / 2)
		wantLog(t, l)
		c.mustAdd(t, final(commandA, 1, nil))
		wantLog(t, l, "50ms a 1:Success 2:InProgress")
		time.Sleep(time.Second)
		wantLog(t, l)
	})
	collecting(t, "a mark alone goes after a while", func(t *testing.T, c *collector, l *log) {
		c.mark(cmd, 1, fleet.InProgress)
		time.Sleep(time.Second)
		wantLog(t, l, "100ms a 1:InProgress")
	})
	collecting(t, "a mark does not replace a result", func(t *testing.T, c *collector, l *log) {
		l.takes = time.Second
		c.mustAdd(t, final(commandB, 0, nil))
		synctest.Wait()
		c.mustAdd(t, final(commandA, 1, nil))
		c.mark(cmd, 1, fleet.InProgress)
		time.Sleep(2 * time.Second)
		wantLog(t, l, "0s b 0:Success", "1s a 1:Success")
	})
	collecting(t, "two results for one row", func(t *testing.T, c *collector, l *log) {
		l.takes = time.Second
		c.mustAdd(t, final(commandB, 0, nil))
		synctest.Wait()
		first, second := make(chan decided, 1), make(chan decided, 1)
		c.mustAdd(t, final(commandA, 1, first))
		later := final(commandA, 1, second)
		later.row.State = fleet.Failed
		c.mustAdd(t, later)
		time.Sleep(3 * time.Second)
		wantLog(t, l, "0s b 0:Success", "1s a 1:Success")
		if a, b := <-first, <-second; a != b || a.err != nil {
			t.Errorf("replied %+v and %+v", a, b)
		}
	})
	collecting(t, "attempts do not mix", func(t *testing.T, c *collector, l *log) {
		l.takes = time.Second
		c.mustAdd(t, final(commandB, 0, nil))
		synctest.Wait()
		again := final(commandA, 1, nil)
		again.attempt = 2
		c.mustAdd(t, final(commandA, 1, nil))
		c.mustAdd(t, again)
		time.Sleep(3 * time.Second)
		wantLog(t, l, "0s b 0:Success", "1s a 1:Success", "1s a 1:Success")
	})
	collecting(t, "a whole shard and more", func(t *testing.T, c *collector, l *log) {
		l.takes = time.Second
		c.mustAdd(t, final(commandB, 0, nil))
		synctest.Wait()
		for i := range uint32(2*fleet.ShardSize + 1) {
			c.mustAdd(t, final(commandA, i, nil))
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		var sizes []int
		for len(l.entries) > 0 {
			sizes = append(sizes, len((<-l.entries).rows))
		}
		if slices.Sort(sizes); !slices.Equal(sizes, []int{1, 1, 256, 256}) {
			t.Errorf("entries of %v rows", sizes)
		}
	})
	collecting(t, "many shards go in turns", func(t *testing.T, c *collector, l *log) {
		l.takes = time.Second
		c.mustAdd(t, final(commandB, 0, nil))
		synctest.Wait()
		for i := range uint32(maxGroups + 4) {
			c.mustAdd(t, final(commandA, i*fleet.ShardSize, nil))
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		at := map[time.Duration]int{}
		for len(l.entries) > 0 {
			at[(<-l.entries).at]++
		}
		if at[0] != 1 || at[time.Second] != maxGroups || at[2*time.Second] != 4 {
			t.Errorf("entries by time: %v", at)
		}
	})
	for name, set := range map[string]func(*log, error){
		"fails":   func(l *log, err error) { l.fails = err },
		"refused": func(l *log, err error) { l.refuses = err },
	} {
		collecting(t, name, func(t *testing.T, c *collector, l *log) {
			want := errors.New("not so")
			set(l, want)
			replies := []chan decided{make(chan decided, 1), make(chan decided, 1), make(chan decided, 1)}
			for i, r := range replies {
				c.mustAdd(t, final(commandA, uint32(i), r))
			}
			for i, r := range replies {
				if d := <-r; !errors.Is(d.err, want) || d.index != 0 {
					t.Errorf("row %d: replied %+v", i, d)
				}
			}
		})
	}
}

func TestCollectorEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &log{t: t, begin: time.Now(), entries: make(chan logged, 10), takes: time.Hour}
		c := newCollector(Config{Propose: l.propose, Now: time.Now, Logger: quiet()})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); c.run(ctx) }()
		proposed, waiting := make(chan decided, 1), make(chan decided, 1)
		c.mustAdd(t, final(commandA, 0, proposed))
		synctest.Wait()
		c.mustAdd(t, final(commandA, 1, waiting))
		synctest.Wait()
		cancel()
		<-done
		if d := <-proposed; !errors.Is(d.err, context.Canceled) {
			t.Errorf("what was proposed: %+v", d)
		}
		if d := <-waiting; fleet.KindOf(d.err) != fleet.NotLeader {
			t.Errorf("what waited: %+v", d)
		}
	})
}

// TestCollectorIsBounded: when the log does not keep up the hosts wait.
func TestCollectorIsBounded(t *testing.T) {
	collecting(t, "", func(t *testing.T, c *collector, l *log) {
		l.takes = time.Hour
		c.mustAdd(t, final(commandB, 0, nil))
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		taken := 0
		for i := range uint32(2 * maxWaiting) {
			if err := c.add(ctx, final(commandA, i, nil)); err != nil {
				if fleet.KindOf(err) != fleet.Unavailable || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("refused with %v", err)
				}
				break
			}
			taken++
		}
		if want := maxWaiting + cap(c.in); taken != want {
			t.Errorf("%d rows were taken, want %d", taken, want)
		}
		for range 10 { // a mark is dropped instead
			c.mark(&fleet.Command{ID: commandA, Attempt: 1}, 1, fleet.InProgress)
		}
		time.Sleep(2 * time.Hour)
		if err := c.add(t.Context(), final(commandB, 1, nil)); err != nil {
			t.Errorf("after a while: %v", err)
		}
	})
}
