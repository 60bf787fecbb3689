package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/rpc"
	"fleet/node/runcmd"
	"fleet/node/service"
	"fleet/node/upgrade"
	"fleet/node/wire"
)

// This file is how a host gets another program: the step of a command fetches
// it, from hosts that run it and from voters, and has it exchanged; the new
// program confirms itself; and every host gives its own to those that ask.

// program is the file of the running program.
type program struct {
	path    string
	digest  func() (fleet.Digest, error)
	serving chan struct{} // holds a token for each answer that is being sent
	restart chan struct{} // closed when the agent is to end, for its new program
	ask     *sync.Once    // closes restart
	back    string        // why the last upgrade went back; "" if it did not
	quorum  bool          // while it has to be confirmed: the one before had a part in the quorum
}

// Answers that a host sends at once. A voter has what nobody else has yet.
const (
	hostServes  = 4
	voterServes = 12
)

// ownProgram is the digest of the file that this process runs. It is read once:
// a process may be many nodes.
var ownProgram = sync.OnceValues(func() (fleet.Digest, error) {
	path, err := ownProgramPath()
	if err != nil {
		return fleet.Digest{}, err
	}
	return upgrade.DigestOf(path)
})

// ownProgramPath leads to the program that runs, also when another lies in its
// place by now, where the system can say that.
func ownProgramPath() (string, error) {
	if runtime.GOOS == "linux" {
		return "/proc/self/exe", nil
	}
	return os.Executable()
}

func digestFor(cfg Config) func() (fleet.Digest, error) {
	if cfg.Program == "" {
		return ownProgram
	}
	return sync.OnceValues(func() (fleet.Digest, error) { return upgrade.DigestOf(cfg.Program) })
}

func newProgram(cfg Config) program {
	p := program{
		path: cfg.Program, digest: digestFor(cfg), serving: make(chan struct{}, voterServes),
		restart: make(chan struct{}), ask: new(sync.Once),
	}
	if r, err := upgrade.Load(cfg.DataDir); err == nil && r != nil {
		p.quorum = r.Stage == upgrade.Pending && r.Quorum
		if r.Stage == upgrade.Back {
			p.back = r.To.Version + ": " + r.Reason
		}
	}
	return p
}

// programDigest is what this host says that it runs; zero when it cannot tell.
func (n *Node) programDigest() fleet.Digest {
	d, err := n.program.digest()
	if err != nil {
		n.log.Debug("the program that runs cannot be read", "err", err)
		return fleet.Digest{}
	}
	return d
}

// Restart is closed when this host has another program in its place, and the
// agent is to end so that it is started.
func (n *Node) Restart() <-chan struct{} { return n.program.restart }

// beginUpgraded sees whether this is the first start of a new program. It comes
// before all else, so that a program that cannot go on is counted.
func beginUpgraded(cfg Config) (prove bool, err error) {
	if !upgrade.Exists(cfg.DataDir) {
		return false, nil
	}
	self, err := digestFor(cfg)()
	if err != nil {
		return false, fmt.Errorf("read the program that runs: %w", err)
	}
	prove, err = upgrade.Begin(cfg.DataDir, self, cfg.Now())
	if kind := fleet.KindOf(err); kind == fleet.Corrupt || kind == fleet.TooLarge {
		// A host that runs is worth more than the account of how it came to this.
		cfg.Logger.Error("the record of the last upgrade is not believed", "err", err)
		return false, nil
	}
	return prove, err
}

// Times of the proof.
const (
	proofPoll = 500 * time.Millisecond
	proofRead = 10 * time.Second
)

// runUpgraded confirms a new program when the quorum has answered this host,
// k voters agree on the time, and, on a voter, its log has reached the quorum's.
func (n *Node) runUpgraded(ctx context.Context) error {
	if !n.proving.Load() {
		return nil
	}
	select {
	case <-n.ready:
	case <-ctx.Done():
		return nil
	}
	last := ""
	for {
		err := n.well(ctx)
		if err == nil {
			break
		}
		if said := err.Error(); said != last {
			n.log.Info("the new program is not confirmed yet", "err", err)
			last = said
		}
		if !wait(ctx, proofPoll) {
			return nil
		}
	}
	self, err := n.program.digest()
	if err != nil {
		return err
	}
	confirmed, err := upgrade.Confirm(n.dir.Path(), self, n.cfg.Now())
	if err != nil {
		return fmt.Errorf("confirm the new program: %w", err)
	}
	if !confirmed {
		n.log.Error("the new program is well and was given up before: the old one is in its place")
		return nil
	}
	n.log.Info("the new program is confirmed", "version", n.cfg.Version)
	n.proving.Store(false)
	return nil
}

func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// well is an error that says what is still missing.
func (n *Node) well(ctx context.Context) error {
	if _, ok := n.clock.FleetTime(); !ok {
		n.beats.Kick()
		return errors.New("not enough voters have told the time")
	}
	m := n.member.Load()
	switch {
	case m == nil && n.program.quorum:
		// A host goes on without a vote when its store is refused: a program
		// that cannot read what the one before wrote must not get the next voter.
		if fenced := n.fenced.Load(); fenced != nil {
			return errors.New(fenced.Message)
		}
		return errors.New("its part of the quorum has not begun")
	case m == nil:
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, proofRead)
	defer cancel()
	_, err := m.control.Read(ctx, false)
	return err
}

// plugins are those that every release has, and the one that only a whole host
// can be.
func (n *Node) plugins() runcmd.Plugins {
	p := runcmd.StandardPlugins()
	p[upgrade.Action] = upgradePlugin{n}
	return p
}

type upgradePlugin struct{ n *Node }

// Run exchanges the program of this host.
func (u upgradePlugin) Run(ctx context.Context, t *runcmd.Task) runcmd.Outcome {
	n := u.n
	fail := func(err error) runcmd.Outcome {
		reason := err.Error()
		if hint := fleet.HintOf(err); hint != "" {
			reason += " (" + hint + ")"
		}
		return runcmd.Outcome{State: fleet.Failed, Code: 1, Reason: reason}
	}
	if !t.Account.Own {
		return fail(fleet.Errorf(fleet.Invalid, "the agent replaces its own program: it cannot do that as another user"))
	}
	o, err := upgrade.ParseInputs(t.Step.Inputs)
	if err != nil {
		return fail(err)
	}
	self, err := n.program.digest()
	if err != nil {
		return fail(fmt.Errorf("read the program that runs: %w", err))
	}
	keeper := n.cfg.Keeper
	if keeper == nil {
		keeper = func() (service.Keeper, error) {
			return nil, fleet.Errorf(fleet.Unavailable, "this agent is no service: nobody would start its new program")
		}
	}
	step := upgrade.Step{
		Command: t.Command, Attempt: t.Attempt, Fleet: n.info.Fleet, Self: self, Version: n.cfg.Version,
		Platform: upgrade.ThisPlatform(), PID: os.Getpid(), DataDir: n.dir.Path(), Format: enrol.Format, Signers: n.cfg.Signers, Quorum: n.member.Load() != nil,
		Keeper: keeper, Fetch: n.fetchProgram, Alone: t.Alone,
		Restart: func() { n.program.ask.Do(func() { close(n.program.restart) }) },
		Now:     n.cfg.Now, Log: n.log.With("component", "upgrade"), Out: t.Stdout,
	}
	switch err := step.Run(ctx, o); {
	case err == nil:
		return runcmd.Outcome{State: fleet.Success}
	case ctx.Err() != nil:
		return runcmd.StoppedOutcome(ctx, -1)
	default:
		return fail(err)
	}
}

// Fetching.
const (
	fetchRounds = 40
	fetchTime   = 15 * time.Minute
	// A host that was asked because it may have the program, and is slower than
	// this, costs no more time than that of a floor of its speed.
	hostFloor = 256 << 10 // bytes a second
	hostGrace = 20 * time.Second
)

// fetchProgram asks hosts that may run the program already, then the voters,
// until one has sent it whole. What fails is asked again after a while: in a
// large fleet all are busy at first, and each host that has it sends it on.
func (n *Node) fetchProgram(ctx context.Context, o upgrade.Order, want upgrade.Program, take func(io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	last := map[fleet.NodeID]error{}
	for round := range fetchRounds {
		for _, target := range n.programSources(o) {
			err := n.fetchFrom(ctx, target, want, take)
			if err == nil {
				n.log.Info("program fetched", "peer", target.node, "sha256", want.Digest)
				return nil
			}
			if upgrade.OfThisHost(err) {
				return err
			}
			last[target.node] = err
			n.log.Debug("program not fetched", "peer", target.node, "err", err)
		}
		// Between half of the pause and all of it, so that hosts do not come
		// back together.
		pause := min(time.Duration(round+1)*time.Second, 20*time.Second)
		if !wait(ctx, pause/2+rand.N(pause/2)) {
			break
		}
	}
	var failures []error
	for _, v := range n.voters() {
		if err := last[v]; err != nil {
			failures = append(failures, err)
		}
	}
	return fleet.Errorf(fleet.Unavailable, "nobody sent the program: %w", errors.Join(failures...))
}

// source is somebody who may have a program.
type source struct {
	node  fleet.NodeID
	voter bool
}

// programSources are whom to ask in one round: two of the hosts that the order
// names, one at random, and the voters.
func (n *Node) programSources(o upgrade.Order) []source {
	self := func(id fleet.NodeID) bool { return id == n.info.Node }
	named := slices.DeleteFunc(slices.Clone(o.Sources), self)
	rand.Shuffle(len(named), func(i, j int) { named[i], named[j] = named[j], named[i] })
	named = named[:min(len(named), 2)]
	voters := n.voters()
	if rows, _ := n.view.list(); len(rows) > 0 {
		if id := rows[rand.N(len(rows))].ID; !self(id) && !slices.Contains(named, id) && !slices.Contains(voters, id) {
			named = append(named, id)
		}
	}
	voters = slices.DeleteFunc(voters, self)
	rand.Shuffle(len(voters), func(i, j int) { voters[i], voters[j] = voters[j], voters[i] })
	var all []source
	for _, id := range named {
		if !slices.Contains(voters, id) {
			all = append(all, source{id, false})
		}
	}
	if n.member.Load() != nil { // what was sent to this host for others
		all = append(all, source{n.info.Node, true})
	}
	for _, id := range voters {
		all = append(all, source{id, true})
	}
	return all
}

func (n *Node) fetchFrom(ctx context.Context, from source, want upgrade.Program, take func(io.Reader) error) (err error) {
	if from.node == n.info.Node {
		r, err := n.blobs.Get(want.Digest)
		if err != nil {
			return err
		}
		return errors.Join(take(r), r.Close())
	}
	role := fleet.RoleQuorum
	if !from.voter {
		role = fleet.RoleAgent
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, hostGrace+time.Duration(want.Size/hostFloor)*time.Second)
		defer cancel()
	}
	r, err := rpc.CallStream(ctx, n.rpc, rpc.Target{Node: from.node, Role: role}, rpc.MethodFetchProgram,
		rpc.BlobHead{Digest: want.Digest, Size: want.Size}, nil)
	if err != nil {
		return err
	}
	return errors.Join(take(r), r.Close())
}

// sendProgram gives a host of the fleet the program that runs here, and on a
// host of the quorum also one that an open command has it fetch. That is no
// secret: who is of the fleet has one. What it may cost is bounded: one answer
// to a host at a time (the table), few in all.
func (n *Node) sendProgram(_ context.Context, peer identity.Peer, head []byte, _ io.Reader, w io.Writer) error {
	h, err := rpc.ParseBlobHead(head)
	if err != nil {
		return err
	}
	most := hostServes
	m := n.member.Load()
	if m != nil {
		if _, err := n.memberFor(peer); err != nil {
			return err
		}
		most = voterServes
	}
	open, err := n.openProgram(m, peer.Node, h.Digest)
	if err != nil {
		return err
	}
	defer open.Close() //nolint:errcheck // read only
	if len(n.program.serving) >= most {
		return fleet.Errorf(fleet.Throttled, "%d hosts are being sent a program by %s", most, n.info.Node)
	}
	select {
	case n.program.serving <- struct{}{}:
	default:
		return fleet.Errorf(fleet.Throttled, "%d hosts are being sent a program by %s", voterServes, n.info.Node)
	}
	defer func() { <-n.program.serving }()
	_, err = io.Copy(w, io.LimitReader(open, upgrade.MaxSize))
	return err
}

func (n *Node) openProgram(m *member, peer fleet.NodeID, d fleet.Digest) (io.ReadCloser, error) {
	if d == n.programDigest() {
		path := n.program.path
		if path == "" {
			var err error
			if path, err = ownProgramPath(); err != nil {
				return nil, err
			}
		}
		return os.Open(path)
	}
	if m == nil || !m.ordered(peer, d) {
		return nil, fleet.Errorf(fleet.NotFound, "%s has no program %s for %s", n.info.Node, d, peer)
	}
	r, err := n.blobs.Get(d)
	if err != nil {
		return nil, fleet.Errorf(fleet.NotFound, "the program %s is not on %s", d, n.info.Node)
	}
	return r, nil
}

// ordered reports whether an open command has a host fetch a program.
func (m *member) ordered(host fleet.NodeID, d fleet.Digest) bool {
	for _, c := range m.fsm.Store().OpenCommands() {
		if c.DocumentName != upgrade.Document || !slices.Contains(c.Targets, host) {
			continue
		}
		var params wire.StringMap
		if err := wire.Unmarshal(c.Parameters, &params); err != nil {
			continue
		}
		if _, named := upgrade.Names(params, d); named {
			return true
		}
	}
	return false
}

// WarnWentBack is the code of the warning of a host whose new program did not
// come up.
const WarnWentBack = "UpgradeWentBack"

// upgradeWarning says that the last upgrade of this host went back. It was read
// when the host started: whatever becomes of an upgrade is decided then.
func (n *Node) upgradeWarning() *fleet.Warning {
	if n.program.back == "" {
		return nil
	}
	return &fleet.Warning{
		Code: WarnWentBack, Message: "the last upgrade of this host went back: " + n.program.back,
		Remedy: "fleet upgrade with a program that comes up here",
	}
}
