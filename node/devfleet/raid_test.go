package devfleet

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"fleet/node/document"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/rpc"
	"fleet/node/ticket"
	"fleet/node/wire"
)

// raid is a thief at work on a fleet.
type raid struct {
	*scene
	*thief
	order  *order
	honest loot // for statements of another host that the thief may have overheard
}

// place is one identity of one host.
type place struct {
	name   string
	member bool // the host is of the quorum
	to     rpc.Target
}

// places are all identities of the hosts other than the thief's.
func (r *raid) places() []place {
	var all []place
	for _, n := range r.Nodes() {
		if n.ID() == r.info.Node || n.Name() == heldHost {
			continue
		}
		p := place{n.Name(), index(n.Name()) <= r.opts.Quorum, rpc.Target{Node: n.ID(), Role: fleet.RoleAgent}}
		all = append(all, p)
		if p.member {
			p.to.Role = fleet.RoleQuorum
			all = append(all, p)
		}
	}
	return all
}

// verdict is what must become of a call.
type verdict int

const (
	byRole          verdict = iota // refused for the role of the certificate, before the body is read
	refused                        // understood and refused, by every host
	refusedByMember                // by hosts of the quorum; others do not serve it
	refusedByLeader                // by the leader; others do not serve it
	harmless                       // the holder's right; that nothing runs or changes is seen at the end
)

// attack is a call of one method. try answers nil if the host did as it was
// asked.
type attack struct {
	name string
	want verdict
	try  func(ctx context.Context, r *raid, at place) error
}

var (
	// errTooMuch says that a call which is the caller's right gave more than that.
	errTooMuch = errors.New("the answer gives more than the caller's right")
	// errNotTried says that the call would be no attack at this place.
	errNotTried = errors.New("not tried")
)

// judge reports what is wrong with the outcome of an attack at a place that
// serves the method; that it is undecided is for the caller.
func (v verdict) judge(r *raid, err error) error {
	kind := fleet.KindOf(err)
	switch {
	case errors.Is(err, errTooMuch):
		return err
	case v == harmless, errors.Is(err, errNotTried):
		return nil
	case err == nil:
		return errors.New("the host did it")
	case v == byRole:
		if kind != fleet.Denied || !strings.Contains(err.Error(), "is not for a peer with the role "+r.as.String()) {
			return fmt.Errorf("not refused for the role: %w", err)
		}
		return nil
	}
	switch kind {
	case fleet.Invalid, fleet.NotFound, fleet.Conflict, fleet.Denied, fleet.Unauthenticated:
		return nil
	}
	return fmt.Errorf("failed (%s) instead of being refused: %w", kind, err)
}

// attempt makes one attack everywhere. Who serves the method must refuse it in
// so many words, which alone shows that it would be refused where it matters;
// the others say that they do not serve it.
func (r *raid) attempt(t *testing.T, method string, a attack) {
	t.Helper()
	report := func(at place, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s, %s, at the %s identity of %s: %v", method, a.name, at.to.Role, at.name, err)
		}
	}
	led := a.want != refusedByLeader
	for _, at := range r.places() {
		var err error
		switch {
		case a.want == harmless:
			report(at, a.want.judge(r, a.try(t.Context(), r, at)))
		case a.want == refusedByMember && !at.member, a.want == refusedByLeader && !at.member:
			if err = a.try(t.Context(), r, at); !undecided(err) && !errors.Is(err, errNotTried) {
				report(at, fmt.Errorf("served by a host that should not: %w", err))
			}
		case a.want == refusedByLeader:
			if err = a.try(t.Context(), r, at); !undecided(err) {
				led = true
				report(at, a.want.judge(r, err))
			}
		default:
			await(t, a.name+" is answered by "+at.name, func() bool {
				err = a.try(t.Context(), r, at)
				return !undecided(err)
			})
			report(at, a.want.judge(r, err))
		}
	}
	if led {
		return
	}
	await(t, a.name+" is answered by a leader", func() bool {
		for _, at := range r.places() {
			if err := a.try(t.Context(), r, at); !undecided(err) {
				report(at, a.want.judge(r, err))
				return true
			}
		}
		return false
	})
}

// walk asks every method of the table of every identity of every host.
func (r *raid) walk(t *testing.T, attacks map[string][]attack) {
	t.Helper()
	for _, m := range rpc.Methods {
		if len(attacks[m.Name]) == 0 {
			t.Errorf("method %s is not attacked as %s: say here what a thief may get from it", m.Name, r.as)
		}
		for _, a := range attacks[m.Name] {
			r.attempt(t, m.Name, a)
		}
	}
	for name := range attacks {
		if !slices.ContainsFunc(rpc.Methods, func(m rpc.Method) bool { return m.Name == name }) {
			t.Errorf("method %s is attacked and does not exist", name)
		}
	}
}

// ask is the try of a method with one answer.
func ask[Req, Resp any](method string, req func(r *raid, at place) (*Req, error)) func(context.Context, *raid, place) error {
	return func(ctx context.Context, r *raid, at place) error {
		q, err := req(r, at)
		if err != nil {
			return fmt.Errorf("make the request: %w", err)
		}
		_, err = rpc.Call[Req, Resp](ctx, r.rpc, at.to, method, q)
		return err
	}
}

func always[Req any](req Req) func(*raid, place) (*Req, error) {
	return func(*raid, place) (*Req, error) { return &req, nil }
}

// with sets the verdict of all attacks.
func with(v verdict, attacks []attack) []attack {
	all := slices.Clone(attacks)
	for i := range all {
		all[i].want = v
	}
	return all
}

// byAgent is what the holder of an agent's key can try.
func byAgent() map[string][]attack {
	all := map[string][]attack{
		rpc.MethodHeartbeat: {{"its own", harmless, ask[rpc.HeartbeatRequest, rpc.HeartbeatResponse](rpc.MethodHeartbeat,
			always(rpc.HeartbeatRequest{Version: "x"}))}},
		rpc.MethodReport:  reports(),
		rpc.MethodPutBlob: {{"of another digest", refusedByMember, putFalseBlob}},
		rpc.MethodRenew:   {{"its own", harmless, renewOwn}},
		rpc.MethodChangeAddress: {{"of another host", refusedByMember,
			ask[rpc.ChangeAddressRequest, rpc.ChangeAddressResponse](rpc.MethodChangeAddress, moveAnother)}},
		rpc.MethodLeave: {{"of another host", refusedByMember,
			ask[rpc.LeaveRequest, rpc.LeaveResponse](rpc.MethodLeave, sendAway)}},
		rpc.MethodFetchProgram: {
			{"that no command has it fetch", refused, fetchProgram(fleet.Sum([]byte("nobody has this")))},
			{"of the details of a command", refused, fetchProgram(fleet.Sum([]byte("{}")))},
		},
		rpc.MethodListed: {{"its own", harmless, ask[rpc.Empty, rpc.ListedResponse](rpc.MethodListed, always(rpc.Empty{}))}},
	}
	for method, attacks := range ofQuorum() {
		all[method] = with(byRole, attacks)
	}
	all[rpc.MethodCarry] = orders(carry) // the ticket decides, not who brings it
	all[rpc.MethodTrust] = trusts()
	return all
}

// trusts are what anybody may ask: trust.json is no secret. What the root key
// did not sign is not taken.
func trusts() []attack {
	return []attack{
		{"the one that counts", harmless, ask[rpc.TrustRequest, rpc.TrustResponse](rpc.MethodTrust, func(r *raid, _ place) (*rpc.TrustRequest, error) {
			return &rpc.TrustRequest{Trust: r.trust.Raw()}, nil
		})},
		{"one of its own", refused, ask[rpc.TrustRequest, rpc.TrustResponse](rpc.MethodTrust, func(r *raid, _ place) (*rpc.TrustRequest, error) {
			forged := *r.trust
			forged.Fleet, forged.Version, forged.FirstOperator = fleet.IDOf(r.key.Public()), r.trust.Version+1, nil
			other, err := identity.GenerateKey() // the signing key may have no second purpose
			if err != nil {
				return nil, err
			}
			forged.Voters, forged.K, forged.Issuers = []identity.TrustVoter{{Node: r.info.Node, Key: other.Public()}}, 1, nil
			b, err := identity.SignTrust(r.key, forged)
			return &rpc.TrustRequest{Trust: b}, err
		})},
	}
}

// byQuorum is what the holder of one quorum key can try.
func byQuorum() map[string][]attack {
	all := ofQuorum()
	all[rpc.MethodTrust] = trusts()
	for method, attacks := range byAgent() {
		if all[method] == nil {
			all[method] = with(byRole, attacks)
		}
	}
	return all
}

// ofQuorum are the methods for quorum hosts, as one stolen quorum key may call
// them.
func ofQuorum() map[string][]attack {
	return map[string][]attack{
		rpc.MethodCarry:   orders(carry),
		rpc.MethodDeliver: deliveries(),
		rpc.MethodCancel:  cancels(),
		rpc.MethodRelease: releases(),
		rpc.MethodQueryCommand: {{"of the order", harmless, ask[rpc.QueryCommandRequest, rpc.DeliverResponse](rpc.MethodQueryCommand,
			func(r *raid, _ place) (*rpc.QueryCommandRequest, error) {
				return &rpc.QueryCommandRequest{Command: r.order.id, Attempt: 1}, nil
			})}},
		rpc.MethodGetBlob:       {{"that nobody has", refused, getBlob}},
		rpc.MethodCandidate:     {{"plain", harmless, ask[rpc.Empty, rpc.CandidateResponse](rpc.MethodCandidate, always(rpc.Empty{}))}},
		rpc.MethodInstallQuorum: installs(),
		rpc.MethodForward:       forwards(),
		rpc.MethodForwardReport: forwardedReports(),
		rpc.MethodCoSign:        coSigns(),
		rpc.MethodReadIndex:     {{"plain", harmless, ask[rpc.Empty, rpc.ReadIndexResponse](rpc.MethodReadIndex, always(rpc.Empty{}))}},
		rpc.MethodPresence:      {{"plain", harmless, ask[rpc.Empty, rpc.PresenceResponse](rpc.MethodPresence, always(rpc.Empty{}))}},
		rpc.MethodApplied:       {{"plain", harmless, ask[rpc.Empty, rpc.AppliedResponse](rpc.MethodApplied, always(rpc.Empty{}))}},
		rpc.MethodVouch:         {{"plain", harmless, ask[rpc.VouchRequest, rpc.VouchResponse](rpc.MethodVouch, always(rpc.VouchRequest{Term: 1}))}},
		rpc.MethodStateHash:     {{"plain", harmless, ask[rpc.StateHashRequest, rpc.StateHashResponse](rpc.MethodStateHash, always(rpc.StateHashRequest{}))}},
		rpc.MethodRelay:         relays(),
	}
}

// bait is what a thief wants to run: it would leave a file.
func (r *raid) bait() (document_, parameters []byte) {
	content, _, _ := document.Builtin("AWS-RunShellScript")
	script := fmt.Sprintf("echo $FLEET_NODE_ID >> '%s'", r.baitFile())
	return content, wire.MustMarshal(wire.StringMap{"commands": {script}})
}

func (s *scene) baitFile() string { return filepath.Join(s.dir, "stolen") }

// madeUp is a ticket for one host that is right in everything but that nobody
// ordered it.
func (r *raid) madeUp(host fleet.NodeID) (*ticket.Ticket, error) {
	id, err := newUUID()
	content, parameters := r.bait()
	now := time.Now()
	return &ticket.Ticket{
		Version: ticket.Version, Kind: ticket.KindCommand, Fleet: r.info.Fleet, Epoch: r.trust.Epoch,
		Command: fleet.CommandID(id), Attempt: 1, Document: fleet.Sum(content), Parameters: fleet.Sum(parameters),
		Targets: 1, Root: ticket.Root([]fleet.NodeID{host}), Created: now.UnixNano(), Mint: 1, NotBefore: now.UnixNano(),
		NotAfter: now.Add(time.Hour).UnixNano(), Expires: now.Add(2 * time.Hour).UnixNano(),
	}, err
}

func newUUID() (string, error) {
	var b [16]byte
	_, err := rand.Read(b[:])
	s := hex.EncodeToString(b[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:], err
}

// another is a voter whose key the thief does not have.
func (r *raid) another() identity.TrustVoter {
	i := slices.IndexFunc(r.trust.Voters, func(v identity.TrustVoter) bool { return v.Node != r.info.Node })
	return r.trust.Voters[i]
}

// forgery makes the order for one place; nil where there is none to make.
type forgery func(r *raid, at place) (*rpc.DeliverRequest, error)

// deliveries bring orders that no host may act on.
func deliveries() []attack { return orders(deliver) }

// orders are such orders, each with the way that brings it.
func orders(deliver func(forgery) func(context.Context, *raid, place) error) []attack {
	type signatures func(r *raid, b []byte) []ticket.Signature
	named := func(s ticket.Signature, key fleet.KeyID) ticket.Signature {
		copy(s[:8], key[:])
		return s
	}
	own := func(r *raid, b []byte) ticket.Signature { return ticket.Sign(r.key, b) }
	var all []attack
	add := func(name string, req forgery) {
		all = append(all, attack{name, refused, deliver(req)})
	}
	for _, c := range []struct {
		name string
		sign signatures
	}{
		{"made up and not signed", func(*raid, []byte) []ticket.Signature { return nil }},
		{"made up, signed once", func(r *raid, b []byte) []ticket.Signature { return []ticket.Signature{own(r, b)} }},
		{"made up, signed twice by one", func(r *raid, b []byte) []ticket.Signature {
			return []ticket.Signature{own(r, b), own(r, b)}
		}},
		{"made up, signed and garbage", func(r *raid, b []byte) []ticket.Signature {
			return []ticket.Signature{own(r, b), named(ticket.Signature{9: 7}, r.another().Key.ID())}
		}},
		{"made up, signed in the name of two", func(r *raid, b []byte) []ticket.Signature {
			return []ticket.Signature{own(r, b), named(own(r, b), r.another().Key.ID())}
		}},
		{"made up, signed with the agent key too", func(r *raid, b []byte) []ticket.Signature {
			return []ticket.Signature{own(r, b), ticket.Sign(r.agent.Key, b), named(ticket.Sign(r.agent.Key, b), r.another().Key.ID())}
		}},
		{"made up, with the signatures of the order", func(r *raid, b []byte) []ticket.Signature {
			return append([]ticket.Signature{own(r, b)}, r.order.signed.Signatures...)
		}},
	} {
		add(c.name, func(r *raid, at place) (*rpc.DeliverRequest, error) {
			t, err := r.madeUp(at.to.Node)
			if err != nil {
				return nil, err
			}
			b := t.Bytes()
			content, parameters := r.bait()
			signed := ticket.Signed{Ticket: b, Signatures: c.sign(r, b)}
			return &rpc.DeliverRequest{
				Ticket: signed.Encode(), Document: content, DocumentName: "AWS-RunShellScript", Parameters: parameters,
			}, nil
		})
	}
	add("made up, with a trust.json of its own", func(r *raid, at place) (*rpc.DeliverRequest, error) {
		t, err := r.madeUp(at.to.Node)
		if err != nil {
			return nil, err
		}
		raw, err := r.falseTrust()
		if err != nil {
			return nil, err
		}
		b := t.Bytes()
		content, parameters := r.bait()
		signed := ticket.Signed{Ticket: b, Signatures: []ticket.Signature{ticket.Sign(r.key, b)}}
		return &rpc.DeliverRequest{
			Ticket: signed.Encode(), Document: content, DocumentName: "AWS-RunShellScript", Parameters: parameters, Trust: raw,
		}, nil
	})
	// The order with its two good signatures. Hosts that it names have it, and
	// may be brought it again with whatever else; the others are tried.
	for _, c := range []struct {
		name string
		edit func(r *raid, req *rpc.DeliverRequest, t *ticket.Ticket, host fleet.NodeID)
	}{
		{"re-targeted in its ticket", func(_ *raid, req *rpc.DeliverRequest, t *ticket.Ticket, host fleet.NodeID) {
			t.Targets, t.Root = 1, ticket.Root([]fleet.NodeID{host})
			req.Index, req.Path = 0, nil
		}},
		{"with the bait in its ticket", func(r *raid, req *rpc.DeliverRequest, t *ticket.Ticket, _ fleet.NodeID) {
			req.Document, req.Parameters = r.bait()
			t.Document, t.Parameters = fleet.Sum(req.Document), fleet.Sum(req.Parameters)
		}},
		{"as for the first target", func(r *raid, req *rpc.DeliverRequest, _ *ticket.Ticket, _ fleet.NodeID) {
			req.Index, req.Path = 0, ticket.Path(r.order.targets, 0)
		}},
		{"as for the second target", func(r *raid, req *rpc.DeliverRequest, _ *ticket.Ticket, _ fleet.NodeID) {
			req.Index, req.Path = 1, ticket.Path(r.order.targets, 1)
		}},
		{"as for the target of a wider tree", func(r *raid, req *rpc.DeliverRequest, _ *ticket.Ticket, host fleet.NodeID) {
			req.Index, req.Path = 2, ticket.Path(append(slices.Clone(r.order.targets), host), 2)
		}},
		{"with no path", func(_ *raid, req *rpc.DeliverRequest, _ *ticket.Ticket, _ fleet.NodeID) { req.Index, req.Path = 0, nil }},
	} {
		add("the order "+c.name, func(r *raid, at place) (*rpc.DeliverRequest, error) {
			if slices.Contains(r.order.targets, at.to.Node) {
				return nil, nil
			}
			t, err := ticket.Parse(r.order.signed.Ticket)
			if err != nil {
				return nil, err
			}
			req := *r.order.caught
			c.edit(r, &req, t, at.to.Node)
			signed := ticket.Signed{Ticket: t.Bytes(), Signatures: r.order.signed.Signatures}
			if !bytes.Equal(signed.Ticket, r.order.signed.Ticket) {
				signed.Signatures = append([]ticket.Signature{ticket.Sign(r.key, signed.Ticket)}, signed.Signatures...)
			}
			req.Ticket = signed.Encode()
			return &req, nil
		})
	}
	for name, baited := range map[string]bool{"the order again": false, "the order again, with the bait": true} {
		all = append(all, attack{name, harmless, deliver(func(r *raid, at place) (*rpc.DeliverRequest, error) {
			req := *r.order.caught
			if baited {
				req.Document, req.Parameters = r.bait()
			}
			i := max(0, slices.Index(r.order.targets, at.to.Node))
			req.Index, req.Path = uint32(i), ticket.Path(r.order.targets, i)
			return &req, nil
		})})
	}
	return all
}

// falseTrust is a trust.json that makes the thief the only voter. A root key
// of its own signed it.
func (r *raid) falseTrust() ([]byte, error) {
	root, err := identity.GenerateKey()
	if err != nil {
		return nil, err
	}
	next := *r.trust
	next.Fleet, next.Version, next.K, next.FirstOperator = fleet.IDOf(root.Public()), r.trust.Version+1, 1, nil
	next.Voters = []identity.TrustVoter{{Node: r.info.Node, Key: r.key.Public()}}
	next.Issuers = slices.DeleteFunc(slices.Clone(next.Issuers), func(i identity.TrustIssuer) bool { return i.Node != r.info.Node })
	raw, err := identity.SignTrust(root, next)
	if err != nil {
		return nil, err
	}
	// SignTrust signs only for the fleet of the key: the thief signs by hand.
	var file struct {
		Payload   []byte `json:"payload"`
		Signature []byte `json:"signature"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return nil, err
	}
	file.Payload = bytes.ReplaceAll(file.Payload, []byte(next.Fleet), []byte(r.info.Fleet))
	file.Signature = root.Sign(identity.UseTrust, file.Payload)
	return json.Marshal(file)
}

// deliver calls Deliver; an answer that the host will not run it counts as an
// error, as the refusals of other methods do. A nil request is not sent.
func deliver(req forgery) func(context.Context, *raid, place) error {
	return func(ctx context.Context, r *raid, at place) error {
		q, err := req(r, at)
		if err != nil {
			return err
		}
		if q == nil {
			return errNotTried
		}
		resp, err := rpc.Call[rpc.DeliverRequest, rpc.DeliverResponse](ctx, r.rpc, at.to, rpc.MethodDeliver, q)
		if err == nil && resp.State == rpc.DeliverRefused {
			return fleet.Errorf(fleet.Denied, "%s", resp.Reason)
		}
		return err
	}
}

// carry brings an order as a parent in a tree would, with another host below
// that the order may not name.
func carry(req forgery) func(context.Context, *raid, place) error {
	return func(ctx context.Context, r *raid, at place) error {
		q, err := req(r, at)
		if err != nil {
			return fmt.Errorf("make the request: %w", err)
		}
		if q == nil {
			return errNotTried
		}
		order := &rpc.CarryOrder{Ticket: q.Ticket, Document: q.Document, DocumentName: q.DocumentName, Parameters: q.Parameters,
			Items: []rpc.CarryItem{{Node: at.to.Node, Index: q.Index, Path: q.Path}}}
		if !slices.Contains(r.order.targets, at.to.Node) {
			order.Items[0].Below = 1
			order.Items = append(order.Items, rpc.CarryItem{Node: r.honest.info.Node, Index: 1, Path: q.Path})
		}
		stream, err := rpc.OpenCarry(ctx, r.rpc, at.to, order)
		if err != nil {
			return err
		}
		_, err = stream.Recv()
		return errors.Join(err, stream.Close())
	}
}

// cancels would stop the order, or another command, where no voter's word says
// so. (A voter's own key is a voter's word: that it can stop commands stands in
// docs/security.md.)
func cancels() []attack {
	var all []attack
	for _, c := range []struct {
		name string
		edit func(r *raid, c *ticket.Cancel)
		sign func(r *raid, c *ticket.Cancel) []byte
	}{
		{"not signed", nil, func(_ *raid, c *ticket.Cancel) []byte { return append(c.Bytes(), make([]byte, 72)...) }},
		{"signed with the agent key", nil, func(r *raid, c *ticket.Cancel) []byte { return ticket.SignCancel(r.agent.Key, c) }},
		{"signed with the agent key, in the name of a voter", nil, func(r *raid, c *ticket.Cancel) []byte {
			b, id := ticket.SignCancel(r.agent.Key, c), r.another().Key.ID()
			copy(b[len(b)-72:], id[:])
			return b
		}},
		{"with the signature of a ticket", nil, func(r *raid, c *ticket.Cancel) []byte {
			s := ticket.Sign(r.key, c.Bytes())
			return append(c.Bytes(), s[:]...)
		}},
		{"with the signatures of the order", nil, func(r *raid, c *ticket.Cancel) []byte {
			return append(c.Bytes(), r.order.signed.Signatures[0][:]...)
		}},
		{"signed with its own quorum key", nil, func(r *raid, c *ticket.Cancel) []byte {
			if r.trust.IsVoter(r.info.Node, r.key.Public()) {
				return nil // is a voter's word
			}
			return ticket.SignCancel(r.key, c)
		}},
		{"of another fleet", func(r *raid, c *ticket.Cancel) { c.Fleet = fleet.IDOf(r.key.Public()) }, nil},
		{"of another epoch", func(r *raid, c *ticket.Cancel) { c.Epoch++ }, nil},
		{"of the other targets", func(r *raid, c *ticket.Cancel) { c.Indexes = []uint32{1} }, nil},
		{"of more targets than there are", func(r *raid, c *ticket.Cancel) { c.Root = ticket.Root(r.order.targets[:1]) }, nil},
	} {
		all = append(all, attack{c.name, refused, func(ctx context.Context, r *raid, at place) error {
			t, err := ticket.Parse(r.order.signed.Ticket)
			if err != nil {
				return err
			}
			// The host stands first, and a stranger to it second.
			targets := []fleet.NodeID{at.to.Node, r.honest.info.Node}
			o := &ticket.Cancel{
				Version: ticket.CancelVersion, Fleet: t.Fleet, Epoch: t.Epoch, Command: t.Command, Attempt: t.Attempt,
				Targets: 2, Root: ticket.Root(targets), Created: t.Created, NotAfter: t.NotAfter, Expires: t.Expires,
			}
			if c.edit != nil {
				c.edit(r, o)
			}
			signed := ticket.SignCancel(r.key, o)
			if c.sign != nil {
				signed = c.sign(r, o)
			}
			if signed == nil {
				return errNotTried
			}
			resp, err := rpc.Call[rpc.CancelRequest, rpc.DeliverResponse](ctx, r.rpc, at.to, rpc.MethodCancel,
				&rpc.CancelRequest{Cancel: signed, Index: 0, Path: ticket.Path(targets, 0)})
			if err == nil && resp.State == rpc.DeliverRefused {
				return fleet.Errorf(fleet.Denied, "%s", resp.Reason)
			}
			return err
		}})
	}
	return all
}

// releases would have a host begin before its turn where no voter's word says
// so. (A voter's own key is a voter's word: that it can break the pace of
// commands stands in docs/security.md.)
func releases() []attack {
	var all []attack
	for _, c := range []struct {
		name string
		edit func(r *raid, o *ticket.Release)
		sign func(r *raid, o *ticket.Release) []byte
	}{
		{"not signed", nil, func(_ *raid, o *ticket.Release) []byte { return append(o.Bytes(), make([]byte, 72)...) }},
		{"signed with the agent key", nil, func(r *raid, o *ticket.Release) []byte { return ticket.SignRelease(r.agent.Key, o) }},
		{"signed with the agent key, in the name of a voter", nil, func(r *raid, o *ticket.Release) []byte {
			b, id := ticket.SignRelease(r.agent.Key, o), r.another().Key.ID()
			copy(b[len(b)-72:], id[:])
			return b
		}},
		{"with the signature of a ticket", nil, func(r *raid, o *ticket.Release) []byte {
			s := ticket.Sign(r.key, o.Bytes())
			return append(o.Bytes(), s[:]...)
		}},
		{"with the signatures of the order", nil, func(r *raid, o *ticket.Release) []byte {
			return append(o.Bytes(), r.order.signed.Signatures[0][:]...)
		}},
		{"signed with its own quorum key", nil, func(r *raid, o *ticket.Release) []byte {
			if r.trust.IsVoter(r.info.Node, r.key.Public()) {
				return nil // is a voter's word
			}
			return ticket.SignRelease(r.key, o)
		}},
		{"of another fleet", func(r *raid, o *ticket.Release) { o.Fleet = fleet.IDOf(r.key.Public()) }, nil},
		{"of another epoch", func(r *raid, o *ticket.Release) { o.Epoch++ }, nil},
	} {
		all = append(all, attack{c.name, refused, func(ctx context.Context, r *raid, at place) error {
			t, err := ticket.Parse(r.order.signed.Ticket)
			if err != nil {
				return err
			}
			o := &ticket.Release{
				Version: ticket.ReleaseVersion, Fleet: t.Fleet, Epoch: t.Epoch, Command: t.Command, Attempt: t.Attempt,
				Targets: t.Targets, Root: t.Root, Released: t.Created, StartBy: t.NotAfter,
			}
			for i := range t.Targets {
				o.Indexes = append(o.Indexes, i)
			}
			if c.edit != nil {
				c.edit(r, o)
			}
			signed := ticket.SignRelease(r.key, o)
			if c.sign != nil {
				signed = c.sign(r, o)
			}
			if signed == nil {
				return errNotTried
			}
			resp, err := rpc.Call[rpc.ReleaseRequest, rpc.DeliverResponse](ctx, r.rpc, at.to, rpc.MethodRelease, &rpc.ReleaseRequest{Release: signed})
			if err == nil && resp.State == rpc.DeliverRefused {
				return fleet.Errorf(fleet.Denied, "%s", resp.Reason)
			}
			return err
		}})
	}
	return all
}

// result is what a host might say of the order.
func (r *raid) result(node fleet.NodeID) ticket.Result {
	return ticket.Result{
		Fleet: r.info.Fleet, Command: r.order.id, Attempt: 1, Index: uint32(slices.Index(r.order.targets, node)), Node: node,
		State: fleet.Failed, Code: 7, Started: 1, Ended: 2, Reason: "forged",
	}
}

// reports are words of others, or about what the thief's host was not asked.
func reports() []attack {
	var all []attack
	for _, c := range []struct {
		name string
		make func(r *raid) (result, detail []byte)
	}{
		{"for another, signed by itself", func(r *raid) ([]byte, []byte) {
			return ticket.SignResult(r.agent.Key, r.result(r.honest.info.Node)), nil
		}},
		{"for another, signed by that", func(r *raid) ([]byte, []byte) {
			return ticket.SignResult(r.honest.agent.Key, r.result(r.honest.info.Node)), nil
		}},
		{"of itself in the place of another", func(r *raid) ([]byte, []byte) {
			own := r.result(r.info.Node)
			own.Index = uint32(slices.Index(r.order.targets, r.honest.info.Node))
			return ticket.SignResult(r.agent.Key, own), nil
		}},
		{"of a target that does not exist", func(r *raid) ([]byte, []byte) {
			own := r.result(r.info.Node)
			own.Index = 1 << 31
			return ticket.SignResult(r.agent.Key, own), nil
		}},
		{"of another attempt", func(r *raid) ([]byte, []byte) {
			own := r.result(r.info.Node)
			own.Attempt = 2
			return ticket.SignResult(r.agent.Key, own), nil
		}},
		{"of a command that does not exist", func(r *raid) ([]byte, []byte) {
			own := r.result(r.info.Node)
			own.Command = "00000000-0000-4000-8000-000000000000"
			return ticket.SignResult(r.agent.Key, own), nil
		}},
		{"in another fleet", func(r *raid) ([]byte, []byte) {
			own := r.result(r.info.Node)
			own.Fleet = fleet.IDOf(r.agent.Key.Public())
			return ticket.SignResult(r.agent.Key, own), nil
		}},
		{"of a state that only the quorum sets", func(r *raid) ([]byte, []byte) {
			own := r.result(r.info.Node)
			own.State = fleet.Terminated
			return ticket.SignResult(r.agent.Key, own), nil
		}},
		{"with other details than it names", func(r *raid) ([]byte, []byte) {
			own := r.result(r.info.Node)
			own.Detail = fleet.Sum([]byte("these"))
			return ticket.SignResult(r.agent.Key, own), []byte("those")
		}},
		{"that is no result", func(*raid) ([]byte, []byte) { return []byte("x"), nil }},
	} {
		all = append(all, attack{c.name, refusedByMember, ask[rpc.ReportRequest, rpc.ReportResponse](rpc.MethodReport,
			func(r *raid, _ place) (*rpc.ReportRequest, error) {
				result, detail := c.make(r)
				return &rpc.ReportRequest{Result: result, Detail: detail}, nil
			})})
	}
	return all
}

// forwardedReports are results that no host gave, brought as if one had.
func forwardedReports() []attack {
	var all []attack
	honest := func(r *raid) fleet.NodeID { return r.honest.info.Node }
	own := func(r *raid) fleet.NodeID { return r.info.Node }
	stolen := func(r *raid) identity.PrivateKey { return r.key }
	agent := func(r *raid) identity.PrivateKey { return r.agent.Key }
	for _, c := range []struct {
		name string
		node func(r *raid) fleet.NodeID
		key  func(r *raid) identity.PrivateKey
	}{
		{"for another, signed with the stolen key", honest, stolen},
		{"for another, signed with the agent key", honest, agent},
		{"for another, in its own name", own, agent},
	} {
		all = append(all, attack{c.name, refusedByLeader, ask[rpc.ForwardReportRequest, rpc.ReportResponse](rpc.MethodForwardReport,
			func(r *raid, _ place) (*rpc.ForwardReportRequest, error) {
				return &rpc.ForwardReportRequest{
					Node: c.node(r), Report: rpc.ReportRequest{Result: ticket.SignResult(c.key(r), r.result(r.honest.info.Node))},
				}, nil
			})})
	}
	return all
}

// putFalseBlob brings bytes under the digest of others.
func putFalseBlob(ctx context.Context, r *raid, at place) error {
	head := rpc.BlobHead{Digest: fleet.Sum([]byte("what was said")), Size: 4}
	answer, err := rpc.CallStream(ctx, r.rpc, at.to, rpc.MethodPutBlob, head, bytes.NewReader([]byte("else")))
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, answer)
	return errors.Join(err, answer.Close())
}

// fetchProgram asks for a program by its digest. The one that runs anybody of the
// fleet may have.
func fetchProgram(d fleet.Digest) func(context.Context, *raid, place) error {
	return func(ctx context.Context, r *raid, at place) error {
		answer, err := rpc.CallStream(ctx, r.rpc, at.to, rpc.MethodFetchProgram, rpc.BlobHead{Digest: d}, nil)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, answer)
		return errors.Join(err, answer.Close())
	}
}

func getBlob(ctx context.Context, r *raid, at place) error {
	head := rpc.BlobHead{Digest: fleet.Sum([]byte("nobody has this"))}
	answer, err := rpc.CallStream(ctx, r.rpc, at.to, rpc.MethodGetBlob, head, nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, answer)
	return errors.Join(err, answer.Close())
}

// renewOwn asks for a certificate, which must be for nobody else.
func renewOwn(ctx context.Context, r *raid, at place) error {
	resp, err := rpc.Call[rpc.Empty, rpc.RenewResponse](ctx, r.rpc, at.to, rpc.MethodRenew, &rpc.Empty{})
	if err != nil {
		return err
	}
	var chain []*x509.Certificate
	for _, der := range [][]byte{resp.Certificate, resp.Issuer, r.info.RootCertificate} {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		chain = append(chain, cert)
	}
	peer, err := identity.VerifyChain(chain, r.info.Fleet, time.Now())
	if err != nil || peer.Role != fleet.RoleAgent || peer.Node != r.info.Node || peer.Key != r.key.Public() {
		return fmt.Errorf("%w: a certificate of %+v (%v)", errTooMuch, peer, err)
	}
	return nil
}

// moveAnother says where another host answers, signed with the stolen key.
func moveAnother(r *raid, _ place) (*rpc.ChangeAddressRequest, error) {
	b, err := identity.NewAddressChange(identity.AddressChange{
		Fleet: r.info.Fleet, Node: r.info.Node, Address: "127.0.0.1:1", Epoch: uint32(time.Now().Unix()) + 60,
	}, r.agent.Key)
	if err != nil {
		return nil, err
	}
	change, err := identity.ParseAddressChange(b)
	if err != nil {
		return nil, err
	}
	payload := bytes.Replace(change.Payload, []byte(r.info.Node), []byte(r.honest.info.Node), 1)
	return &rpc.ChangeAddressRequest{Change: identity.EncodeSigned(payload, r.key.Sign(identity.UseAddress, payload))}, nil
}

// sendAway says that another host leaves, signed with the stolen key.
func sendAway(r *raid, _ place) (*rpc.LeaveRequest, error) {
	b, err := identity.NewLeave(identity.Leave{Fleet: r.info.Fleet, Node: r.info.Node, Epoch: uint32(time.Now().Unix())}, r.agent.Key)
	if err != nil {
		return nil, err
	}
	l, err := identity.ParseLeave(b)
	if err != nil {
		return nil, err
	}
	payload := bytes.Replace(l.Payload, []byte(r.info.Node), []byte(r.honest.info.Node), 1)
	return &rpc.LeaveRequest{Farewell: identity.EncodeSigned(payload, r.key.Sign(identity.UseLeave, payload))}, nil
}

// installs are certificates that the root key did not sign for the host. A
// host of the quorum has its own and lets nobody replace them: there the call
// does nothing and says so.
func installs() []attack {
	var all []attack
	for _, c := range []struct {
		name string
		make func(r *raid, at place) (quorum, issuer []byte, err error)
	}{
		{"under a root of its own", func(r *raid, at place) (quorum, issuer []byte, err error) {
			root, err := identity.GenerateKey()
			if err != nil {
				return nil, nil, err
			}
			now := time.Now()
			rootDER, err := identity.NewRootCertificate(root, "stolen", now)
			if err != nil {
				return nil, nil, err
			}
			quorum, err = identity.IssueQuorum(root, rootDER, at.to.Node, r.key.Public(), now)
			if err != nil {
				return nil, nil, err
			}
			issuer, err = identity.IssueIssuer(root, rootDER, at.to.Node, r.agent.Key.Public(), now)
			return quorum, issuer, err
		}},
		{"its own", func(r *raid, _ place) (quorum, issuer []byte, err error) {
			quorum, issuer = r.agent.Chain[0], r.agent.Chain[1]
			if r.quorum != nil {
				quorum = r.quorum.Chain[0]
			}
			if r.issuer != nil {
				issuer = r.issuer.Chain[0]
			}
			return quorum, issuer, nil
		}},
		{"that are none", func(*raid, place) (quorum, issuer []byte, err error) { return []byte("x"), nil, nil }},
	} {
		try := ask[rpc.InstallQuorumRequest, rpc.Empty](rpc.MethodInstallQuorum,
			func(r *raid, at place) (*rpc.InstallQuorumRequest, error) {
				quorum, issuer, err := c.make(r, at)
				return &rpc.InstallQuorumRequest{QuorumCert: quorum, IssuerCert: issuer, Trust: r.trust.Raw()}, err
			})
		all = append(all, attack{c.name, refused, func(ctx context.Context, r *raid, at place) error {
			err := try(ctx, r, at)
			if err == nil && at.member {
				return fleet.Errorf(fleet.Denied, "nothing was done")
			}
			return err
		}})
	}
	return all
}

// forwards are requests that no operator made.
func forwards() []attack {
	var all []attack
	add := func(name string, make func(r *raid) (*rpc.ForwardRequest, error)) {
		all = append(all, attack{name, refusedByLeader, ask[rpc.ForwardRequest, rpc.ForwardResponse](rpc.MethodForward,
			func(r *raid, _ place) (*rpc.ForwardRequest, error) { return make(r) })})
	}
	forged := func(name, operation string, key func(r *raid) fleet.KeyID) {
		add(name, func(r *raid) (*rpc.ForwardRequest, error) {
			req := r.script("echo >> '"+r.baitFile()+"'", r.honest.info.Node)
			body, err := json.Marshal(req)
			proof := identity.SignProof(r.key, identity.Proof{
				Fleet: r.info.Fleet, Operator: r.cred.Operator, Key: key(r), Operation: operation, Body: fleet.Sum(body),
				NotAfter: time.Now().Add(time.Minute).UnixNano(),
			})
			return &rpc.ForwardRequest{Operation: operation, Body: body, Operator: r.cred.Operator, Proof: proof}, err
		})
	}
	ownKey := func(r *raid) fleet.KeyID { return r.key.Public().ID() }
	operators := func(r *raid) fleet.KeyID { return r.cred.Key.Public().ID() }
	forged("signed with the stolen key", "SendCommand", ownKey)
	forged("signed with the stolen key in the operator's name", "SendCommand", operators)
	forged("voters, signed with the stolen key", "ChangeQuorum", ownKey)
	forged("an operator, signed with the stolen key", "CreateOperator", ownKey)
	forged("an operator, signed with the stolen key in the operator's name", "CreateOperator", operators)
	forged("a dismissal, signed with the stolen key in the operator's name", "DeleteOperator", operators)
	forged("a removal, signed with the stolen key", "DeregisterManagedInstance", ownKey)
	forged("a removal, signed with the stolen key in the operator's name", "DeregisterManagedInstance", operators)
	forged("no operation for operators", "DescribeNodes", ownKey)
	add("without a proof", func(r *raid) (*rpc.ForwardRequest, error) {
		return &rpc.ForwardRequest{Operation: "SendCommand", Body: r.order.body, Operator: r.cred.Operator}, nil
	})
	add("the operator's request with another body", func(r *raid) (*rpc.ForwardRequest, error) {
		body := bytes.Replace(r.order.body, []byte("sleep"), []byte("evil;"), 1)
		return &rpc.ForwardRequest{Operation: "SendCommand", Body: body, Proof: r.order.proof}, nil
	})
	add("the operator's request for another operation", func(r *raid) (*rpc.ForwardRequest, error) {
		return &rpc.ForwardRequest{Operation: "CreateActivation", Body: r.order.body, Proof: r.order.proof}, nil
	})
	add("an enrolment that nobody may", func(r *raid) (*rpc.ForwardRequest, error) {
		b, err := r.joinRequest()
		return &rpc.ForwardRequest{Operation: "fleet:Enrol", Body: b}, err
	})
	add("a change of another's address", func(r *raid) (*rpc.ForwardRequest, error) {
		move, err := moveAnother(r, place{})
		return &rpc.ForwardRequest{Operation: "fleet:ChangeAddress", Body: move.Change}, err
	})
	add("a farewell of another", func(r *raid) (*rpc.ForwardRequest, error) {
		away, err := sendAway(r, place{})
		if err != nil {
			return nil, err
		}
		return &rpc.ForwardRequest{Operation: "fleet:Leave", Body: away.Farewell}, nil
	})
	return all
}

// joinRequest asks to enrol a host of the thief's with an activation that does
// not exist.
func (r *raid) joinRequest() ([]byte, error) {
	key, err := identity.GenerateKey()
	if err != nil {
		return nil, err
	}
	code, err := identity.NewCode()
	if err != nil {
		return nil, err
	}
	return identity.NewJoinRequest(identity.JoinPayload{
		Fleet: r.info.Fleet, Activation: "00000000-0000-4000-8000-000000000000", Key: key.Public(), Name: "stolen",
		Address: "127.0.0.1:1", Epoch: uint32(time.Now().Unix()),
	}, key, code)
}

// relays have a voter bring to the honest host what it would not be brought
// directly: other methods, a further hop, and every forged order.
func relays() []attack {
	relay := func(ctx context.Context, r *raid, at place, method string, body []byte) ([]byte, error) {
		resp, err := rpc.Call[rpc.RelayRequest, rpc.RelayResponse](ctx, r.rpc, at.to, rpc.MethodRelay,
			&rpc.RelayRequest{Node: r.honest.info.Node, Method: method, Body: body})
		switch {
		case err != nil:
			return nil, err
		case resp.Err() != nil:
			return nil, resp.Err()
		case !resp.Found:
			return nil, fleet.Errorf(fleet.Unavailable, "%s is not connected to %s", honestHost, at.name)
		}
		return resp.Body, nil
	}
	var all []attack
	for _, m := range []string{rpc.MethodRelay, rpc.MethodReport, rpc.MethodHeartbeat, rpc.MethodGetBlob, "Other"} {
		all = append(all, attack{"of " + m, refusedByMember, func(ctx context.Context, r *raid, at place) error {
			_, err := relay(ctx, r, at, m, []byte{0x80})
			return err
		}})
	}
	for _, a := range orders(func(req forgery) func(context.Context, *raid, place) error {
		return func(ctx context.Context, r *raid, at place) error {
			// The order as it would be brought to the honest host itself.
			q, err := req(r, place{honestHost, false, rpc.Target{Node: r.honest.info.Node, Role: fleet.RoleAgent}})
			if err != nil {
				return err
			}
			if q == nil {
				return errNotTried
			}
			body, err := relay(ctx, r, at, rpc.MethodDeliver, wire.MustMarshal(q))
			if err != nil {
				return err
			}
			var resp rpc.DeliverResponse
			if err := wire.Unmarshal(body, &resp); err != nil {
				return err
			}
			if resp.State == rpc.DeliverRefused {
				return fleet.Errorf(fleet.Denied, "%s", resp.Reason)
			}
			return nil
		}
	}) {
		a.name = "of an order " + a.name
		if a.want == refused {
			a.want = refusedByMember
		}
		all = append(all, a)
	}
	return all
}

// coSigns ask for signatures under what was not decided. (For what was decided
// every voter signs: that is no more than the leader has already.)
func coSigns() []attack {
	var all []attack
	for _, c := range []struct {
		name string
		edit func(req *rpc.CoSignRequest)
	}{
		{"a command that does not exist", func(req *rpc.CoSignRequest) { req.Command = "00000000-0000-4000-8000-000000000000" }},
		{"another attempt", func(req *rpc.CoSignRequest) { req.Attempt = 2 }},
		{"a mint that does not exist", func(req *rpc.CoSignRequest) { req.Mint = 99 }},
	} {
		all = append(all, attack{c.name, refusedByMember, ask[rpc.CoSignRequest, rpc.CoSignResponse](rpc.MethodCoSign,
			func(r *raid, _ place) (*rpc.CoSignRequest, error) {
				t, err := ticket.Parse(r.order.signed.Ticket)
				if err != nil {
					return nil, err
				}
				req := &rpc.CoSignRequest{Command: r.order.id, Attempt: 1, Mint: t.Mint}
				c.edit(req)
				return req, nil
			})})
	}
	return all
}
