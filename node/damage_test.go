package node

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/transport"
)

// TestVoterWithADamagedStore: a voter whose store is not what it wrote does not
// vote, says so here and to whoever asks the fleet, and goes on as an agent; the
// others decide, and what is ordered runs on it too.
func TestVoterWithADamagedStore(t *testing.T) {
	if testing.Short() {
		t.Skip("a whole fleet for each damage")
	}
	for _, damage := range []struct {
		name string
		do   func(t *testing.T, store string)
		says string
	}{
		{"no store", func(t *testing.T, store string) {
			if err := os.RemoveAll(store); err != nil {
				t.Fatal(err)
			}
		}, "there is no quorum store"},
		{"raft.db of no bytes", func(t *testing.T, store string) {
			if err := os.Truncate(filepath.Join(store, "raft.db"), 0); err != nil {
				t.Fatal(err)
			}
		}, "empty"},
		{"a bit of an entry", func(t *testing.T, store string) {
			path := filepath.Join(store, "raft.db")
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			at := bytes.Index(b, []byte("AWS-RunShellScript")) // of the request that the log holds
			if at < 0 {
				t.Fatal("the log has no command")
			}
			for ; at >= 0; at = bytes.Index(b, []byte("AWS-RunShellScript")) { // also in pages that are not used any more
				b[at] ^= 1
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "it is not what was written"},
	} {
		t.Run(damage.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBubble(t, 3, 1)
				defer b.stopAll()
				c := b.client()
				defer c.Close()
				first, err := b.send(c)
				if err != nil {
					t.Fatal(err)
				}
				b.judge(first)
				time.Sleep(time.Minute) // every host has heard who votes
				victim := "n2"
				if b.awaitLeader("") == victim {
					victim = "n3"
				}
				b.crash(victim)
				damage.do(t, filepath.Join(b.data(victim), "quorum"))
				b.start(victim)
				b.ready(victim)
				status := b.nodes[victim].LocalStatus()
				i := slices.IndexFunc(status.Warnings, func(w fleet.Warning) bool { return w.Code == fleet.WarnQuorumStore })
				if i < 0 || !strings.Contains(status.Warnings[i].Message, damage.says) || status.Warnings[i].Remedy == "" {
					t.Errorf("its own status warns of %+v, want %s with %q and a remedy", status.Warnings, fleet.WarnQuorumStore, damage.says)
				}
				if status.Role != fleet.RoleNameAgent {
					t.Errorf("its role is %s, want agent", status.Role)
				}
				id, err := b.send(c)
				if err != nil {
					t.Fatalf("a command with two of three voters: %v", err)
				}
				if got := b.judge(id)[fleet.Success]; got != len(b.hosts) {
					t.Errorf("%d of %d hosts ran it", got, len(b.hosts))
				}
				time.Sleep(time.Minute) // its heartbeats have told
				var got fleet.GetStatusResult
				if err := c.Call(t.Context(), "GetStatus", fleet.GetStatusRequest{}, &got); err != nil {
					t.Fatal(err)
				}
				if !slices.ContainsFunc(got.Warnings, func(w fleet.Warning) bool {
					return w.Code == fleet.WarnQuorumStore && strings.HasPrefix(w.Message, victim+" does not vote")
				}) {
					t.Errorf("the fleet's status warns of %+v, want that %s does not vote", got.Warnings, victim)
				}
			})
		})
	}
}

// TestOnlyALeaderKnowsWhoIsNotEnrolled: a voter that may not have read its log
// does not tell a host that it is not of the fleet.
func TestOnlyALeaderKnowsWhoIsNotEnrolled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 3, 0)
		defer b.stopAll()
		m := b.nodes[b.awaitLeader("")].member.Load()
		trust := m.n.trust.Load()
		stranger := identity.Peer{Node: "mi-0123456789abcdef0", Role: fleet.RoleAgent, Issuer: trust.Issuers[0].Key}
		ask := func() error { return m.admitAgent(transport.Reverse, stranger, trust, time.Now()) }
		if err := ask(); fleet.KindOf(err) != fleet.Denied || !strings.Contains(err.Error(), "is not enrolled") {
			t.Errorf("the leader says %v, want that it is not enrolled", err)
		}
		for name := range b.nodes {
			if b.nodes[name] != m.n {
				b.crash(name)
			}
		}
		time.Sleep(10 * time.Second) // it leads no more
		if err := ask(); fleet.KindOf(err) != fleet.Unavailable || !strings.Contains(err.Error(), "may not be read yet") {
			t.Errorf("a voter without a leader says %v, want that its copy may be old", err)
		}
	})
}

// TestPartThatHangs: a host with a part that does not end has ended all the same
// after a while, so that its process can.
func TestPartThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 1, 0)
		defer b.stopAll()
		n := b.nodes["n1"]
		hang := make(chan struct{})
		n.run("hung", func(context.Context) error { <-hang; return nil })
		began := time.Now()
		n.fatal(errors.New("the disk has not answered"))
		<-n.Done()
		if took := time.Since(began); took > endTimeout {
			t.Errorf("the host ended after %s, want within %s", took, endTimeout)
		}
		if err := n.Err(); err == nil || !strings.Contains(err.Error(), "the disk has not answered") {
			t.Errorf("it ended with %v", err)
		}
		close(hang)
	})
}
