package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"fleet/node/document"
	"fleet/node/fleet"
	"fleet/node/service"
	"fleet/node/ssm"
	"fleet/node/upgrade"
)

// keeper is the service manager of one host of a bubble: the programs that it
// starts are a version in a file, and whatever is sick never becomes a node.
type keeper struct {
	service.Keeper // what is not below is not called
	b              *bubble
	name           string

	mu    sync.Mutex // guards what follows
	ends  int
	guard chan error // nil: none; gets how it ended
	again time.Time  // when the service is started; zero: it runs
	told  bool       // it is to be started anew, whatever it does
}

func (k *keeper) dir() string                                 { return filepath.Join(k.b.dir, k.name+".bin") }
func (k *keeper) Program() string                             { return filepath.Join(k.dir(), "fleet") }
func (k *keeper) running() string                             { return filepath.Join(k.dir(), "running") }
func (k *keeper) Runs(context.Context, int) error             { return nil }
func (k *keeper) Relabel(context.Context, string) error       { return nil }
func (k *keeper) Unguard(context.Context) error               { return nil }
func (k *keeper) Logs(context.Context, int) ([]string, error) { return nil, nil }
func (k *keeper) Ask(_ context.Context, args ...string) ([]byte, error) {
	b, err := os.ReadFile(args[0])
	return fmt.Appendf(nil, `{"Version":%q,"Platform":%q,"DataDirs":["1"]}`, strings.TrimSpace(string(b)), upgrade.ThisPlatform()), err
}

func (k *keeper) Status(context.Context) (service.Status, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return service.Status{Restarts: k.ends}, nil
}

func (k *keeper) Restart(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.again, k.told = time.Now(), true
	return nil
}

func (k *keeper) Guard(_ context.Context, args []string) error {
	ready := make(chan struct{})
	ended := make(chan error, 1)
	k.mu.Lock()
	k.guard = ended
	k.mu.Unlock()
	g := upgrade.Guard{
		DataDir: args[2], Keeper: k, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Ready: func() error { close(ready); return nil },
	}
	go func() { ended <- g.Run(context.Background()) }()
	<-ready
	return nil
}

// restartDelay is RestartSec of the service file.
const restartDelay = 5 * time.Second

// manage does what a service manager does at this moment.
func (k *keeper) manage() {
	n := k.b.nodes[k.name]
	k.mu.Lock()
	told := k.told
	k.told = false
	k.mu.Unlock()
	if n != nil {
		select {
		case <-n.Restart():
		default:
			if !told {
				return
			}
		}
		if err := n.Stop(context.Background()); err != nil {
			k.b.t.Errorf("stop %s: %v", k.name, err)
		}
		delete(k.b.nodes, k.name)
		k.end()
		return
	}
	k.mu.Lock()
	due := !time.Now().Before(k.again)
	k.mu.Unlock()
	if !due {
		return
	}
	b, err := os.ReadFile(k.Program())
	if err != nil {
		k.b.t.Fatal(err)
	}
	if bytes.Contains(b, []byte("sick")) {
		k.end()
		return
	}
	k.b.start(k.name)
}

// end is that the service's process ended: it will be started again.
func (k *keeper) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ends++
	k.again = time.Now().Add(restartDelay)
}

// installed gives every host of a bubble a service manager, and starts it anew
// with the old program.
func (b *bubble) installed() map[string]*keeper {
	keepers := map[string]*keeper{}
	for name := range b.hosts {
		k := &keeper{b: b, name: name}
		keepers[name] = k
		if err := os.MkdirAll(k.dir(), 0o755); err != nil {
			b.t.Fatal(err)
		}
		if err := os.WriteFile(k.Program(), []byte("1.0.0\n"), 0o755); err != nil {
			b.t.Fatal(err)
		}
	}
	b.config = func(name string, c *Config) {
		k := keepers[name]
		program, err := os.ReadFile(k.Program())
		if err == nil {
			err = os.WriteFile(k.running(), program, 0o755)
		}
		if err != nil {
			b.t.Fatal(err)
		}
		c.Program, c.Version = k.running(), strings.TrimSpace(string(program))
		// A release that reads stores otherwise: to it this one is another's.
		store, hidden := filepath.Join(b.data(name), "quorum"), filepath.Join(b.data(name), "quorum.hidden")
		if strings.Contains(c.Version, "refuses") {
			err = os.Rename(store, hidden)
		} else if _, herr := os.Stat(hidden); herr == nil {
			err = errors.Join(os.RemoveAll(store), os.Rename(hidden, store))
		}
		if err != nil {
			b.t.Fatal(err)
		}
		c.Keeper = func() (service.Keeper, error) { return k, nil }
	}
	for name := range b.hosts {
		b.crash(name)
		b.start(name)
	}
	for name := range b.hosts {
		b.ready(name)
	}
	return keepers
}

// TestUpgradeInABubble brings hosts and voters to another program, host to host
// when the voters have lost it, and back where it is sick.
func TestUpgradeInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 3, 2)
		defer b.stopAll()
		keepers := b.installed()
		c := b.client()
		defer c.Close()
		ids := map[string]fleet.NodeID{}
		for name, n := range b.nodes {
			ids[name] = n.ID()
		}
		put := func(text string) upgrade.Program {
			t.Helper()
			p := upgrade.Program{Platform: upgrade.ThisPlatform(), Digest: fleet.Sum([]byte(text)), Size: int64(len(text))}
			open := func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil }
			if err := c.PutProgram(t.Context(), p.Digest, p.Size, open); err != nil {
				t.Fatal(err)
			}
			return p
		}
		copies := func(p upgrade.Program) (n int) {
			for _, node := range b.nodes {
				if node.member.Load() != nil && node.blobs.Has(p.Digest) {
					n++
				}
			}
			return n
		}
		// send upgrades one host and gives the end of it.
		send := func(name string, p upgrade.Program, sources ...fleet.NodeID) (state, reason string) {
			t.Helper()
			content, _, _ := document.Builtin(upgrade.Document)
			o := upgrade.Order{Programs: []upgrade.Program{p}, Sources: sources, Healthy: time.Minute}
			var sent ssm.SendCommandResult
			if err := c.Call(t.Context(), "SendCommand", ssm.SendCommandRequest{
				DocumentName: upgrade.Document, DocumentHash: fleet.Sum(content).String(), DocumentHashType: "Sha256",
				InstanceIds: []string{string(ids[name])}, Parameters: o.Parameters(), MaxConcurrency: "100%", MaxErrors: "100%", TimeoutSeconds: 1800,
			}, &sent); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			var mu sync.Mutex
			go func() {
				for {
					err := c.Watch(t.Context(), fleet.WatchCommandRequest{CommandId: fleet.CommandID(sent.Command.CommandId)}, func(e fleet.WatchEvent) error {
						mu.Lock()
						defer mu.Unlock()
						if e.Invocation != nil && e.Invocation.Final {
							state, reason = e.Invocation.StatusDetails, e.Invocation.Reason
						}
						return nil
					})
					switch fleet.KindOf(err) {
					case fleet.NoQuorum, fleet.Unavailable, fleet.Unknown:
						continue // the voter that was asked is being started
					}
					ended <- err
					return
				}
			}()
			for deadline := time.Now().Add(20 * time.Minute); ; {
				select {
				case err := <-ended:
					if err != nil {
						t.Fatal(err)
					}
					mu.Lock()
					defer mu.Unlock()
					return state, reason
				case <-time.After(100 * time.Millisecond):
				}
				for _, k := range keepers {
					k.manage()
				}
				if time.Now().After(deadline) {
					t.Fatalf("the upgrade of %s has not ended", name)
				}
			}
		}
		version := func(name string) string { return b.nodes[name].cfg.Version }
		guardEnded := func(name string) {
			t.Helper()
			select {
			case err := <-keepers[name].guard:
				if err != nil {
					t.Errorf("the guard of %s: %v", name, err)
				}
			case <-time.After(time.Minute):
				t.Errorf("the guard of %s has not ended", name)
			}
		}

		sick := put("2.0.0-sick\n")
		if n := copies(sick); n != 2 {
			t.Errorf("the program is on %d voters, want 2", n)
		}
		state, reason := send("n4", sick)
		if state != "Failed" || !strings.Contains(reason, "went back to 1.0.0: it ended 3 times") || version("n4") != "1.0.0" {
			t.Errorf("sick on n4: %s, %q, and it runs %s", state, reason, version("n4"))
		}
		guardEnded("n4")
		if ws := b.nodes["n4"].LocalStatus().Warnings; !slices.ContainsFunc(ws, func(w fleet.Warning) bool {
			return w.Code == WarnWentBack && strings.Contains(w.Message, "2.0.0-sick: it ended 3 times")
		}) {
			t.Errorf("its status: %+v", ws)
		}

		good := put("2.0.0\n")
		if state, reason := send("n4", good); state != "Success" || version("n4") != "2.0.0" {
			t.Errorf("n4: %s, %q, and it runs %s", state, reason, version("n4"))
		}
		guardEnded("n4")
		if r, err := upgrade.Load(b.data("n4")); err != nil || r.Stage != upgrade.Done || r.From.Version != "1.0.0" {
			t.Errorf("n4: %+v, %v", r, err)
		}
		// Nobody but n4 has it: host to host.
		for _, n := range b.nodes {
			if err := n.blobs.Remove(good.Digest); err != nil {
				t.Error(err)
			}
		}
		if state, reason := send("n5", good, ids["n4"]); state != "Success" || version("n5") != "2.0.0" {
			t.Errorf("n5, of n4: %s, %q, and it runs %s", state, reason, version("n5"))
		}
		// Voters; the one that leads hands over.
		for _, name := range []string{"n1", "n2", "n3"} {
			if state, reason := send(name, good, ids["n4"], ids["n5"]); state != "Success" || version(name) != "2.0.0" {
				t.Errorf("%s: %s, %q, and it runs %s", name, state, reason, version(name))
			}
		}
		// A program that refuses a voter's store runs on, without a vote: it is
		// not well, or the next voter's would be what loses the quorum.
		state, reason = send("n3", put("3.0.0-refuses\n"))
		if state != "Failed" || !strings.Contains(reason, "had not answered it within 1m0s") || version("n3") != "2.0.0" {
			t.Errorf("refused on n3: %s, %q, and it runs %s", state, reason, version("n3"))
		}
		guardEnded("n3")
		if b.nodes["n3"].member.Load() == nil {
			t.Fatal("n3 has no part in the quorum any more")
		}
		if _, err := b.nodes["n3"].member.Load().control.Read(t.Context(), false); err != nil {
			t.Fatalf("n3 does not follow the log: %v", err)
		}
		// The quorum is told, by the heartbeats of the new programs.
		var nodes fleet.DescribeNodesResult
		if err := c.Call(t.Context(), "DescribeNodes", fleet.DescribeNodesRequest{}, &nodes); err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes.Nodes {
			if n.AgentVersion != "2.0.0" || n.AgentDigest != good.Digest.String() {
				t.Errorf("%s runs %s, %s", n.Name, n.AgentVersion, n.AgentDigest)
			}
		}
		// A host asks for what no open command names to it, and for what nobody has.
		other := b.nodes["n5"]
		for _, d := range []fleet.Digest{sick.Digest, fleet.Sum([]byte("x"))} {
			for _, voter := range []string{"n1", "n2", "n3"} {
				err := other.fetchFrom(t.Context(), source{ids[voter], true}, upgrade.Program{Digest: d, Size: 1},
					func(io.Reader) error { return errors.New("it was sent") })
				if fleet.KindOf(err) != fleet.NotFound {
					t.Errorf("%s gives n5 what it was not told to fetch: %v", voter, err)
				}
			}
		}
	})
}
