package enrol

import (
	"context"
	"errors"
	"os"
	"time"

	"fleet/node/backup"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/transport"
	"fleet/raftfsm"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/quorum"
)

// RestoreOptions says how to make a fleet decide again from a backup, when
// every voter is lost.
type RestoreOptions struct {
	// DataDir is that of a host of the fleet whose agent does not run and that
	// has no log of its own, or of none: then the backup must have a host's keys.
	DataDir string
	Backup  *backup.Backup
	Root    identity.PrivateKey
	File    *identity.RootKeyFile

	// Confirm is asked before anything changes; an error ends it.
	Confirm func(*Recoverable) error

	// Force goes on although voters answer, or nobody whom the state knows as an
	// operator signed the backup.
	Force bool

	Now  func() time.Time
	Dial transport.DialFunc // nil: the system's
}

// RestoreFleet makes a host the only voter of its fleet, in a new epoch, with
// what a backup holds. What was decided after the backup is lost. The root key
// signs for it, as for a recovery (RecoverFleet), which loses less where a voter
// is left.
func RestoreFleet(ctx context.Context, o RestoreOptions) (_ *Recovered, err error) {
	b, store := o.Backup, o.Backup.State()
	if id := store.Fleet().ID; o.File.Fleet != id {
		return nil, fleet.Errorf(fleet.Invalid, "%s is the root key of the fleet %s, and the backup is of %s (%s)", o.File.Path, o.File.Name, store.Fleet().Name, id)
	}
	if !b.SignedByOperator() && !o.Force {
		return nil, fleet.Errorf(fleet.Denied, "the backup is signed by %s with a key that the fleet did not know as an operator's", b.Signature.Operator).
			WithHint("--force, if you know where it comes from: all in it but that was verified")
	}
	at, err := o.target()
	if err != nil {
		return nil, err
	}
	info := at.info
	node := store.Node(info.Node)
	if node == nil {
		return nil, fleet.Errorf(fleet.Conflict, "the backup does not know this host, %s (%s)", info.NodeName, info.Node).
			WithHint("run it on a host that was enrolled when the backup was made")
	}
	trust := o.trust(at.held)
	found := &Recoverable{
		Fleet: store.Fleet().Name, Node: info.Node, NodeName: node.Name, Index: b.FSM.Applied(), Written: time.Unix(0, store.LastStamp()), Epoch: trust.Epoch + 1,
	}
	recovery := &RecoverOptions{Root: o.Root, File: o.File, Force: o.Force, Now: o.Now, Dial: o.Dial}
	if err := recovery.askOthers(ctx, info, b.FSM, trust, found); err != nil {
		return nil, err
	}
	if err := o.Confirm(found); err != nil {
		return nil, err
	}
	dir, finish, err := at.open()
	if err != nil {
		return nil, err
	}
	keys := map[string]identity.PrivateKey{}
	if keys[Agent], err = identity.LoadKey(dir.File("keys/" + Agent + ".key")); err != nil {
		return nil, err
	}
	if keys[Agent].Public() != node.Key {
		return nil, fleet.Errorf(fleet.Conflict, "the key of this host is not the one that the backup knows %s by", info.Node)
	}
	for _, name := range []string{Quorum, Issuer} {
		if keys[name], err = dir.LoadOrCreateKey(name); err != nil {
			return nil, err
		}
	}
	req, err := planRestore(trust, info.Node, keys[Quorum].Public(), keys[Issuer].Public(), o.Now()).Sign(o.Root, o.File, o.Now())
	if err != nil {
		return nil, err
	}
	next, err := identity.ParseTrust(req.Trust, info.Root())
	if err != nil {
		return nil, err
	}
	if err := recovery.certify(dir, info, keys); err != nil {
		return nil, err
	}
	if err := o.certifyAgent(dir, info, keys); err != nil {
		return nil, err
	}
	// The state may hold one entry more than its index says.
	after := raftfsm.New(info.Fleet)
	err = quorum.CreateFrom(dir.File("quorum"), info.Node, b.FSM.Applied()+1, b.FSM.WriteState, after,
		&entry.Trust{Stamp: o.Now().UnixNano(), Trust: req.Trust}, o.Now())
	if err != nil {
		return nil, err
	}
	if t := after.Store().Trust(); t == nil || t.Version != next.Version || t.Epoch != next.Epoch {
		return nil, errors.Join(fleet.Errorf(fleet.Corrupt, "the state of the backup does not take trust.json version %d", next.Version),
			os.RemoveAll(dir.File("quorum")))
	}
	for _, step := range []func() error{
		func() error { return dir.SaveTrust(next) },
		func() error { return dir.SavePeers([]Peer{{Node: info.Node, Address: node.Address}}) },
		func() error { return o.File.NoteTrust(next.Version) },
		finish,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return &Recovered{Recoverable: *found, TrustVersion: next.Version}, nil
}

// certifyAgent gives the host a certificate of the new issuing key if the one
// that it has is over. Hosts that have not heard of the new voter believe the old
// one: from its ring they then hear of it.
func (o *RestoreOptions) certifyAgent(dir *Dir, info *Fleet, keys map[string]identity.PrivateKey) error {
	if id, err := dir.LoadIdentity(Agent); err == nil && o.Now().Before(id.TLS().Leaf.NotAfter) {
		return nil
	}
	issuer, err := identity.IssueIssuer(o.Root, o.File.Certificate, info.Node, keys[Issuer].Public(), o.Now())
	if err != nil {
		return err
	}
	agent, err := identity.IssueAgent(keys[Issuer], issuer, info.Node, keys[Agent].Public(), o.Now())
	if err != nil {
		return err
	}
	return dir.SaveChain(Agent, agent, issuer, info.RootCertificate)
}

// restoreTarget is the host that a backup is restored on.
type restoreTarget struct {
	info *Fleet
	held *identity.Trust // the newest that it has

	// open gives the data directory, made if there is none yet; finish comes last.
	open func() (d *Dir, finish func() error, err error)
}

// target finds the host of the data directory, or the one whose keys are in the
// backup. It changes nothing.
func (o *RestoreOptions) target() (*restoreTarget, error) {
	fleetName := o.Backup.State().Fleet().Name
	dir, info, err := OpenDir(o.DataDir)
	if errors.Is(err, ErrNotEnrolled) {
		return o.keptTarget()
	}
	if err != nil {
		return nil, err
	}
	if info.Fleet != o.File.Fleet {
		return nil, fleet.Errorf(fleet.Conflict, "the host of %s is of the fleet %s, the backup of %s", o.DataDir, info.Name, fleetName)
	}
	if entries, err := os.ReadDir(dir.File("quorum")); err == nil && len(entries) > 0 {
		return nil, fleet.Errorf(fleet.Conflict, "this host has a log of the fleet, in %s", dir.File("quorum")).
			WithHint("fleet quorum recover --root-key FILE goes on from it and loses less; if it cannot be read, move it away and restore again")
	}
	held, err := dir.Trust(info.Root())
	if err != nil {
		return nil, err
	}
	return &restoreTarget{info, held, func() (*Dir, func() error, error) { return dir, func() error { return nil }, nil }}, nil
}

func (o *RestoreOptions) keptTarget() (*restoreTarget, error) {
	info, err := KeptHost(o.Backup.Parts)
	if err != nil {
		return nil, err
	}
	if info == nil {
		return nil, fleet.Errorf(fleet.Conflict, "there is no host in %s, and the backup has no host's keys", o.DataDir).
			WithHint("run it on a host that is left of the fleet; a backup that is made with --with-keys is enough for an empty machine")
	}
	if info.Fleet != o.File.Fleet {
		return nil, fleet.Errorf(fleet.Corrupt, "the host in the backup is of another fleet than its state")
	}
	held, err := identity.ParseTrust(o.Backup.Parts[keptPrefix+"trust.json"], info.Root())
	if err != nil {
		return nil, err
	}
	return &restoreTarget{info, held, func() (*Dir, func() error, error) {
		return restoreHost(o.DataDir, info, o.Backup.Parts, o.Now().UnixNano())
	}}, nil
}

// trust is the trust.json that the next one follows: the newest that the backup,
// the host or the root key know of.
func (o *RestoreOptions) trust(held *identity.Trust) *identity.Trust {
	newest := *o.Backup.State().Trust()
	if held.NewerThan(newest.Epoch, newest.Version) {
		newest = *held
	}
	newest.Version = max(newest.Version, o.File.TrustShown)
	return &newest
}

// planRestore decides that one host votes alone, in the next epoch, whether or
// not it voted before.
func planRestore(trust *identity.Trust, self fleet.NodeID, quorumKey, issuerKey fleet.PublicKey, now time.Time) *VoterPlan {
	plan := &VoterPlan{Voters: []fleet.NodeID{self}}
	plan.begin(trust)
	plan.next.Epoch++
	for _, v := range trust.Voters {
		plan.unseat(v.Node, false, now)
	}
	c := &identity.SignedCandidate{}
	c.Node, c.Quorum, c.Issuer = self, quorumKey, issuerKey
	plan.seat(c)
	return plan
}
