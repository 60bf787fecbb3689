package cosign

import (
	"fleet/node/fleet"
	"fleet/node/ticket"
)

// Cancel signs that a command is cancelled at indexes, ascending, or on all of
// its targets when there are none. This voter's word is enough: a Cancel makes
// hosts stop and nothing else, and must not wait for k voters. It signs only
// what its own state says an operator cancelled, or was released and is not to
// begin any more because too many targets failed; targets that have ended do not
// count.
func (s *Signer) Cancel(c *fleet.Command, indexes []uint32) ([]byte, error) {
	trust := s.cfg.Store().Trust()
	if trust == nil {
		return nil, fleet.Errorf(fleet.Unavailable, "no fleet has been founded yet")
	}
	key := s.cfg.Key()
	if !trust.IsVoter(s.cfg.Self, key.Public()) {
		return nil, fleet.Errorf(fleet.Unavailable, "this host does not vote: hosts would not believe its cancel")
	}
	store := s.cfg.Store()
	now := store.Command(c.ID)
	if len(indexes) == 0 && (now == nil || now.Unfinished() > now.Count(fleet.CancelPending, fleet.CancelInProgress)) {
		return nil, fleet.Errorf(fleet.Conflict, "command %s is not cancelled as a whole", c.ID)
	}
	for _, index := range indexes {
		row := store.Invocation(c.ID, index)
		if stopped := row != nil && row.State == fleet.Released && now != nil && now.Stopped(); row == nil || row.State.Cancel() != row.State && !stopped {
			return nil, fleet.Errorf(fleet.Conflict, "target %d of command %s is not cancelled", index, c.ID)
		}
	}
	b := ticket.SignCancel(key, ticket.CancelOf(c, trust.Fleet, trust.Epoch, indexes))
	if b == nil {
		return nil, fleet.Errorf(fleet.Invalid, "the cancel of command %s cannot be written", c.ID)
	}
	return b, nil
}
