package entry

import (
	"fleet/node/fleet"
)

// GossipKeySize is the size of a gossip key, in bytes.
const GossipKeySize = 32

// GossipStep is a step of a rotation of the gossip key. The numbers are in logs:
// append only.
type GossipStep uint8

// Steps of a rotation. Each has to reach the hosts before the next is taken.
const (
	GossipKeyMade    GossipStep = 1 // hosts open packets with the new key too
	GossipKeyUsed    GossipStep = 2 // they seal with it, and still open with the old one
	GossipKeyDropped GossipStep = 3 // the old one counts no more
)

// GossipKey is a step of a rotation of the gossip key. It is the leader's own
// word: the key grants nothing, and a leader that rotates without need, or makes
// a bad key, harms gossip only, which it can do anyway. When an operator asked for
// the rotation, the entry carries what he signed, and Apply verifies that.
type GossipKey struct {
	Stamp   int64      `msgpack:"s"`
	Step    GossipStep `msgpack:"t"`
	Version uint32     `msgpack:"v"`           // of the keys that it changes: a step counts once
	Key     []byte     `msgpack:"k,omitempty"` // the new one; with GossipKeyMade only
	Request []byte     `msgpack:"q,omitempty"` // RotateGossipKeyV1, with GossipKeyMade only
	Proof   []byte     `msgpack:"p,omitempty"`
}

// Kind is KindGossipKey.
func (*GossipKey) Kind() Kind { return KindGossipKey }

// Check accepts the form.
func (e *GossipKey) Check() error {
	if err := CheckStamp(e.Stamp); err != nil {
		return err
	}
	if e.Step < GossipKeyMade || e.Step > GossipKeyDropped {
		return fleet.Errorf(fleet.Invalid, "step %d of a rotation of the gossip key is not known", e.Step)
	}
	if e.Step != GossipKeyMade {
		if len(e.Key)+len(e.Request)+len(e.Proof) > 0 {
			return fleet.Errorf(fleet.Invalid, "only the first step of a rotation has a key and a request")
		}
		return nil
	}
	if len(e.Key) != GossipKeySize {
		return fleet.Errorf(fleet.Invalid, "a gossip key of %d bytes: %d are needed", len(e.Key), GossipKeySize)
	}
	if len(e.Request) == 0 && len(e.Proof) == 0 {
		return nil
	}
	if err := checkBytes("request", e.Request, MaxRequest); err != nil {
		return err
	}
	return checkBytes("proof", e.Proof, MaxProof)
}

// RotateGossipKeyV1 is the signed request for a rotation. It has no members.
type RotateGossipKeyV1 struct{}

// ParseRotateGossipKey reads the request of a rotation.
func ParseRotateGossipKey(b []byte) (*RotateGossipKeyV1, error) { return parse[RotateGossipKeyV1](b) }

func (*RotateGossipKeyV1) check() error { return nil }
