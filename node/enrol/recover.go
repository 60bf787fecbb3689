package enrol

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/transport"
	"fleet/raftfsm"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/quorum"
)

// RecoverOptions says how to make a fleet whose quorum is lost decide again.
type RecoverOptions struct {
	DataDir string // of a voter whose agent does not run
	Root    identity.PrivateKey
	File    *identity.RootKeyFile

	// Confirm is asked before anything changes; an error ends it.
	Confirm func(*Recoverable) error

	// Force goes on although so many other voters answer that there is a quorum.
	Force bool

	Now  func() time.Time
	Dial transport.DialFunc // nil: the system's
}

// Recoverable is what a recovery begins with, for a person.
type Recoverable struct {
	Fleet    string
	Node     fleet.NodeID
	NodeName string

	Index   uint64    // of the newest entry that this host has
	Written time.Time // when it was made, by the clock of the leader of then; zero for not known
	Epoch   uint32    // that the fleet will be in

	Voters []RecoverableVoter // the others that voted
}

// RecoverableVoter is another voter of a lost quorum.
type RecoverableVoter struct {
	Node     fleet.NodeID
	Name     string
	Address  string
	Answered bool // it runs: with it there may be a quorum
}

// Recovered says what was done.
type Recovered struct {
	Recoverable
	TrustVersion uint32
}

// answerTime bounds the question to the other voters whether they are there.
const answerTime = 5 * time.Second

// RecoverFleet makes the host of a data directory the only voter, in a new
// epoch, with all that its log holds: also what no majority ever had. What only
// the others hold is lost. The root key signs the trust.json that says so, by
// which every host refuses whatever the others may still decide; and new
// certificates, since those may have ended.
func RecoverFleet(ctx context.Context, o RecoverOptions) (_ *Recovered, err error) {
	dir, info, err := OpenDir(o.DataDir)
	if err != nil {
		return nil, err
	}
	if o.File.Fleet != info.Fleet {
		return nil, fleet.Errorf(fleet.Invalid, "%s is the root key of the fleet %s, and this host is of %s", o.File.Path, o.File.Name, info.Name)
	}
	keys := map[string]identity.PrivateKey{}
	for _, name := range []string{Quorum, Issuer} {
		if keys[name], err = identity.LoadKey(dir.File("keys/" + name + ".key")); err != nil {
			return nil, fleet.Errorf(fleet.Conflict, "this host is no voter: it has no %s key", name).WithHint("run it on one of the voters")
		}
	}
	store, err := quorum.OpenRecovery(dir.File("quorum"), info.Node)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	state := raftfsm.New(info.Fleet)
	if err := store.Load(state); err != nil {
		return nil, err
	}
	trust, err := newestTrust(dir, info, state)
	if err != nil {
		return nil, err
	}
	if !trust.IsVoter(info.Node, keys[Quorum].Public()) {
		return nil, fleet.Errorf(fleet.Conflict, "this host is no voter by trust.json version %d", trust.Version).WithHint("run it on one of the voters")
	}
	if trust.Version < o.File.TrustShown {
		if !o.Force {
			return nil, fleet.Errorf(fleet.Conflict, "this host is behind: it knows trust.json version %d, and the fleet has shown version %d to the root key",
				trust.Version, o.File.TrustShown).
				WithHint("another host was recovered, or the quorum was changed, without this one: start fleet here and see fleet status; " +
					"if no other voter is left, --force recovers from this one")
		}
		behind := *trust
		behind.Version = o.File.TrustShown
		trust = &behind
	}
	found := &Recoverable{
		Fleet: info.Name, Node: info.Node, NodeName: info.NodeName, Index: store.Index, Written: store.Written, Epoch: trust.Epoch + 1,
	}
	if err := o.askOthers(ctx, info, state, trust, found); err != nil {
		return nil, err
	}
	if err := o.Confirm(found); err != nil {
		return nil, err
	}
	plan, err := PlanRecovery(trust, info.Node, keys[Issuer].Public(), o.Now())
	if err != nil {
		return nil, err
	}
	req, err := plan.Sign(o.Root, o.File, o.Now())
	if err != nil {
		return nil, err
	}
	next, err := identity.ParseTrust(req.Trust, info.Root())
	if err != nil {
		return nil, err
	}
	if err := o.certify(dir, info, keys); err != nil {
		return nil, err
	}
	after := raftfsm.New(info.Fleet)
	if err := store.Run(after, &entry.Trust{Stamp: o.Now().UnixNano(), Trust: req.Trust}, o.Now()); err != nil {
		return nil, err
	}
	if t := after.Store().Trust(); t == nil || t.Version != next.Version || t.Epoch != next.Epoch {
		return nil, fmt.Errorf("recover: the log does not take trust.json version %d", next.Version)
	}
	if err := dir.SaveTrust(next); err != nil {
		return nil, err
	}
	return &Recovered{Recoverable: *found, TrustVersion: next.Version}, o.File.NoteTrust(next.Version)
}

// newestTrust is the trust.json of the log, or the one that the host holds if
// that is newer: it may have heard of one that its log lacks.
func newestTrust(dir *Dir, info *Fleet, state *raftfsm.FSM) (*identity.Trust, error) {
	held, err := dir.Trust(info.Root())
	if err != nil {
		return nil, err
	}
	logged := state.Store().Trust()
	if logged == nil {
		return nil, fleet.Errorf(fleet.NotFound, "the log of this host holds no fleet yet: there is nothing to recover")
	}
	if held.NewerThan(logged.Epoch, logged.Version) {
		return held, nil
	}
	return logged, nil
}

// certify signs certificates of today for the keys that the host has.
func (o *RecoverOptions) certify(dir *Dir, info *Fleet, keys map[string]identity.PrivateKey) error {
	quorumCert, err := identity.IssueQuorum(o.Root, o.File.Certificate, info.Node, keys[Quorum].Public(), o.Now())
	if err != nil {
		return err
	}
	issuerCert, err := identity.IssueIssuer(o.Root, o.File.Certificate, info.Node, keys[Issuer].Public(), o.Now())
	if err != nil {
		return err
	}
	return errors.Join(
		dir.SaveChain(Issuer, issuerCert, info.RootCertificate),
		dir.SaveChain(Quorum, quorumCert, info.RootCertificate))
}

// askOthers finds out which other voters run. With a majority there is a quorum,
// or there will be when this host's agent runs: a recovery would then make two
// fleets of one.
func (o *RecoverOptions) askOthers(ctx context.Context, info *Fleet, state *raftfsm.FSM, trust *identity.Trust, found *Recoverable) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	for _, v := range trust.Voters {
		if v.Node == info.Node {
			continue
		}
		other := RecoverableVoter{Node: v.Node, Name: string(v.Node)}
		if n := state.Store().Node(v.Node); n != nil {
			other.Name, other.Address = n.Name, n.Address
		}
		found.Voters = append(found.Voters, other)
	}
	var wg sync.WaitGroup
	for i := range found.Voters {
		v := &found.Voters[i]
		if v.Address == "" {
			continue
		}
		wg.Go(func() {
			seen, err := transport.Peek(ctx, o.Dial, v.Address, o.Now)
			v.Answered = err == nil && seen.Root == info.Root() && seen.Node == v.Node
		})
	}
	wg.Wait()
	var there []string
	for _, v := range found.Voters {
		if v.Answered {
			there = append(there, v.Name)
		}
	}
	slices.Sort(there)
	if len(there)+1 >= len(trust.Voters)/2+1 && len(there) > 0 && !o.Force {
		return fleet.Errorf(fleet.Conflict, "there is a quorum: %s of the %d voters run, and with this host they are a majority",
			strings.Join(there, ", "), len(trust.Voters)).
			WithHint("start fleet on this host. A recovery would make two fleets of one; --force does it all the same")
	}
	return nil
}

// RenewHere signs new certificates for the quorum keys in a data directory whose
// agent does not run, and gives when they end: for a quorum whose certificates
// have ended, so that its hosts do not speak with each other.
func RenewHere(dataDir string, root identity.PrivateKey, file *identity.RootKeyFile, now time.Time) (until time.Time, err error) {
	dir, info, err := OpenDir(dataDir)
	if err != nil {
		return until, err
	}
	if file.Fleet != info.Fleet {
		return until, fleet.Errorf(fleet.Invalid, "%s is the root key of the fleet %s, and this host is of %s", file.Path, file.Name, info.Name)
	}
	trust, err := dir.Trust(info.Root())
	if err != nil {
		return until, err
	}
	keys := map[string]identity.PrivateKey{}
	for _, name := range []string{Quorum, Issuer} {
		if keys[name], err = identity.LoadKey(dir.File("keys/" + name + ".key")); err != nil {
			return until, fleet.Errorf(fleet.Conflict, "this host is no voter: it has no %s key", name)
		}
	}
	if !trust.IsVoter(info.Node, keys[Quorum].Public()) {
		return until, fleet.Errorf(fleet.Conflict, "this host is no voter by trust.json version %d", trust.Version)
	}
	store, err := quorum.OpenRecovery(dir.File("quorum"), info.Node) // its lock: an agent would not notice
	if err != nil {
		return until, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	o := RecoverOptions{Root: root, File: file, Now: func() time.Time { return now }}
	if err := o.certify(dir, info, keys); err != nil {
		return until, err
	}
	id, err := dir.LoadIdentity(Quorum)
	if err != nil {
		return until, err
	}
	return id.TLS().Leaf.NotAfter, nil
}
