package cosign

import (
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/ticket"
	"fleet/raftfsm/state"
)

// TestRelease: a voter signs a Release of what its own state released, and of
// nothing else.
func TestRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		c := row(now)
		c.Targets = []fleet.NodeID{node(3), node(4), node(5), node(6), node(7)}
		c.MaxConcurrency, c.MaxErrors, c.DeliverySeconds = "3", fleet.Unlimited, 60
		v := quorum(t, 3, c)[1]
		at := now.UnixNano() + second
		rows := []fleet.Invocation{
			{Index: 0, State: fleet.Released, Released: at}, {Index: 1, State: fleet.InProgress, Released: at},
			{Index: 2, State: fleet.Released, Released: at + 1}, {Index: 3, State: fleet.Staged}, {Index: 4, State: fleet.CancelInProgress, Released: at},
		}
		txn := v.store.Write()
		txn.PutShard(&state.Shard{Command: command, Rows: rows})
		txn.Commit()
		b, err := v.signer.Release(c, at, []uint32{0, 1})
		if err != nil {
			t.Fatal(err)
		}
		s, err := ticket.ParseSignedRelease(b)
		if err == nil {
			err = s.Verify(v.store.Trust())
		}
		if err != nil || !s.Covers(0) || !s.Covers(1) || s.Covers(2) || s.Released != at || s.StartBy != at+60*second || s.Signature.Key() != key('Q', 1).Public().ID() {
			t.Errorf("release %+v, %v", s, err)
		}
		for name, indexes := range map[string][]uint32{
			"released later": {0, 2}, "staged": {3}, "cancelled": {4}, "not there": {5}, "of none": nil,
		} {
			if b, err := v.signer.Release(c, at, indexes); err == nil {
				t.Errorf("%s: signed %x", name, b)
			}
		}
		// Too many failed: nothing begins, and who was released is told so.
		stopped := *c
		stopped.MaxErrors, stopped.Counts = "0", make([]uint32, 15)
		stopped.Counts[fleet.Failed], stopped.Counts[fleet.Released] = 1, 2
		if _, err := v.signer.Cancel(c, []uint32{0}); err == nil {
			t.Error("signed a cancel of one that is to begin")
		}
		txn = v.store.Write()
		txn.PutCommand(&stopped)
		txn.Commit()
		for _, c := range []*fleet.Command{c, &stopped} {
			_, err = v.signer.Release(c, at, []uint32{0})
			wantError(t, err, fleet.Conflict, "begins nowhere any more")
		}
		if _, err := v.signer.Cancel(c, []uint32{0, 2}); err != nil {
			t.Errorf("cancel of those that are not to begin any more: %v", err)
		}
		for name, index := range map[string]uint32{"at work": 1, "staged": 3} {
			if _, err := v.signer.Cancel(c, []uint32{index}); err == nil {
				t.Errorf("%s: signed a cancel", name)
			}
		}
		v.signer.cfg.Key = func() identity.PrivateKey { return key('Q', 9) }
		_, err = v.signer.Release(c, at, []uint32{0})
		wantError(t, err, fleet.Unavailable, "does not vote")
		v.store = state.New()
		_, err = v.signer.Release(c, at, []uint32{0})
		wantError(t, err, fleet.Unavailable, "founded")
	})
}
