package node

import (
	"os"
	"path/filepath"
	"slices"
	"time"

	"fleet/node/failpoint"
	"fleet/node/fleet"
	"fleet/node/journal"
)

// blows is how a bubble ends hosts at exact points: as kill -9 does, or as a
// power cut, which takes with it what was not synced.
//
// An ended host's goroutines go on for a moment, as those of a real one do not.
// They reach nobody: the network is down, children are not counted, and the
// journal is put back to what it was at the blow before the host starts again.
// (What a voter's own store gets meanwhile it might have got before the blow.)
type blows struct {
	strike func(name string, p failpoint.Point, id fleet.CommandID) // nil: nothing is waited for
	dead   map[string]bool
	synced map[string]int64             // size of each host's journal at its last sync
	image  map[string][]byte            // journals of dead hosts
	met    map[string][]failpoint.Point // by command and host, in order
}

func newBlows() blows {
	return blows{
		dead: map[string]bool{}, synced: map[string]int64{}, image: map[string][]byte{}, met: map[string][]failpoint.Point{},
	}
}

// atPoint is the hook of every host of the bubble.
func (b *bubble) atPoint(name string, p failpoint.Point, id fleet.CommandID) {
	if p == "" {
		return
	}
	b.mu.Lock()
	if b.blows.dead[name] {
		b.mu.Unlock()
		return
	}
	key := string(id) + " " + name
	b.blows.met[key] = append(b.blows.met[key], p)
	strike := b.blows.strike
	b.mu.Unlock()
	if strike != nil {
		strike(name, p, id)
	}
}

// met are the points that a command met on a host, while that lived.
func (b *bubble) met(id fleet.CommandID, name string) []failpoint.Point {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.blows.met[string(id)+" "+name])
}

func (b *bubble) sync(name string, f *os.File) error {
	if err := f.Sync(); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.blows.synced[name] = info.Size()
	return nil
}

func (b *bubble) journalPath(name string) string { return filepath.Join(b.data(name), "journal") }

// onStrike sets what happens at every point from now on.
func (b *bubble) onStrike(f func(name string, p failpoint.Point, id fleet.CommandID)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.blows.strike = f
}

// end ends a host here and now: it may be called in the middle of its work.
func (b *bubble) end(n *Node, name string, powerCut bool) error {
	b.hosts[name].Down() // first: what it says from now on was never said
	b.mu.Lock()
	b.blows.dead[name] = true // then: what runs from now on never ran
	b.mu.Unlock()
	image, err := os.ReadFile(b.journalPath(name)) // and what is on disk now stays
	if err != nil {
		return err
	}
	b.mu.Lock()
	if powerCut {
		image = image[:min(int64(len(image)), b.blows.synced[name])]
	}
	b.blows.image[name] = image
	b.mu.Unlock()
	n.cancel(errStopped)
	return nil
}

// bury waits for the end of a host that was ended, and leaves its disk as it was then.
func (b *bubble) bury(name string) {
	b.t.Helper()
	n := b.nodes[name]
	select {
	case <-n.Done():
	case <-time.After(5 * time.Minute):
		b.t.Fatalf("%s has not ended", name)
	}
	b.gone(name)
	b.mu.Lock()
	image := b.blows.image[name]
	b.mu.Unlock()
	for _, path := range []string{b.journalPath(name), b.imagePath(name)} {
		if err := os.WriteFile(path, image, 0o600); err != nil {
			b.t.Fatal(err)
		}
	}
	b.hosts[name].Up()
}

func (b *bubble) imagePath(name string) string { return filepath.Join(b.dir, name+".image") }

// atEnd is what the journal of a host said of a command when it was ended last.
func (b *bubble) atEnd(id fleet.CommandID, name string) journal.Entry {
	b.t.Helper()
	j, err := journal.Open(b.imagePath(name))
	if err != nil {
		b.t.Fatal(err)
	}
	e, _ := j.Lookup(journal.Key{Command: id, Attempt: 1})
	if err := j.Close(); err != nil {
		b.t.Fatal(err)
	}
	return e
}

// revive lets a host count again.
func (b *bubble) revive(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.blows.dead, name)
}

// commands counts the commands that a host of the quorum knows.
func (b *bubble) commands(name string) int {
	return len(b.nodes[name].member.Load().fsm.Store().Commands(1<<20, ""))
}
