package cosign

import (
	"fleet/node/fleet"
	"fleet/node/ticket"
)

// Release signs that the turn of a staged command's targets at indexes,
// ascending, has come: all of them by the one decision of this stamp. This
// voter's word is enough, since the right to run is in the ticket; it signs only
// what its own state says was decided, and nothing that was cancelled since or
// that is not to begin any more, because too many targets failed.
func (s *Signer) Release(c *fleet.Command, released int64, indexes []uint32) ([]byte, error) {
	store := s.cfg.Store()
	trust := store.Trust()
	if trust == nil {
		return nil, fleet.Errorf(fleet.Unavailable, "no fleet has been founded yet")
	}
	key := s.cfg.Key()
	if !trust.IsVoter(s.cfg.Self, key.Public()) {
		return nil, fleet.Errorf(fleet.Unavailable, "this host does not vote: hosts would not believe its release")
	}
	if now := store.Command(c.ID); now == nil || now.Stopped() {
		return nil, fleet.Errorf(fleet.Conflict, "command %s begins nowhere any more", c.ID)
	}
	for _, index := range indexes {
		row := store.Invocation(c.ID, index)
		if row == nil || row.Released != released || row.State != fleet.Released && row.State != fleet.InProgress {
			return nil, fleet.Errorf(fleet.Conflict, "target %d of command %s was not released then, or may not begin any more", index, c.ID)
		}
	}
	b := ticket.SignRelease(key, ticket.ReleaseOf(c, trust.Fleet, trust.Epoch, released, indexes))
	if b == nil {
		return nil, fleet.Errorf(fleet.Invalid, "the release of command %s cannot be written", c.ID)
	}
	return b, nil
}
