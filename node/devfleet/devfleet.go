// Package devfleet runs a whole fleet in one process, on loopback: real nodes,
// real certificates, real Raft on disk, the same sequence of init, activation,
// join and quorum add that a person types. "fleet dev" is this package; tests
// and benchmarks use it too, so that what they measure is what runs.
package devfleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"fleet/node"
	"fleet/node/api/client"
	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/process"
	"fleet/node/ssm"
	"fleet/node/transport"
)

// Options says what fleet to run.
type Options struct {
	Dir     string // everything is written below it; it must be empty or absent
	Nodes   int    // 1 to MaxNodes
	Quorum  int    // voters: 1, 3 or 5, at most Nodes
	Name    string // of the fleet; "dev" when empty
	Version string
	Logger  *slog.Logger
	Starter process.Starter // nil starts real children
	Address netip.Addr      // where the nodes listen; 127.0.0.1 when it is not set
	Timing  *node.Timing    // nil is fast, for one machine

	// Progress is told what happens, a line at a time; nil for silence.
	Progress func(line string)
}

// Limits of a fleet in one process.
const (
	MaxNodes = 1000

	joinsAtOnce  = 8
	joinTries    = 5
	readyTimeout = 2 * time.Minute
	heartbeat    = 2 * time.Second
)

// Fleet is a running fleet.
type Fleet struct {
	opts Options
	cred identity.Credential
	root string // root-key file

	cgroups *process.Cgroups // of all nodes: each command has a group of its own

	mu    sync.Mutex // guards nodes
	nodes []*node.Node
}

// Start starts a fleet and returns when it is ready: every host has heard from
// the quorum and the wanted number votes.
func Start(ctx context.Context, o Options) (_ *Fleet, err error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create %s: %w", o.Dir, err)
	}
	f := &Fleet{opts: o, root: filepath.Join(o.Dir, "root.key"), cgroups: process.OpenCgroups()}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Stop(context.WithoutCancel(ctx)))
		}
	}()
	if err := f.found(ctx); err != nil {
		return nil, fmt.Errorf("first node: %w", err)
	}
	c, err := client.Open(ctx, f.cred, client.Options{})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if o.Nodes > 1 {
		if err := f.joinAll(ctx, c); err != nil {
			return nil, err
		}
	}
	if o.Quorum > 1 {
		if err := f.addVoters(ctx, c); err != nil {
			return nil, fmt.Errorf("add voters: %w", err)
		}
	}
	return f, nil
}

// maxTasks bounds the processes of each command of a node.
const maxTasks = 4096

func (o *Options) check() error {
	if o.Name == "" {
		o.Name = "dev"
	}
	if !o.Address.IsValid() {
		o.Address = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if o.Timing == nil {
		o.Timing = &node.Timing{Heartbeat: heartbeat, Fast: true}
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.Nodes < 1 || o.Nodes > MaxNodes {
		return fleet.Errorf(fleet.Invalid, "%d nodes: from 1 to %d run in one process", o.Nodes, MaxNodes)
	}
	if o.Quorum != 1 && o.Quorum != 3 && o.Quorum != 5 || o.Quorum > o.Nodes {
		return fleet.Errorf(fleet.Invalid, "%d voters of %d nodes: a quorum has 1, 3 or 5 voters, and not more than there are nodes", o.Quorum, o.Nodes)
	}
	entries, err := os.ReadDir(o.Dir)
	if err == nil && len(entries) > 0 {
		return fleet.Errorf(fleet.Conflict, "%s is not empty", o.Dir).WithHint("name a new directory: --dir DIR")
	}
	return nil
}

func nodeName(i int) string { return fmt.Sprintf("node%02d", i) }

func (f *Fleet) dataDir(i int) string { return filepath.Join(f.opts.Dir, nodeName(i)) }

// found makes and starts node 1.
func (f *Fleet) found(ctx context.Context) error {
	port, err := f.takePort()
	if err != nil {
		return err
	}
	result, err := enrol.Init(ctx, enrol.InitOptions{
		DataDir: f.dataDir(1), Name: f.opts.Name, RootKeyPath: f.root, NodeName: nodeName(1), Advertise: port.addr(),
		Operator: "dev", CredentialPath: filepath.Join(f.opts.Dir, "credential"), Now: time.Now,
	})
	if err != nil {
		return errors.Join(err, port.close())
	}
	f.cred = result.Credential
	n, err := f.start(ctx, 1, port)
	if err != nil {
		return err
	}
	if err := waitReady(ctx, n); err != nil {
		return err
	}
	f.opts.Progress("founded by " + n.Name())
	return nil
}

// start starts an enrolled node.
func (f *Fleet) start(ctx context.Context, i int, port *port) (*node.Node, error) {
	n, err := node.New(node.Config{
		DataDir: f.dataDir(i), Advertise: port.addr(), Listener: port.tcp, Packet: port.udp,
		Socket: filepath.Join(f.dataDir(i), "fleet.sock"), Version: f.opts.Version, Starter: f.opts.Starter,
		Logger: f.opts.Logger.With("host", nodeName(i)), Timing: *f.opts.Timing,
		Cgroups: f.cgroups, Limits: process.Limits{Tasks: maxTasks},
	})
	if err != nil {
		return nil, errors.Join(err, port.close())
	}
	f.mu.Lock()
	f.nodes = append(f.nodes, n)
	f.mu.Unlock()
	return n, n.Start(ctx)
}

func waitReady(ctx context.Context, n *node.Node) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	select {
	case <-n.Ready():
		return nil
	case <-n.Done():
		return fmt.Errorf("%s stopped: %w", n.Name(), n.Err())
	case <-ctx.Done():
		return fmt.Errorf("%s has not heard from the quorum: %w", n.Name(), context.Cause(ctx))
	}
}

// joinAll enrols and starts nodes 2 to N, a few at a time.
func (f *Fleet) joinAll(ctx context.Context, c *client.Client) error {
	token, err := f.token(ctx, c, f.opts.Nodes-1)
	if err != nil {
		return fmt.Errorf("activation: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	slots := make(chan struct{}, joinsAtOnce)
	failures := make([]error, f.opts.Nodes+1)
	for i := 2; i <= f.opts.Nodes; i++ {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if failures[i] = f.join(ctx, i, token); failures[i] != nil {
				failures[i] = fmt.Errorf("%s: %w", nodeName(i), failures[i])
				cancel()
			}
		})
	}
	wg.Wait()
	if err := errors.Join(failures...); err != nil {
		return err
	}
	f.opts.Progress(fmt.Sprintf("%d nodes joined", f.opts.Nodes-1))
	return nil
}

// token makes an activation for so many hosts, a thousand at most.
func (f *Fleet) token(ctx context.Context, c *client.Client, limit int) (identity.JoinToken, error) {
	code, err := identity.NewCode()
	if err != nil {
		return identity.JoinToken{}, err
	}
	file, err := identity.ReadRootKeyFile(f.root)
	if err != nil {
		return identity.JoinToken{}, err
	}
	root, err := identity.VerifyRoot(file.Certificate, file.Fleet)
	if err != nil {
		return identity.JoinToken{}, err
	}
	key := code.Key().Public()
	var result ssm.CreateActivationResult
	err = c.Call(ctx, "CreateActivation", ssm.CreateActivationRequest{
		RegistrationLimit: limit, PublicKey: key[:], Tags: []ssm.Tag{{Key: "env", Value: "dev"}},
	}, &result)
	if err != nil {
		return identity.JoinToken{}, err
	}
	id, err := fleet.ParseActivationID(result.ActivationId)
	return identity.JoinToken{Root: fleet.Sum(root[:]), Activation: id, Code: code, Addresses: f.cred.Addresses}, err
}

func (f *Fleet) join(ctx context.Context, i int, token identity.JoinToken) error {
	port, err := f.takePort()
	if err != nil {
		return err
	}
	for try := 1; ; try++ {
		_, err = enrol.Join(ctx, enrol.JoinOptions{
			DataDir: f.dataDir(i), Token: token, NodeName: nodeName(i), Advertise: port.addr(), Now: time.Now,
		})
		// Hundreds of nodes on one machine keep each other waiting; the same key
		// joins as often as it must.
		if kind := fleet.KindOf(err); err == nil || kind != fleet.Unavailable && kind != fleet.NoQuorum || try == joinTries {
			break
		}
	}
	if err != nil {
		return errors.Join(err, port.close())
	}
	n, err := f.start(ctx, i, port)
	if err != nil {
		return err
	}
	return waitReady(ctx, n)
}

// addVoters makes the nodes after the first voters, as "fleet quorum add" does.
func (f *Fleet) addVoters(ctx context.Context, c *client.Client) error {
	file, root, err := identity.OpenRootKeyFile(f.root, nil)
	if err != nil {
		return err
	}
	var trusted fleet.GetTrustResult
	if err := c.Call(ctx, "GetTrust", fleet.GetTrustRequest{}, &trusted); err != nil {
		return err
	}
	trust, err := identity.ParseTrust(trusted.Trust, root.Public())
	if err != nil {
		return err
	}
	keys := map[fleet.NodeID]fleet.PublicKey{}
	var candidates [][]byte
	for i := 2; i <= f.opts.Quorum; i++ {
		var described fleet.DescribeNodesResult
		if err := c.Call(ctx, "DescribeNodes", fleet.DescribeNodesRequest{Nodes: []string{nodeName(i)}}, &described); err != nil {
			return err
		}
		n := described.Nodes[0]
		copyKey := fleet.PublicKey{}
		copy(copyKey[:], n.PublicKey)
		keys[n.InstanceId] = copyKey
		var cand fleet.GetCandidateResult
		if err := c.Call(ctx, "GetCandidate", fleet.GetCandidateRequest{InstanceId: n.InstanceId}, &cand); err != nil {
			return err
		}
		candidates = append(candidates, cand.Candidate)
	}
	plan, err := enrol.PlanVoters(trust, candidates, func(id fleet.NodeID) (fleet.PublicKey, error) { return keys[id], nil })
	if err != nil {
		return err
	}
	req, err := plan.Sign(root, file, time.Now())
	if err != nil {
		return err
	}
	var result fleet.ChangeQuorumResult
	if err := c.Call(ctx, "ChangeQuorum", req, &result); err != nil {
		return err
	}
	f.opts.Progress(fmt.Sprintf("%d voters", len(result.Voters)))
	f.cred.Addresses = nil
	for _, n := range f.Nodes()[:] {
		if i := index(n.Name()); i <= f.opts.Quorum {
			f.cred.Addresses = append(f.cred.Addresses, n.Address())
		}
	}
	return nil
}

func index(name string) int {
	i, err := strconv.Atoi(strings.TrimPrefix(name, "node"))
	if err != nil {
		return 0
	}
	return i
}

// Credential is the operator's, for clients.
func (f *Fleet) Credential() identity.Credential { return f.cred }

// RootKeyFile is where the root key lies.
func (f *Fleet) RootKeyFile() string { return f.root }

// Nodes are the running nodes, by name: those that vote come first.
func (f *Fleet) Nodes() []*node.Node {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.SortedFunc(slices.Values(f.nodes), func(a, b *node.Node) int {
		return cmp.Compare(index(a.Name()), index(b.Name()))
	})
}

// Leader is the node that leads; nil while there is none.
func (f *Fleet) Leader() *node.Node {
	for _, n := range f.Nodes() {
		if n.Leads() {
			return n
		}
	}
	return nil
}

// WriteEnv writes DIR/env, shell exports that lead the command line to this
// fleet, and answers its path. The file appears complete or not at all.
func (f *Fleet) WriteEnv() (string, error) {
	path := filepath.Join(f.opts.Dir, "env")
	cred := filepath.Join(f.opts.Dir, "operator.credential")
	if err := identity.SaveCredential(cred, f.cred); err != nil {
		return "", err
	}
	text := fmt.Sprintf("export FLEET_ADDRESS=%s\nexport FLEET_CREDENTIAL=%s\nexport FLEET_SOCKET=%s\n",
		quote(strings.Join(f.cred.Addresses, ",")), quote(cred), quote(filepath.Join(f.dataDir(1), "fleet.sock")))
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return "", err
	}
	return path, os.Rename(path+".new", path)
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Stop stops every node, the followers first.
func (f *Fleet) Stop(ctx context.Context) error {
	nodes := f.Nodes()
	failures := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { failures[i] = n.Stop(ctx) })
	}
	wg.Wait()
	return errors.Join(failures...)
}

// port is a port of one address, taken for TCP and UDP.
type port struct {
	tcp net.Listener
	udp net.PacketConn
}

func (f *Fleet) takePort() (*port, error) {
	tcp, udp, err := transport.Listen(net.JoinHostPort(f.opts.Address.String(), "0"))
	return &port{tcp, udp}, err
}

func (p *port) addr() string { return p.tcp.Addr().String() }

func (p *port) close() error { return errors.Join(p.tcp.Close(), p.udp.Close()) }
