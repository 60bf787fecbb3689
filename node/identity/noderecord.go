package identity

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"regexp"
	"time"

	"fleet/node/fleet"
)

// MaxNodeRecord is the size of the largest node record, in bytes: it must fit
// into memberlist's metadata with room to spare.
const MaxNodeRecord = recordHead + maxCell + 64

// recordAhead is how far a record may be ahead of the reader's clock. One from
// the far future would else outrank all that follow.
const recordAhead = 10 * time.Minute

// Layout, big-endian: version 1, issuer 4, role 1, node ID 9 (17 hex digits and
// a zero digit), IPv6 or IPv6-mapped address 16, port 2, epoch 4, expiry 4,
// cell length 1, cell, signature 64 over all before it.
const (
	recordHead = 42
	maxCell    = 16
)

// NodeRecord is what gossip carries about a host: who and where it is, in the
// words of an issuing key, so that members can check it without holding each
// other's keys.
type NodeRecord struct {
	Issuer [4]byte    // first bytes of the issuing key's ID; set by SignNodeRecord
	Role   fleet.Role // agent or quorum
	Node   fleet.NodeID
	Addr   netip.AddrPort
	Epoch  uint32 // Unix second of issue; the higher one of two counts
	Expiry uint32 // Unix second
	Cell   string // at most 16 of a-z, 0-9 and "-"; may be empty
}

var cellPattern = regexp.MustCompile(`^[a-z0-9-]{0,16}$`)

// SignNodeRecord writes r and signs it with an issuing key.
func SignNodeRecord(issuer PrivateKey, r NodeRecord) ([]byte, error) {
	id := issuer.Public().ID()
	r.Issuer = [4]byte(id[:4])
	if err := r.check(); err != nil {
		return nil, err
	}
	b := make([]byte, 0, MaxNodeRecord)
	b = append(b, 1)
	b = append(b, r.Issuer[:]...)
	b = append(b, byte(r.Role))
	node, err := hex.DecodeString(string(r.Node[3:]) + "0")
	if err != nil {
		return nil, badRecord("node ID %q", r.Node)
	}
	b = append(b, node...)
	addr := r.Addr.Addr().As16()
	b = append(b, addr[:]...)
	b = binary.BigEndian.AppendUint16(b, r.Addr.Port())
	b = binary.BigEndian.AppendUint32(b, r.Epoch)
	b = binary.BigEndian.AppendUint32(b, r.Expiry)
	b = append(b, byte(len(r.Cell)))
	b = append(b, r.Cell...)
	return append(b, issuer.Sign(UseNodeRecord, b)...), nil
}

// ParseNodeRecord reads a node record and checks its form; it verifies neither
// signature nor time.
func ParseNodeRecord(b []byte) (NodeRecord, error) {
	if len(b) < recordHead+64 || len(b) > MaxNodeRecord {
		return NodeRecord{}, badRecord("%d bytes", len(b))
	}
	if b[0] != 1 {
		return NodeRecord{}, badRecord("version %d is not known", b[0])
	}
	cell := int(b[recordHead-1])
	if len(b) != recordHead+cell+64 {
		return NodeRecord{}, badRecord("%d bytes do not fit a cell name of %d", len(b), cell)
	}
	node := hex.EncodeToString(b[6:15])
	if node[17] != '0' {
		return NodeRecord{}, badRecord("the node ID is followed by more than a zero")
	}
	r := NodeRecord{
		Issuer: [4]byte(b[1:5]),
		Role:   fleet.Role(b[5]),
		Node:   fleet.NodeID("mi-" + node[:17]),
		Addr:   netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[15:31])).Unmap(), binary.BigEndian.Uint16(b[31:])),
		Epoch:  binary.BigEndian.Uint32(b[33:]),
		Expiry: binary.BigEndian.Uint32(b[37:]),
		Cell:   string(b[recordHead : recordHead+cell]),
	}
	return r, r.check()
}

// VerifyNodeRecord reads a node record and accepts it if an issuing key that
// counts at now signed it, it has not expired, and it was issued at most ten
// minutes ahead of now. Errors: Invalid, Unauthenticated or Expired.
func VerifyNodeRecord(b []byte, t *Trust, now time.Time) (NodeRecord, error) {
	r, err := ParseNodeRecord(b)
	if err != nil {
		return NodeRecord{}, err
	}
	if !r.signedUnder(b, t, now) {
		return NodeRecord{}, fleet.Errorf(fleet.Unauthenticated, "node record of %s: not signed by an issuing key of the fleet", r.Node)
	}
	if issued := time.Unix(int64(r.Epoch), 0); issued.After(now.Add(recordAhead)) {
		return NodeRecord{}, fleet.Errorf(fleet.Expired, "node record of %s: issued at %s, but here it is %s",
			r.Node, clock(issued), clock(now)).WithHint("compare the clocks of this host and of the quorum")
	}
	if expiry := time.Unix(int64(r.Expiry), 0); now.After(expiry) {
		return NodeRecord{}, fleet.Errorf(fleet.Expired, "node record of %s: valid until %s, but here it is %s",
			r.Node, clock(expiry), clock(now))
	}
	return r, nil
}

// signedUnder tries each issuing key whose ID begins with the record's four
// bytes: two may.
func (r *NodeRecord) signedUnder(b []byte, t *Trust, now time.Time) bool {
	if t == nil {
		return false
	}
	body, signature := b[:len(b)-64], b[len(b)-64:]
	for _, i := range t.Issuers {
		id := i.Key.ID()
		if bytes.Equal(id[:4], r.Issuer[:]) && i.counts(now) && Verify(i.Key, UseNodeRecord, body, signature) {
			return true
		}
	}
	return false
}

func (r *NodeRecord) check() error {
	if r.Role != fleet.RoleAgent && r.Role != fleet.RoleQuorum {
		return badRecord("role %s", r.Role)
	}
	if _, err := fleet.ParseNodeID(string(r.Node)); err != nil {
		return badRecord("%w", err)
	}
	ip := r.Addr.Addr()
	if !ip.IsValid() || ip.Zone() != "" || ip.IsUnspecified() || ip.IsMulticast() || r.Addr.Port() == 0 {
		return badRecord("address %s cannot be dialled", r.Addr)
	}
	if r.Expiry <= r.Epoch {
		return badRecord("it expires before it is issued")
	}
	if !cellPattern.MatchString(r.Cell) {
		return badRecord("cell name %.40q: use at most 16 of a-z, 0-9 and -", r.Cell)
	}
	return nil
}

func badRecord(format string, args ...any) error {
	return fleet.Errorf(fleet.Invalid, "node record: "+format, args...)
}
