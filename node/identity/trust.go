package identity

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"fleet/node/fleet"
	"fleet/node/wire"
)

// MaxTrust is the size of the largest trust.json that is read, in bytes.
const MaxTrust = 64 << 10

const (
	maxVoters = 5

	// MaxIssuers is how many issuing keys a trust.json names at most, those that
	// are being taken out of use included.
	MaxIssuers = 32
)

// TrustIssuer is one issuing key that counts: its agent certificates and node
// records are accepted.
type TrustIssuer struct {
	Node fleet.NodeID
	Key  fleet.PublicKey

	// Until is 0 for a current key; that of a removed one counts until then
	// (Unix nanoseconds), so that hosts have time to renew.
	Until int64
}

// TrustVoter is one host whose quorum key signs tickets.
type TrustVoter struct {
	Node fleet.NodeID
	Key  fleet.PublicKey
}

// TrustOperator is the operator that a fleet begins with.
type TrustOperator struct {
	Name fleet.OperatorName
	Key  fleet.PublicKey
}

// Trust is a trust.json: whom the hosts of a fleet believe. Only the root key
// makes one; hosts take a higher version and never a lower one. Values are
// constants once parsed.
type Trust struct {
	Fleet   fleet.ID
	Epoch   uint32 // rises when the fleet is recovered by force; tickets of another epoch are refused
	Version uint32 // 1, 2, ...
	Issuers []TrustIssuer
	Voters  []TrustVoter // 1, 3 or 5, by node ID
	K       int          // how many voters must sign a ticket

	// FirstOperator is set in version 1 only: later versions create no operator.
	FirstOperator *TrustOperator

	raw []byte
}

// The file's shape. Keys are []byte because encoding/json writes those, and
// not arrays, in base64.
type (
	trustFile struct {
		Payload   []byte `json:"payload"`
		Signature []byte `json:"signature"`
	}
	trustPayload struct {
		Format        int                `json:"format"`
		Fleet         string             `json:"fleet"`
		Epoch         uint32             `json:"epoch"`
		Version       uint32             `json:"version"`
		K             int                `json:"k"`
		Voters        []trustMember      `json:"voters"`
		Issuers       []trustMember      `json:"issuers"`
		FirstOperator *trustOperatorFile `json:"first-operator,omitempty"`
	}
	trustMember struct {
		Node  string `json:"node"`
		Key   []byte `json:"key"`
		Until int64  `json:"until,omitempty"` // issuers only
	}
	trustOperatorFile struct {
		Name string `json:"name"`
		Key  []byte `json:"key"`
	}
)

// ThresholdFor is how many voters must sign a ticket: one stolen voter of
// three or five must not be enough, and a lone voter must be.
func ThresholdFor(voters int) int {
	if voters < 3 {
		return 1
	}
	return 2
}

// Validate reports the first thing that keeps t from being a trust.json.
func (t *Trust) Validate() error {
	bad := func(format string, args ...any) error {
		return fleet.Errorf(fleet.Invalid, "trust.json: "+format, args...)
	}
	if _, err := fleet.ParseID(string(t.Fleet)); err != nil {
		return bad("%w", err)
	}
	if t.Version == 0 {
		return bad("versions begin with 1")
	}
	if n := len(t.Voters); n != 1 && n != 3 && n != maxVoters {
		return bad("%d voters; a fleet has 1, 3 or 5", n)
	}
	if t.K != ThresholdFor(len(t.Voters)) {
		return bad("%d voters need k = %d, not %d", len(t.Voters), ThresholdFor(len(t.Voters)), t.K)
	}
	if len(t.Issuers) > MaxIssuers {
		return bad("%d issuing keys are over the limit of %d", len(t.Issuers), MaxIssuers)
	}
	if !slices.IsSortedFunc(t.Voters, compareVoters) || !slices.IsSortedFunc(t.Issuers, compareIssuers) {
		return bad("voters or issuing keys are not in order")
	}
	// A key has one purpose: none may be listed twice, in whatever place. The
	// short ID must tell keys apart too, since signatures are found by it.
	keys := map[fleet.KeyID]bool{}
	member := func(node fleet.NodeID, key fleet.PublicKey) error {
		if _, err := fleet.ParseNodeID(string(node)); err != nil {
			return bad("%w", err)
		}
		if key.IsZero() || keys[key.ID()] {
			return bad("the key of %s is missing or listed twice", node)
		}
		keys[key.ID()] = true
		return nil
	}
	voters, current := map[fleet.NodeID]bool{}, map[fleet.NodeID]bool{}
	for _, v := range t.Voters {
		if err := member(v.Node, v.Key); err != nil {
			return err
		}
		if voters[v.Node] {
			return bad("voter %s is listed twice", v.Node)
		}
		voters[v.Node] = true
	}
	for _, i := range t.Issuers {
		if err := member(i.Node, i.Key); err != nil {
			return err
		}
		if i.Until < 0 || i.Until == 0 && current[i.Node] {
			return bad("%s has two current issuing keys, or a negative date", i.Node)
		}
		current[i.Node] = current[i.Node] || i.Until == 0
	}
	if t.FirstOperator != nil {
		if t.Version != 1 {
			return bad("version %d names an operator; only version 1 may", t.Version)
		}
		if _, err := fleet.ParseOperatorName(string(t.FirstOperator.Name)); err != nil {
			return bad("%w", err)
		}
		if t.FirstOperator.Key.IsZero() || keys[t.FirstOperator.Key.ID()] {
			return bad("the first operator's key is missing or also a host's")
		}
	}
	return nil
}

func compareVoters(a, b TrustVoter) int { return cmp.Compare(a.Node, b.Node) }

func compareIssuers(a, b TrustIssuer) int {
	return cmp.Or(cmp.Compare(a.Node, b.Node), bytes.Compare(a.Key[:], b.Key[:]))
}

// SignTrust makes the whole trust.json. It sorts voters and issuing keys; all
// else must be valid, and the fleet must be that of the root key.
func SignTrust(root PrivateKey, t Trust) ([]byte, error) {
	t.Voters = slices.SortedFunc(slices.Values(t.Voters), compareVoters)
	t.Issuers = slices.SortedFunc(slices.Values(t.Issuers), compareIssuers)
	if err := t.check(root.Public()); err != nil {
		return nil, err
	}
	p := trustPayload{
		Format: 1, Fleet: string(t.Fleet), Epoch: t.Epoch, Version: t.Version, K: t.K,
		Voters: []trustMember{}, Issuers: []trustMember{},
	}
	for _, v := range t.Voters {
		p.Voters = append(p.Voters, trustMember{Node: string(v.Node), Key: v.Key[:]})
	}
	for _, i := range t.Issuers {
		p.Issuers = append(p.Issuers, trustMember{Node: string(i.Node), Key: i.Key[:], Until: i.Until})
	}
	if o := t.FirstOperator; o != nil {
		p.FirstOperator = &trustOperatorFile{Name: string(o.Name), Key: o.Key[:]}
	}
	payload, err := json.Marshal(&p)
	if err != nil {
		return nil, fmt.Errorf("encode trust.json: %w", err)
	}
	file, err := json.Marshal(&trustFile{Payload: payload, Signature: root.Sign(UseTrust, payload)})
	if err != nil {
		return nil, fmt.Errorf("encode trust.json: %w", err)
	}
	return append(file, '\n'), nil
}

// ParseTrust reads a trust.json and verifies that this root key signed it. The
// error is of kind Unauthenticated for a foreign signature, else Invalid or
// TooLarge. Whether its version is new enough is for the caller to decide.
func ParseTrust(b []byte, root fleet.PublicKey) (*Trust, error) {
	if len(b) > MaxTrust {
		return nil, fleet.Errorf(fleet.TooLarge, "trust.json: %d bytes are over the limit of %d", len(b), MaxTrust)
	}
	var file trustFile
	if err := wire.StrictJSON(b, &file); err != nil {
		return nil, fleet.Errorf(fleet.Invalid, "trust.json: %w", err)
	}
	// The signature comes first: nothing below is reached by foreign bytes.
	if !Verify(root, UseTrust, file.Payload, file.Signature) {
		return nil, fleet.Errorf(fleet.Unauthenticated, "trust.json is not signed by the root key %s", root.Fingerprint())
	}
	var p trustPayload
	if err := wire.StrictJSON(file.Payload, &p); err != nil {
		return nil, fleet.Errorf(fleet.Invalid, "trust.json: %w", err)
	}
	t, err := p.trust()
	if err != nil {
		return nil, err
	}
	if err := t.check(root); err != nil {
		return nil, err
	}
	t.raw = bytes.Clone(b)
	return t, nil
}

func (p *trustPayload) trust() (*Trust, error) {
	if p.Format != 1 {
		return nil, fleet.Errorf(fleet.Invalid, "trust.json of format %d: this release knows format 1", p.Format)
	}
	t := &Trust{Fleet: fleet.ID(p.Fleet), Epoch: p.Epoch, Version: p.Version, K: p.K}
	var err error
	key := func(b []byte) (k fleet.PublicKey) {
		if len(b) != len(k) {
			err = fleet.Errorf(fleet.Invalid, "trust.json: a key has %d bytes instead of %d", len(b), len(k))
			return k
		}
		return fleet.PublicKey(b)
	}
	for _, m := range p.Voters {
		if m.Until != 0 {
			return nil, fleet.Errorf(fleet.Invalid, "trust.json: a voter has no until")
		}
		t.Voters = append(t.Voters, TrustVoter{Node: fleet.NodeID(m.Node), Key: key(m.Key)})
	}
	for _, m := range p.Issuers {
		t.Issuers = append(t.Issuers, TrustIssuer{Node: fleet.NodeID(m.Node), Key: key(m.Key), Until: m.Until})
	}
	if o := p.FirstOperator; o != nil {
		t.FirstOperator = &TrustOperator{Name: fleet.OperatorName(o.Name), Key: key(o.Key)}
	}
	return t, err
}

// check is Validate and what concerns the root key.
func (t *Trust) check(root fleet.PublicKey) error {
	if err := t.Validate(); err != nil {
		return err
	}
	if t.Fleet != fleet.IDOf(root) {
		return fleet.Errorf(fleet.Invalid, "trust.json of fleet %s under the root key of fleet %s", t.Fleet, fleet.IDOf(root))
	}
	_, voter := t.Voter(root.ID())
	issuer := slices.ContainsFunc(t.Issuers, func(i TrustIssuer) bool { return i.Key == root })
	if voter || issuer || t.FirstOperator != nil && t.FirstOperator.Key == root {
		return fleet.Errorf(fleet.Invalid, "trust.json: the root key has a second purpose")
	}
	return nil
}

// Raw is the exact file that t was parsed from; nil for a Trust made by hand.
// It must not be changed.
func (t *Trust) Raw() []byte { return t.raw }

// NewerThan reports whether t is to be followed by who holds a trust.json of this
// epoch and version. A later epoch is newer whatever its version: it may have
// been signed without knowledge of the last version before it.
func (t *Trust) NewerThan(epoch, version uint32) bool {
	return t.Epoch > epoch || t.Epoch == epoch && t.Version > version
}

// Voter finds a voter by the short ID of its quorum key.
func (t *Trust) Voter(key fleet.KeyID) (TrustVoter, bool) {
	for _, v := range t.Voters {
		if v.Key.ID() == key {
			return v, true
		}
	}
	return TrustVoter{}, false
}

// IsVoter reports whether node votes with this quorum key.
func (t *Trust) IsVoter(node fleet.NodeID, key fleet.PublicKey) bool {
	return slices.Contains(t.Voters, TrustVoter{Node: node, Key: key})
}

// Issuer reports whether what this issuing key signs counts at now.
func (t *Trust) Issuer(key fleet.PublicKey, now time.Time) bool {
	return slices.ContainsFunc(t.Issuers, func(i TrustIssuer) bool { return i.Key == key && i.counts(now) })
}

func (i TrustIssuer) counts(now time.Time) bool { return i.Until == 0 || now.UnixNano() <= i.Until }
