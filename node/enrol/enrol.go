// Package enrol makes a host part of a fleet: Init starts a fleet with this
// host as its first, Join enrols this host in an existing one, and Server
// answers those who join. It also owns the layout of the data directory (Dir),
// because enrolment is what fills it.
//
// A joiner holds a token: the hash of the root key, an activation and its
// seed. It talks TLS to any host of the fleet, without a certificate of its
// own, and says nothing before that host has proved a quorum certificate under
// the pinned root; an ordinary host is asked only where the quorum is. The
// seed never travels: the joiner signs with it.
package enrol

import (
	"fleet/node/fleet"
	"fleet/node/wire"
	"io"
)

const (
	// MaxMessage bounds the messages of a joiner, who has not proved anything.
	MaxMessage = 16 << 10
	// maxAnswer bounds the answer: certificates, trust.json and the peers.
	maxAnswer = 256 << 10
)

// hello is the joiner's only message. Request is empty when the other side is
// an ordinary host, which is asked for the quorum's addresses.
type hello struct {
	Version int    `msgpack:"v"` // 1
	Request []byte `msgpack:"r,omitempty"`

	// CallBack is the TCP port at which the host is asked to try the joiner's
	// address; 0 asks for nothing. See Probe.
	CallBack uint16 `msgpack:"b,omitempty"`
	// Rejoin is a rejoin request, in place of a join request, of a host that
	// has enrolled before.
	Rejoin []byte `msgpack:"j,omitempty"`
}

// answer is the fleet's only message.
type answer struct {
	Version int    `msgpack:"v"` // 1
	Time    int64  `msgpack:"t"` // the host's clock
	Kind    uint8  `msgpack:"k,omitempty"`
	Code    string `msgpack:"c,omitempty"`
	Message string `msgpack:"m,omitempty"` // an error when not empty
	Hint    string `msgpack:"h,omitempty"`

	Peers []wirePeer `msgpack:"p,omitempty"` // hosts of the quorum

	Observed string `msgpack:"o,omitempty"`  // address that the joiner speaks from
	CallBack string `msgpack:"cb,omitempty"` // callBackOpen, or why not

	FleetName   string   `msgpack:"fn,omitempty"`
	NodeName    string   `msgpack:"nn,omitempty"`
	Certificate []byte   `msgpack:"ce,omitempty"` // DER, the joiner's
	Issuer      []byte   `msgpack:"ci,omitempty"` // DER
	Root        []byte   `msgpack:"cr,omitempty"` // DER
	Trust       []byte   `msgpack:"tr,omitempty"`
	GossipKeys  [][]byte `msgpack:"gk,omitempty"`
	NodeRecord  []byte   `msgpack:"re,omitempty"`
	Twins       []string `msgpack:"tw,omitempty"` // IDs of other hosts with this name, at most maxTwins
	Replaces    string   `msgpack:"rp,omitempty"` // ID of the host whose place the joiner took
	Origin      int64    `msgpack:"or,omitempty"` // stamp before which no command can be new to the joiner
}

type wirePeer struct {
	Node    fleet.NodeID `msgpack:"n"`
	Address string       `msgpack:"a"`
}

// refuseForeignID refuses a name that reads as the ID of another host: people
// and programs that mean the one would get the other. It is asked at the door
// and not in Apply, because a host without a name is named by its own ID.
func refuseForeignID(name string, own fleet.NodeID) error {
	if id, err := fleet.ParseNodeID(name); err == nil && id != own {
		return fleet.Errorf(fleet.Invalid, "the name %s has the form of a node ID", name).WithHint("choose another: --node-name NAME")
	}
	return nil
}

func readMessage(r io.Reader, max int, v any) error {
	b, err := wire.ReadFrame(r, max)
	if err != nil {
		return err
	}
	return wire.Unmarshal(b, v)
}

func writeMessage(w io.Writer, v any) error {
	b, err := wire.Marshal(v)
	if err != nil {
		return err
	}
	return wire.WriteFrame(w, b)
}
