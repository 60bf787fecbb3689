package raftfsm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"

	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/wire"
	"fleet/raftfsm/entry"
	"fleet/raftfsm/state"
)

// Restore replaces the state by a snapshot's. It verifies the bytes and, since
// they may come from another voter, what was signed; if anything is wrong the
// state stays what it was. The error is of kind fleet.Corrupt.
func (f *FSM) Restore(from io.ReadCloser) error {
	defer from.Close()
	old := f.Store()
	r := &restorer{store: state.New(), old: old.Snapshot(), objects: map[proofID]objectID{}, names: map[fleet.NodeID]*string{}}
	r.step = &step{Txn: r.store.Write(), fleet: f.fleet}
	defer r.step.Abort()
	if err := r.run(from); err != nil {
		return fleet.Errorf(fleet.Corrupt, "restore snapshot: %w", err)
	}
	r.step.Commit()
	f.store.Store(r.store)
	f.marked.Store(nil)
	old.Abandon()
	f.setApplied(r.applied)
	return nil
}

// restorer builds a state from a snapshot.
type restorer struct {
	store   *state.Store
	old     *state.Store // what the snapshot replaces
	step    *step
	applied uint64

	hasApplied  bool
	hasOperator bool // the first one was read
	genesis     *identity.GenesisPayload
	objects     map[proofID]objectID // what each proof made, here and in old

	names map[fleet.NodeID]*string // what named found; nil while it looks
}

// tables says how the rows of each table come back, in the order in which they
// stand in a snapshot: each check relies on the tables before it.
var tables = []struct {
	name string
	load func(*restorer, []byte) error
}{
	{tableApplied, loader((*restorer).loadApplied)},
	{tableFleet, loader((*restorer).loadFleet)},
	{tableTrust, loader((*restorer).loadTrust)},
	{tableClock, loader((*restorer).loadClock)},
	{tableOperators, loader((*restorer).loadOperator)},
	{tableAppoint, loader((*restorer).loadAppointment)},
	{tableRequests, loader((*restorer).loadRequest)},
	{tableActivations, loader((*restorer).loadActivation)},
	{tableNodes, loader((*restorer).loadNode)},
	{tableRemovals, loader((*restorer).loadRemoval)},
	{tableContents, loader((*restorer).loadContent)},
	{tableCommands, loader((*restorer).loadCommand)},
	{tableShards, loader((*restorer).loadShard)},
	{tableNonces, loader((*restorer).loadNonce)},
	{tableTargets, loader((*restorer).loadTarget)},
	{tableGossipKeys, loader((*restorer).loadGossipKeys)},
	{tableFeatures, loader((*restorer).loadFeatures)},
	{tableMarks, loader((*restorer).loadMark)},
}

// loader decodes a row for a typed function.
func loader[T any](load func(*restorer, *T) error) func(*restorer, []byte) error {
	return func(r *restorer, b []byte) error {
		row := new(T)
		if err := wire.UnmarshalStrict(b, row); err != nil {
			return err
		}
		return load(r, row)
	}
}

func (r *restorer) run(from io.Reader) error {
	in := &frameReader{r: bufio.NewReaderSize(from, 1<<16), sum: sha256.New()}
	head, err := in.read(len(magic) + 1)
	if err != nil {
		return fmt.Errorf("read its header: %w", err)
	}
	if string(head[:len(magic)]) != magic {
		return errors.New("it does not begin as a snapshot does")
	}
	if v := head[len(magic)]; v != snapshotVersion {
		return fmt.Errorf("it has version %d, this release knows version %d", v, snapshotVersion)
	}
	in.sum.Write(head)
	table := 0
	for {
		fr, digest, err := in.next()
		if err != nil {
			return fmt.Errorf("read frame %d: %w", in.frames, err)
		}
		if fr.Table == tableEnd {
			return r.end(in, fr.Row, digest)
		}
		for table < len(tables) && tables[table].name != fr.Table {
			table++
		}
		if table == len(tables) {
			return fmt.Errorf("frame %d: the table %.32q is unknown or out of order", in.frames, fr.Table)
		}
		if err := tables[table].load(r, fr.Row); err != nil {
			return fmt.Errorf("frame %d, a row of %s: %w", in.frames, fr.Table, err)
		}
		in.frames++
	}
}

// end checks the trailer, and what only the whole state can show.
func (r *restorer) end(in *frameReader, row []byte, digest fleet.Digest) error {
	var t trailer
	if err := wire.UnmarshalStrict(row, &t); err != nil {
		return fmt.Errorf("read its trailer: %w", err)
	}
	if t.Frames != in.frames || t.Digest != digest {
		return errors.New("its trailer does not fit what comes before")
	}
	if n, err := io.CopyN(io.Discard, in.r, 1); n != 0 || !errors.Is(err, io.EOF) {
		return errors.New("bytes follow its end")
	}
	return r.checkWhole()
}

func (r *restorer) checkWhole() error {
	if !r.hasApplied {
		return errors.New("it does not say which entries it covers")
	}
	if r.genesis == nil {
		if r.old.Fleet().Genesis {
			return errors.New("it is empty, and this replica's state is not")
		}
		return nil
	}
	s := r.step
	if s.Trust() == nil || s.LastStamp() == 0 || !r.hasOperator {
		return errors.New("trust, time or operator is missing")
	}
	if level, known := s.Features(), r.old.Features(); level < known {
		return fmt.Errorf("it has feature level %d, and level %d was decided", level, known)
	}
	if err := r.checkAppointments(); err != nil {
		return err
	}
	for _, ev := range s.Requests() {
		if ev.Kind != entry.KindCreateActivation {
			continue
		}
		req, err := entry.ParseCreateActivation(ev.Request)
		if err != nil {
			return err
		}
		used := uint32(req.RegistrationLimit)
		if a := s.Activation(fleet.ActivationID(ev.Object)); a != nil {
			used = a.Used
		}
		id := fleet.ActivationID(ev.Object)
		if n := len(s.NodesByActivation(id)) + len(s.RemovalsByActivation(id)); uint64(n) > uint64(used) {
			return fmt.Errorf("%d nodes enrolled with activation %s, which was used %d times", n, ev.Object, used)
		}
	}
	if known := r.old.GossipKeys(); known != nil && s.GossipKeys().Version < known.Version {
		return fmt.Errorf("version %d of the gossip keys would replace version %d", s.GossipKeys().Version, known.Version)
	}
	for _, known := range r.old.Removals() {
		if s.Removal(known.Node.ID) == nil {
			return fmt.Errorf("%s, and it knows nothing of that", state.RemovedText(known))
		}
	}
	if err := r.checkReplacements(); err != nil {
		return err
	}
	for _, c := range s.Commands(0, "") {
		if err := r.checkCounts(c); err != nil {
			return err
		}
		if err := r.checkPace(c); err != nil {
			return err
		}
	}
	return r.checkCancels()
}

func (r *restorer) checkCounts(c *fleet.Command) error {
	counts, silence := make([]uint32, len(c.Counts)), uint32(0)
	for n := uint32(0); uint64(n)*fleet.ShardSize < uint64(len(c.Targets)); n++ {
		for _, row := range r.step.Shard(c.ID, n) {
			if int(row.State) >= len(counts) {
				return fmt.Errorf("command %s does not count the state %s", c.ID, row.State)
			}
			counts[row.State]++
			if silent(&row) {
				silence++
			}
		}
	}
	if !slices.Equal(counts, c.Counts) || silence != c.Silent || (c.Unfinished() > 0) != c.Open() {
		return fmt.Errorf("the counts of command %s are not those of its rows", c.ID)
	}
	return nil
}

func (r *restorer) loadApplied(row *appliedRow) error {
	if r.hasApplied {
		return errTwice
	}
	r.applied, r.hasApplied = row.Index, true
	return nil
}

func (r *restorer) loadFleet(row *bytesRow) error {
	if r.genesis != nil {
		return errTwice
	}
	p, _, err := r.step.readGenesis(row.Bytes)
	if err != nil {
		return err
	}
	r.genesis = p
	for _, ev := range r.old.Requests() {
		if ev.Proof == nil {
			continue
		}
		p, err := identity.ParseProof(ev.Proof)
		if err != nil {
			return err
		}
		r.objects[proofID{p.Key, p.Nonce}] = objectID{ev.Kind, ev.Object}
	}
	return nil
}

func (r *restorer) loadTrust(row *bytesRow) error {
	if r.genesis == nil {
		return errNoGenesis
	}
	if r.step.Trust() != nil {
		return errTwice
	}
	t, err := identity.ParseTrust(row.Bytes, r.step.Fleet().Root)
	if err != nil {
		return err
	}
	if known := r.old.Trust(); known != nil && known.NewerThan(t.Epoch, t.Version) {
		return fmt.Errorf("trust.json of epoch %d, version %d would replace epoch %d, version %d", t.Epoch, t.Version, known.Epoch, known.Version)
	}
	r.step.PutTrust(t)
	return nil
}

func (r *restorer) loadClock(row *clockRow) error {
	if r.genesis == nil {
		return errNoGenesis
	}
	if r.step.LastStamp() != 0 {
		return errTwice
	}
	if err := entry.CheckStamp(row.Stamp); err != nil {
		return err
	}
	r.step.SetStamp(row.Stamp)
	return nil
}

// loadOperator takes the first operator; loadAppointment makes the others.
func (r *restorer) loadOperator(row *fleet.Operator) error {
	if r.genesis == nil {
		return errNoGenesis
	}
	if r.hasOperator {
		return errTwice
	}
	if err := same("operator", string(row.Name), row, &r.genesis.Operator); err != nil {
		return err
	}
	r.step.PutOperator(row)
	r.hasOperator = true
	return nil
}

type (
	proofID struct {
		key   fleet.KeyID
		nonce [16]byte
	}
	objectID struct {
		kind entry.Kind
		id   string
	}
)

// loadRequest verifies what an operator signed, at the time when it was
// applied. One proof makes one object, so an old command cannot come back
// under a new ID.
func (r *restorer) loadRequest(row *state.Request) error {
	if r.genesis == nil {
		return errNoGenesis
	}
	if r.step.Request(row.Kind, row.Object) != nil {
		return errTwice
	}
	if err := entry.CheckStamp(row.Stamp); err != nil {
		return err
	}
	if row.Stamp > r.step.LastStamp() {
		return errors.New("it was applied after the state's last entry")
	}
	switch row.Kind {
	case entry.KindCreateActivation, entry.KindSendCommand, entry.KindRemoveNode, entry.KindRenameNode, entry.KindPutTarget, entry.KindCancelCommand:
		p, op, err := authorize(r.step.View, r.operatorAt(row.Stamp), row.Kind.Operation(), row.Stamp, row.Request, row.Proof)
		if err != nil {
			return err
		}
		if err := checkMayReplace(row, op); err != nil {
			return err
		}
		if err := r.once(proofID{p.Key, p.Nonce}, objectID{row.Kind, row.Object}); err != nil {
			return err
		}
		if err := r.refuseUnseen(row); err != nil {
			return err
		}
	case entry.KindLeave: // loadRemoval verifies it
		if err := r.refuseUnseen(row); err != nil {
			return err
		}
	case entry.KindEnrol: // loadNode verifies it
	default:
		return fmt.Errorf("nothing is kept for entries of %s", row.Kind)
	}
	r.step.PutRequest(row)
	return nil
}

// refuseUnseen refuses what this replica would have seen. Stamps never fall:
// what it has not seen by now was not decided then. Somebody who had rights
// once would else sign for that time.
func (r *restorer) refuseUnseen(row *state.Request) error {
	if known := r.old.Request(row.Kind, row.Object); known == nil && row.Stamp < r.old.LastStamp() {
		return fmt.Errorf("%s %s is of %s, and this replica has not seen it", row.Kind, row.Object, formatTime(row.Stamp))
	}
	return nil
}

// once holds that a proof made one object.
func (r *restorer) once(proof proofID, object objectID) error {
	if made, ok := r.objects[proof]; ok && made != object {
		return fmt.Errorf("what was signed for %s %s is also said to have made %s %s", made.kind, made.id, object.kind, object.id)
	}
	r.objects[proof] = object
	return nil
}

// signedBy is what an operator signed for an object, and who it was.
func (r *restorer) signedBy(kind entry.Kind, object string) (*state.Request, fleet.OperatorName, error) {
	ev := r.step.Request(kind, object)
	if ev == nil {
		return nil, "", fmt.Errorf("nobody signed for %s %s", kind, object)
	}
	p, err := identity.ParseProof(ev.Proof)
	if err != nil {
		return nil, "", err
	}
	return ev, p.Operator, nil
}

func (r *restorer) loadActivation(row *fleet.Activation) error {
	if r.step.Activation(row.ID) != nil {
		return errTwice
	}
	ev, op, err := r.signedBy(entry.KindCreateActivation, string(row.ID))
	if err != nil {
		return err
	}
	req, err := entry.ParseCreateActivation(ev.Request)
	if err != nil {
		return err
	}
	want, err := newActivation(row.ID, op, ev.Stamp, req)
	if err != nil {
		return err
	}
	want.Used = row.Used
	if err := same("activation", string(row.ID), row, want); err != nil {
		return err
	}
	if row.Used > row.Limit {
		return fmt.Errorf("activation %s was used %d times of %d", row.ID, row.Used, row.Limit)
	}
	r.step.PutActivation(row)
	return nil
}

// loadNode verifies that the host was let in. Its labels, and where it
// answers, are the sum of many entries and cannot be verified.
func (r *restorer) loadNode(row *fleet.Node) error {
	if r.genesis == nil {
		return errNoGenesis
	}
	if r.step.Node(row.ID) != nil || r.step.NodeByKey(row.Key) != nil {
		return errTwice
	}
	if err := r.checkNode(row); err != nil {
		return err
	}
	r.step.PutNode(row)
	return nil
}

// checkNode verifies the row of a host that is, or was, of the fleet.
func (r *restorer) checkNode(row *fleet.Node) error {
	want := &fleet.Node{}
	var err error
	if row.Activation == "" {
		*want = r.genesis.Node
	} else if want, err = r.enrolled(row.ID); err != nil {
		return err
	}
	if want.Name, err = r.named(want); err != nil {
		return err
	}
	want.Address, want.AddressEpoch, want.Labels, want.Index = row.Address, row.AddressEpoch, row.Labels, row.Index
	if err := same("node", string(row.ID), row, want); err != nil {
		return err
	}
	if err := identity.CheckAddress(row.Address); err != nil {
		return err
	}
	for k, v := range row.Labels {
		if err := fleet.CheckLabel(k, v); err != nil {
			return err
		}
	}
	return nil
}

// loadRemoval verifies that an operator asked for the removal, or the host
// itself. A host is let in or gone, not both.
func (r *restorer) loadRemoval(row *fleet.Removal) error {
	if r.genesis == nil {
		return errNoGenesis
	}
	id := row.Node.ID
	if r.step.Node(id) != nil || r.step.Removal(id) != nil {
		return errTwice
	}
	if err := r.checkNode(&row.Node); err != nil {
		return err
	}
	if votes(r.step.Trust(), id) {
		return fmt.Errorf("node %s is removed, and trust.json says that it votes", id)
	}
	check := r.checkRemoved
	switch {
	case row.ReplacedBy != "":
		check = r.checkReplaced
	case row.Operator == "":
		check = r.checkLeave
	}
	if err := check(row); err != nil {
		return err
	}
	r.step.PutRemoval(row)
	return nil
}

// checkRemoved verifies that an operator asked for a removal.
func (r *restorer) checkRemoved(row *fleet.Removal) error {
	id := row.Node.ID
	ev, op, err := r.signedBy(entry.KindRemoveNode, string(id))
	if err != nil {
		return err
	}
	req, err := entry.ParseRemoveNode(ev.Request)
	if err != nil {
		return err
	}
	if req.InstanceId != string(id) || op != row.Operator || ev.Stamp != row.At {
		return fmt.Errorf("the removal of node %s is not what was signed for it", id)
	}
	return nil
}

// checkLeave verifies that a host said itself that it goes.
func (r *restorer) checkLeave(row *fleet.Removal) error {
	id := row.Node.ID
	ev := r.step.Request(entry.KindLeave, string(id))
	if ev == nil {
		return fmt.Errorf("node %s never said that it leaves", id)
	}
	l, err := identity.ParseLeave(ev.Request)
	if err != nil {
		return err
	}
	if err := l.Verify(row.Node.Key); err != nil {
		return err
	}
	if err := checkFarewellAge(l, ev.Stamp); err != nil {
		return err
	}
	if l.Fleet != r.step.fleet || l.Node != id || ev.Stamp != row.At {
		return fmt.Errorf("the removal of node %s is not what was signed for it", id)
	}
	return nil
}

// enrolled is the row of a host as it was when it enrolled.
func (r *restorer) enrolled(id fleet.NodeID) (*fleet.Node, error) {
	ev := r.step.Request(entry.KindEnrol, string(id))
	if ev == nil {
		return nil, fmt.Errorf("node %s never asked to enrol", id)
	}
	p, req, err := identity.ParseJoinRequest(ev.Request)
	if err != nil {
		return nil, err
	}
	activation, _, err := r.signedBy(entry.KindCreateActivation, string(p.Activation))
	if err != nil {
		return nil, err
	}
	areq, err := entry.ParseCreateActivation(activation.Request)
	if err != nil {
		return nil, err
	}
	if p.Fleet != r.step.fleet || fleet.NodeIDOf(p.Key) != id {
		return nil, fmt.Errorf("the join request of node %s is for another node or fleet", id)
	}
	if err := req.Verify(areq.Key()); err != nil {
		return nil, err
	}
	expires, err := areq.Expires(activation.Stamp)
	if err != nil {
		return nil, err
	}
	if ev.Stamp < activation.Stamp || ev.Stamp >= expires {
		return nil, fmt.Errorf("node %s enrolled when activation %s was not valid", id, p.Activation)
	}
	n := newNode(&p, areq.DefaultInstanceName, ev.Stamp)
	n.Replaces = fleet.NodeID(areq.Replaces)
	return n, nil
}

func (r *restorer) loadContent(row *bytesRow) error {
	if r.step.Content(fleet.Sum(row.Bytes)) != nil {
		return errTwice
	}
	r.step.PutContent(row.Bytes)
	return nil
}

// loadCommand makes the row again from what was signed. Which nodes the
// selectors selected then cannot be verified; nodes that were named can.
func (r *restorer) loadCommand(row *fleet.Command) error {
	if r.step.Command(row.ID) != nil {
		return errTwice
	}
	ev, op, err := r.signedBy(entry.KindSendCommand, string(row.ID))
	if err != nil {
		return err
	}
	req, err := entry.ParseSendCommand(ev.Request)
	if err != nil {
		return err
	}
	e := &entry.SendCommand{
		Authority: entry.Authority{Stamp: ev.Stamp, ID: string(row.ID), Request: ev.Request, Proof: ev.Proof},
		Document:  r.step.Content(row.Document), Version: row.DocumentVersion, ExecutionSeconds: row.ExecutionSeconds,
	}
	if err := e.Check(); err != nil {
		return err
	}
	want, err := newCommand(e, req, op, ev.Stamp, row.Targets)
	if err != nil {
		return err
	}
	want.Mint, want.Counts, want.Silent, want.Ended, want.Index = row.Mint, row.Counts, row.Silent, row.Ended, row.Index
	if err := same("command", string(row.ID), row, want); err != nil {
		return err
	}
	if err := checkTargets(row.Targets, req.InstanceIds); err != nil {
		return fmt.Errorf("command %s: %w", row.ID, err)
	}
	if err := checkSelected(row.Targets, req.Targets); err != nil {
		return fmt.Errorf("command %s: %w", row.ID, err)
	}
	m := row.Mint
	if m.N == 0 || m.NotBefore < row.Created || m.NotBefore > row.Expires+int64(entry.Skew) {
		return fmt.Errorf("command %s has no valid mint", row.ID)
	}
	if len(row.Counts) < countedStates {
		return fmt.Errorf("command %s has no valid counts", row.ID)
	}
	r.step.PutCommand(row)
	return nil
}

// checkTargets accepts targets that are in order, and those that were named if
// any were.
func checkTargets(targets []fleet.NodeID, named []string) error {
	for i, id := range targets {
		if _, err := fleet.ParseNodeID(string(id)); err != nil {
			return err
		}
		if i > 0 && targets[i-1] >= id {
			return errors.New("its targets are not in order")
		}
		if len(named) > 0 && !slices.Contains(named, string(id)) {
			return fmt.Errorf("nobody named its target %s", id)
		}
	}
	if len(named) > 0 && len(named) != len(targets) {
		return errors.New("its targets are not those that were named")
	}
	return nil
}

// checkSelected accepts targets that selectors can have selected: those that
// were named by a selector, if one named any; all of them, if nothing else
// selected.
func checkSelected(targets []fleet.NodeID, selectors []fleet.Target) error {
	for _, s := range selectors {
		if s.Key != "InstanceIds" || slices.Contains(s.Values, "*") {
			continue
		}
		named := make(map[string]bool, len(s.Values))
		for _, id := range s.Values {
			named[id] = true
		}
		for _, id := range targets {
			if !named[string(id)] {
				return fmt.Errorf("nobody named its target %s", id)
			}
		}
		if len(selectors) == 1 && len(named) != len(targets) {
			return errors.New("its targets are not those that were named")
		}
	}
	return nil
}

func (r *restorer) loadShard(row *state.Shard) error {
	c := r.step.Command(row.Command)
	if c == nil {
		return fmt.Errorf("there is no command %s", row.Command)
	}
	begin := uint64(row.N) * fleet.ShardSize
	if begin >= uint64(len(c.Targets)) || uint64(len(row.Rows)) != min(uint64(len(c.Targets))-begin, fleet.ShardSize) {
		return fmt.Errorf("shard %d of command %s does not have the rows of its targets", row.N, c.ID)
	}
	for i := range row.Rows {
		inv := &row.Rows[i]
		if uint64(inv.Index) != begin+uint64(i) || !inv.State.Valid() || inv.State.Final() != (inv.Decided > 0) {
			return fmt.Errorf("row %d of command %s is not a row", inv.Index, c.ID)
		}
	}
	r.step.PutShard(row)
	return nil
}

func (r *restorer) loadNonce(row *state.Nonce) error {
	if r.step.Nonce(row.Key, row.Nonce) != nil {
		return errTwice
	}
	r.step.PutNonce(row)
	return nil
}

// loadTarget makes the row again from what was signed. That it was not removed
// since cannot be verified; that it was replaced, by who knows the newer one.
func (r *restorer) loadTarget(row *fleet.SavedTarget) error {
	if r.step.SavedTarget(row.Name) != nil {
		return errTwice
	}
	ev, op, err := r.signedBy(entry.KindPutTarget, string(row.Name))
	if err != nil {
		return err
	}
	req, err := entry.ParsePutTarget(ev.Request)
	if err != nil {
		return err
	}
	if err := same("target", string(row.Name), row, newTarget(req, op, ev.Stamp)); err != nil {
		return err
	}
	if known := r.old.SavedTarget(row.Name); known != nil && row.Modified < known.Modified {
		return fmt.Errorf("target %s would become what it was before", row.Name)
	}
	r.step.PutSavedTarget(row)
	return nil
}

var (
	errTwice     = errors.New("it stands there twice")
	errNoGenesis = errors.New("it comes before the genesis")
)

// same compares a row with what was signed for it.
func same(what, id string, got, want any) error {
	if !bytes.Equal(wire.MustMarshal(got), wire.MustMarshal(want)) {
		return fmt.Errorf("%s %s is not what was signed for it", what, id)
	}
	return nil
}
