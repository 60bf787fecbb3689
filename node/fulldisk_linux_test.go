package node

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
)

// TestVoterWithAFullDisk: a voter that cannot write its log stops by itself, what
// is ordered goes on on the others, and when there is room it comes back and has
// its share.
func TestVoterWithAFullDisk(t *testing.T) {
	probe := t.TempDir()
	if err := syscall.Mount("fleet-test", probe, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("needs a small disk: %v", err)
	}
	if err := syscall.Unmount(probe, 0); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 3, 1)
		defer b.stopAll()
		time.Sleep(time.Minute) // every host has heard who votes
		full := "n2"
		if b.awaitLeader("") == full {
			full = "n3"
		}
		b.crash(full)
		data, aside := b.data(full), filepath.Join(t.TempDir(), "aside")
		shell(t, "cp -a "+data+" "+aside)
		if err := syscall.Mount("fleet-test", data, "tmpfs", 0, "size=32m,mode=700"); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = syscall.Unmount(data, syscall.MNT_DETACH) }()
		shell(t, "cp -a "+aside+"/. "+data)
		b.start(full)
		b.ready(full)
		filler := filepath.Join(data, "filler")
		_ = os.WriteFile(filler, make([]byte, 64<<20), 0o600) // as much as there is room for

		c := b.client()
		defer c.Close()
		stopped := false
		for range 50 { // its store has a few pages left
			if _, err := b.send(c); err != nil {
				t.Fatalf("a command with two of three voters: %v", err)
			}
			select {
			case <-b.nodes[full].Done():
				stopped = true
			case <-time.After(10 * time.Second):
				continue
			}
			break
		}
		if !stopped || b.nodes[full].Err() == nil {
			t.Fatalf("stopped %v: %v", stopped, b.nodes[full].Err())
		}
		t.Logf("stopped: %v", b.nodes[full].Err())
		delete(b.nodes, full)
		b.hosts[full].Kill()
		id, err := b.send(c)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		for name := range b.nodes {
			if s := b.row(id, name).State; s != fleet.Success {
				t.Errorf("%s is %s after five seconds", name, s)
			}
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		b.start(full) // as the service does
		began := time.Now()
		_, states := b.await(id)
		if took := time.Since(began); states[full] != fleet.Success || took > 30*time.Second {
			t.Errorf("%s is %s, %s after it has room again", full, states[full], took)
		}
	})
}

func shell(t *testing.T, script string) {
	t.Helper()
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}
