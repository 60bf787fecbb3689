// Package disk is the one account of what this program may take of a host's
// disk.
//
//   - One budget for all that grows with use: outputs (blobs) and the journal,
//     later recordings. A part that gives up what it holds, as blobs do, asks
//     for its room, which is the budget less what the others have; so the
//     journal, which may give up nothing, takes from the outputs. What was
//     given up for room is counted.
//   - The file system is others' too. When little of it is free, that is a
//     warning; below a floor nothing new is begun, because what was begun must
//     still be written down to its end. Both are asked of the file system each
//     time, so they end when space is freed.
package disk

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"fleet/node/fleet"
)

const (
	// Low is how much should be free: this share of the file system and these
	// bytes. With less there is a warning.
	lowShare = 5 // per cent
	lowBytes = 256 << 20

	// Floor is how much must be free for a command to be accepted: the room
	// that its journal records and the outputs of those that run already need.
	Floor = 10 << 20

	// floorFiles is the same for files, on a file system that counts them.
	floorFiles = 64
)

// Space is what a file system has.
type Space struct {
	Free, Total int64  // bytes, as other users than root may use them
	FreeFiles   uint64 // 0 of 0 where files are not counted
	Files       uint64
}

// Budget is the account of one host. It may be used concurrently.
type Budget struct {
	dir   string
	limit int64
	space func(dir string) (Space, error)
	now   func() time.Time

	mu      sync.Mutex // guards what follows
	parts   map[string]func() int64
	dropped fleet.DiskDropped
}

// New makes the account of the host whose data is in dir. limit is the budget
// in bytes.
func New(dir string, limit int64, now func() time.Time) *Budget {
	return &Budget{dir: dir, limit: limit, space: Free, now: now, parts: map[string]func() int64{}}
}

// Part adds a part. used says how many bytes it takes; it must not call the
// Budget.
func (b *Budget) Part(name string, used func() int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.parts[name] = used
}

// Room is how many bytes a part that takes used bytes may take: its share of
// the budget, and never so much that the file system falls to the floor.
func (b *Budget) Room(name string, used int64) int64 {
	room := b.limit
	for other, bytes := range b.others(name) {
		if other != name {
			room -= bytes
		}
	}
	if s, err := b.space(b.dir); err == nil {
		room = min(room, used+s.Free-Floor)
	}
	return max(room, 0)
}

func (b *Budget) others(except string) map[string]int64 {
	b.mu.Lock()
	parts := maps.Clone(b.parts)
	b.mu.Unlock()
	all := map[string]int64{}
	for name, used := range parts {
		if name != except { // it may hold its own lock
			all[name] = used()
		}
	}
	return all
}

// Drop counts what a part gave up for room.
func (b *Budget) Drop(bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dropped.Number++
	b.dropped.Bytes += bytes
	b.dropped.Last = fleet.InstantOf(b.now().UnixNano())
}

// Check is nil unless so little is free that nothing new may be begun; then it
// is an error of kind Unavailable.
func (b *Budget) Check() error {
	s, err := b.space(b.dir)
	switch {
	case err != nil:
		return nil // writing will say what is wrong
	case s.Free < Floor:
		return fleet.Errorf(fleet.Unavailable, "DiskFull: %s are free on the file system of %s, at least %s are needed", size(s.Free), b.dir, size(Floor)).
			WithHint("free some space there")
	case s.Files > 0 && s.FreeFiles < floorFiles:
		return fleet.Errorf(fleet.Unavailable, "DiskFull: %d inodes are free on the file system of %s, at least %d are needed", s.FreeFiles, b.dir, floorFiles).
			WithHint("remove files there")
	}
	return nil
}

// Codes of warnings.
const (
	WarnFull    = "DiskFull"
	WarnDropped = "DiskBudget"
)

// Warnings says what is wrong.
func (b *Budget) Warnings() []fleet.Warning {
	var all []fleet.Warning
	if s, err := b.space(b.dir); err == nil {
		switch full := b.Check(); {
		case full != nil:
			all = append(all, fleet.Warning{
				Code: WarnFull, Message: full.Error() + ": new commands are refused",
				Remedy: "free some space there; no restart is needed",
			})
		case s.Free < lowBytes || s.Free < s.Total/100*lowShare:
			all = append(all, fleet.Warning{
				Code: WarnFull, Message: fmt.Sprintf("%s of %s are free on the file system of %s", size(s.Free), size(s.Total), b.dir),
				Remedy: fmt.Sprintf("free some space there: below %s new commands are refused", size(Floor)),
			})
		}
	}
	b.mu.Lock()
	d := b.dropped
	b.mu.Unlock()
	if d.Number > 0 {
		all = append(all, fleet.Warning{
			Code: WarnDropped, Message: fmt.Sprintf("%d old outputs (%s) were given up for room since the agent started, the last %s",
				d.Number, size(d.Bytes), time.Unix(0, d.Last.Nanos()).UTC().Format(time.RFC3339)),
			Remedy: fmt.Sprintf("if they are missed, raise disk-budget, which is %s, or free space on the disk", size(b.limit)),
		})
	}
	return all
}

// State is the whole account.
func (b *Budget) State() fleet.DiskState {
	st := fleet.DiskState{Budget: b.limit}
	parts := b.others("")
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		st.Used += parts[name]
		st.Parts = append(st.Parts, fleet.DiskPart{Name: name, Bytes: parts[name]})
	}
	if s, err := b.space(b.dir); err == nil {
		st.Free, st.Total = s.Free, s.Total
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	st.Dropped = b.dropped
	return st
}

// size is a number of bytes for people.
func size(n int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		switch {
		case n >= 10*u.size:
			return fmt.Sprintf("%d %s", n/u.size, u.name)
		case n >= u.size:
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
