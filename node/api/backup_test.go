package api

import (
	"io"
	"testing"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/raftfsm/state"
)

func TestCreateBackup(t *testing.T) {
	f := newFixture(t)
	f.control.set(func(c *fakeControl) { c.state = []byte("all of it") })
	read := func(c *client.Client) (string, error) {
		r, err := c.State(t.Context())
		if err != nil {
			return "", err
		}
		defer r.Close() //nolint:errcheck // nothing is written
		b, err := io.ReadAll(r)
		return string(b), err
	}
	if got, err := read(f.client()); err != nil || got != "all of it" {
		t.Errorf("got %q, %v", got, err)
	}
	// Who may run commands may not therefore take everything home.
	key := newKey(t)
	f.write(func(txn *state.Txn) {
		txn.PutOperator(&fleet.Operator{Name: "ci", Keys: []fleet.PublicKey{key.Public()}, May: []string{"SendCommand"}})
	})
	ci := func(cred *identity.Credential, _ *client.Options) { cred.Operator, cred.Key = "ci", key }
	if _, err := read(f.client(ci)); fleet.KindOf(err) != fleet.Denied {
		t.Errorf("got %v, want denied", err)
	}
	f.write(func(txn *state.Txn) {
		txn.PutOperator(&fleet.Operator{Name: "ci", Keys: []fleet.PublicKey{key.Public()}, May: []string{"CreateBackup"}})
	})
	if _, err := read(f.client(ci)); err != nil {
		t.Error(err)
	}
	// Without a quorum only who says so gets what one host has.
	f.control.set(func(c *fakeControl) { c.readErr = fleet.Errorf(fleet.NoQuorum, "no quorum") })
	if _, err := read(f.client()); fleet.KindOf(err) != fleet.NoQuorum {
		t.Errorf("got %v, want no quorum", err)
	}
	if _, err := read(f.client(func(_ *identity.Credential, o *client.Options) { o.Stale = true })); err != nil {
		t.Error(err)
	}
}

func TestBackupsAtOnceAreBounded(t *testing.T) {
	f := newFixture(t)
	hold := make(chan struct{})
	f.control.set(func(c *fakeControl) { c.state, c.hold = make([]byte, 10), hold })
	results := make(chan error)
	for range maxBackups + 1 {
		c := f.client()
		go func() {
			r, err := c.State(t.Context())
			if err == nil {
				_, err = io.ReadAll(r)
			}
			results <- err
		}()
	}
	if err := <-results; fleet.KindOf(err) != fleet.Throttled {
		t.Errorf("got %v, want throttled", err)
	}
	close(hold)
	for range maxBackups {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}
