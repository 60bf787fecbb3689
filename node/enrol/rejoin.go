package enrol

import (
	"context"
	"errors"
	"fmt"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/transport"
)

// Rejoiner asks the quorum, for a host that enrolled before, whether it is
// still of the fleet. It needs no certificate: that may have ended while the
// host was off, and a removed host's is refused everywhere.
type Rejoiner struct {
	Dir  *Dir
	Info *Fleet
	Key  identity.PrivateKey // agent key
	Now  func() time.Time
	Dial transport.DialFunc // nil: the system's
}

// Renewal is what a host gets that is still of the fleet.
type Renewal struct {
	Certificate, Issuer []byte // DER
	NodeRecord          []byte
	Trust               []byte

	NodeName    string
	ClockOffset time.Duration // of the fleet's clock from this host's
}

// Ask asks the quorum at the given addresses until one of its hosts has
// decided, and gives which did. An error of kind Denied with the code
// CodeNodeRemoved is that host's word that this one is of the fleet no more.
func (r *Rejoiner) Ask(ctx context.Context, addresses []string) (identity.Peer, *Renewal, error) {
	request, err := identity.NewRejoin(identity.Rejoin{
		Fleet: r.Info.Fleet, Key: r.Key.Public(), Epoch: uint32(r.Now().Unix()),
	}, r.Key)
	if err != nil {
		return identity.Peer{}, nil, err
	}
	root := r.Info.Root()
	j := &joiner{
		dial: r.Dial, now: r.Now, root: fleet.Sum(root[:]), key: r.Key,
		hello: func(identity.Peer) (hello, error) { return hello{Rejoin: request}, nil },
	}
	f, err := j.ask(ctx, addresses)
	if err != nil {
		return f.peer, nil, err
	}
	a := f.answer
	checked, err := j.check(a, f.offset)
	if err != nil {
		return f.peer, nil, err
	}
	if checked.peer.Node != r.Info.Node || checked.peer.Role != fleet.RoleAgent {
		return f.peer, nil, fleet.Errorf(fleet.Unauthenticated, "the certificate in the answer is for %s", checked.peer.Node)
	}
	return f.peer, &Renewal{
		Certificate: a.Certificate, Issuer: a.Issuer, NodeRecord: a.NodeRecord, Trust: checked.trust.Raw(),
		NodeName: a.NodeName, ClockOffset: f.offset,
	}, nil
}

// RejoinOptions says how to renew the certificate of this host.
type RejoinOptions struct {
	DataDir   string
	Addresses []string // of the quorum; empty: those that the host wrote down
	Now       func() time.Time
	Dial      transport.DialFunc // nil: the system's
}

// RejoinHost gives the host in a data directory a certificate of today, for the
// key and the ID that it has. It is for a host that was off until its
// certificate ended; one that was removed from the fleet is refused.
func RejoinHost(ctx context.Context, o RejoinOptions) (*JoinResult, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	dir, info, err := OpenDir(o.DataDir)
	if err != nil {
		return nil, err
	}
	key, err := identity.LoadKey(dir.File("keys/" + Agent + ".key"))
	if err != nil {
		return nil, fmt.Errorf("agent key: %w", err)
	}
	peers, err := dir.Peers()
	if err != nil {
		return nil, err
	}
	if len(o.Addresses) == 0 {
		for _, p := range peers {
			o.Addresses = append(o.Addresses, p.Address)
		}
	}
	if len(o.Addresses) == 0 {
		return nil, fleet.Errorf(fleet.Invalid, "no address of the quorum is written down in %s", dir.Path()).
			WithHint("name one: fleet join --rejoin IP:PORT")
	}
	_, renewal, err := (&Rejoiner{Dir: dir, Info: info, Key: key, Now: o.Now, Dial: o.Dial}).Ask(ctx, o.Addresses)
	if err != nil {
		return nil, err
	}
	held, err := dir.Trust(info.Root())
	if err != nil {
		return nil, err
	}
	next, err := identity.ParseTrust(renewal.Trust, info.Root())
	if err != nil {
		return nil, err
	}
	if next.NewerThan(held.Epoch, held.Version) {
		if err := dir.SaveTrust(next); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(
		dir.SaveChain(Agent, renewal.Certificate, renewal.Issuer, info.RootCertificate),
		dir.SaveNodeRecord(renewal.NodeRecord)); err != nil {
		return nil, err
	}
	r := &JoinResult{
		Fleet: info.Fleet, Name: info.Name, Node: info.Node, NodeName: renewal.NodeName, Quorum: peers, ClockOffset: renewal.ClockOffset,
	}
	if w := clockWarning(renewal.ClockOffset); w != "" {
		r.Warnings = append(r.Warnings, w)
	}
	return r, nil
}
