package dispatch

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"fleet/node/fleet"
	"fleet/raftfsm/entry"
)

const (
	// markDelay is how long "the host accepted it" waits for the result to
	// come first: a short command then costs one row in the log, not two.
	markDelay = 100 * time.Millisecond

	maxWaiting = 64 * fleet.ShardSize // rows held before the hosts have to wait
	maxGroups  = 16                   // proposals made at once
)

// item is one row on its way into the log.
type item struct {
	command fleet.CommandID
	attempt uint32
	row     fleet.Invocation
	due     time.Time      // zero: now
	urgent  bool           // does not wait for proposals under way
	reply   chan<- decided // has room for one; may be nil
}

type decided struct {
	index uint64
	err   error
}

// collector makes shards of rows. It needs no timer to batch: while proposals
// are under way rows gather, and the next proposals take them all. One row
// alone goes at once, a thousand go in a few entries. What is urgent has a second
// way, and takes along what waits beside it.
type collector struct {
	cfg Config
	in  chan item
}

func newCollector(cfg Config) *collector {
	return &collector{cfg: cfg, in: make(chan item, fleet.ShardSize)}
}

// add waits for room and hands over a row. Outside leadership nobody takes it:
// the caller's context ends the wait.
func (c *collector) add(ctx context.Context, it item) error {
	select {
	case c.in <- it:
		return nil
	case <-ctx.Done():
		return fleet.Errorf(fleet.Unavailable, "too many results wait to be decided: %w", context.Cause(ctx))
	}
}

// mark notes what a host said of the command that it holds. It may be lost: the
// host is then asked again and says the same.
func (c *collector) mark(cmd *fleet.Command, index uint32, said fleet.InvocationState) {
	delay := markDelay
	if cmd.Staged() {
		delay = turnBatch // others wait for it
	}
	select {
	case c.in <- item{command: cmd.ID, attempt: cmd.Attempt, due: c.cfg.Now().Add(delay), row: fleet.Invocation{Index: index, State: said, Code: -1}}:
	default:
	}
}

type shard struct {
	command fleet.CommandID
	attempt uint32
	number  uint32
}

// group is the rows of one shard that wait, by index.
type group map[uint32]*waiting

type waiting struct {
	row     fleet.Invocation
	due     time.Time
	urgent  bool
	replies []chan<- decided
}

func (g group) put(it item) {
	w := g[it.row.Index]
	if w == nil {
		w = &waiting{row: it.row, due: it.due}
		g[it.row.Index] = w
	} else if !w.row.State.Final() && it.row.State.Final() || w.row.State == fleet.Staged && it.row.State == fleet.InProgress {
		w.row, w.due = it.row, it.due
	}
	w.urgent = w.urgent || it.urgent
	if it.reply != nil {
		w.replies = append(w.replies, it.reply)
	}
}

func (c *collector) run(ctx context.Context) {
	groups := map[shard]group{}
	rows := 0
	var flushed, rushed chan struct{} // open while proposals are under way, and while urgent ones are
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() {
		for _, g := range groups {
			g.answer(decided{err: fleet.Errorf(fleet.NotLeader, "this host no longer leads")})
		}
	}()
	for {
		in := c.in
		if rows >= maxWaiting {
			in = nil // the hosts wait
		}
		if rushed == nil {
			rushed = c.flush(ctx, &wg, groups, &rows, group.urgent)
		}
		var timer <-chan time.Time
		if flushed == nil && rows > 0 {
			timer = time.After(max(0, earliest(groups).Sub(c.cfg.Now())))
		}
		select {
		case <-ctx.Done():
			return
		case it := <-in:
			key := shard{it.command, it.attempt, it.row.Index / fleet.ShardSize}
			if groups[key] == nil {
				groups[key] = group{}
			}
			before := len(groups[key])
			groups[key].put(it)
			rows += len(groups[key]) - before
		case <-flushed:
			flushed = nil
		case <-rushed:
			rushed = nil
		case <-timer:
			flushed = c.flush(ctx, &wg, groups, &rows, func(group) bool { return true })
		}
	}
}

// flush proposes some groups in the background; what it answers is closed when
// that is done, and nil if there are none.
func (c *collector) flush(ctx context.Context, wg *sync.WaitGroup, groups map[shard]group, rows *int, which func(group) bool) chan struct{} {
	batch := map[shard]group{}
	for key, g := range groups {
		if len(batch) == maxGroups {
			break
		}
		if which(g) {
			batch[key] = g
			*rows -= len(g)
			delete(groups, key)
		}
	}
	if len(batch) == 0 {
		return nil
	}
	done := make(chan struct{})
	wg.Go(func() {
		defer close(done)
		c.propose(ctx, batch)
	})
	return done
}

func (g group) urgent() bool {
	for _, w := range g {
		if w.urgent {
			return true
		}
	}
	return false
}

func earliest(groups map[shard]group) time.Time {
	var first time.Time
	for _, g := range groups {
		for _, w := range g {
			if w.due.IsZero() {
				return time.Time{}
			}
			if first.IsZero() || w.due.Before(first) {
				first = w.due
			}
		}
	}
	return first
}

// propose puts each shard into an entry of its own and answers who waits.
func (c *collector) propose(ctx context.Context, batch map[shard]group) {
	var wg sync.WaitGroup
	for key, g := range batch {
		wg.Go(func() {
			e := &entry.Results{Stamp: c.cfg.Now().UnixNano(), Command: key.command, Attempt: key.attempt}
			for _, w := range g {
				e.Rows = append(e.Rows, w.row)
			}
			slices.SortFunc(e.Rows, func(a, b fleet.Invocation) int { return cmp.Compare(a.Index, b.Index) })
			a, err := c.cfg.Propose(ctx, e)
			if err == nil {
				err = a.Err
			}
			if err != nil {
				c.cfg.Logger.Warn("results not decided", "command", key.command, "err", err)
				g.answer(decided{err: err})
				return
			}
			g.answer(decided{index: a.Index})
		})
	}
	wg.Wait()
}

func (g group) answer(d decided) {
	for _, w := range g {
		for _, reply := range w.replies {
			reply <- d
		}
	}
}
