package identity

import (
	"net"
	"net/netip"
	"strconv"

	"fleet/node/fleet"
	"fleet/node/wire"
)

// CheckAddress accepts "host:port" of a host that others can dial: an IP
// address without a zone or a DNS name, and a port from 1 to 65535 written
// without leading zeros. The error is of kind Invalid.
func CheckAddress(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return badAddress(s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return badAddress(s)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.Zone() != "" || ip.IsUnspecified() || ip.IsMulticast() {
			return badAddress(s)
		}
		return nil
	}
	if fleet.CheckNodeName(host) != nil {
		return badAddress(s)
	}
	return nil
}

func badAddress(s string) error {
	return fleet.Errorf(fleet.Invalid, "address %.300q is not HOST:PORT that another host can dial", s)
}

// MaxAddressChange is the size of the largest signed address change, in bytes.
const MaxAddressChange = 1 << 10

// AddressChange is what a host says about where it answers.
type AddressChange struct {
	Fleet   fleet.ID     `msgpack:"f"`
	Node    fleet.NodeID `msgpack:"n"`
	Address string       `msgpack:"a"` // "host:port"
	Epoch   uint32       `msgpack:"e"` // Unix seconds; a lower or equal one than the row's is refused
}

type addressChange struct {
	Version       uint8 `msgpack:"v"`
	AddressChange `msgpack:",inline"`
}

// SignedAddressChange is an AddressChange as it travels.
type SignedAddressChange struct {
	AddressChange
	Payload, Signature []byte
}

// NewAddressChange signs p; its Node must be that of the agent key.
func NewAddressChange(p AddressChange, agent PrivateKey) ([]byte, error) {
	if p.Node != fleet.NodeIDOf(agent.Public()) {
		return nil, fleet.Errorf(fleet.Invalid, "address change: %s is not the node of the signing key", p.Node)
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	payload := wire.MustMarshal(&addressChange{1, p})
	return EncodeSigned(payload, agent.Sign(UseAddress, payload)), nil
}

// ParseAddressChange reads a signed address change and checks its form; it
// does not verify the signature.
func ParseAddressChange(b []byte) (*SignedAddressChange, error) {
	const what = "address change"
	var p addressChange
	payload, signature, err := decodeFirst(b, MaxAddressChange, what, &p, &p.Version, p.check)
	if err != nil {
		return nil, err
	}
	return &SignedAddressChange{p.AddressChange, payload, signature}, nil
}

// Verify checks that the host itself, whose agent key is given, said so. The
// error is of kind Unauthenticated.
func (s *SignedAddressChange) Verify(agent fleet.PublicKey) error {
	if s.Node != fleet.NodeIDOf(agent) || !Verify(agent, UseAddress, s.Payload, s.Signature) {
		return fleet.Errorf(fleet.Unauthenticated, "address change: not signed by %s", s.Node)
	}
	return nil
}

func (p *AddressChange) check() error {
	if _, err := fleet.ParseID(string(p.Fleet)); err != nil {
		return err
	}
	if _, err := fleet.ParseNodeID(string(p.Node)); err != nil {
		return err
	}
	return CheckAddress(p.Address)
}
