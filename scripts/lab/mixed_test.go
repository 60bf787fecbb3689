//go:build upgrade && !lab

package lab_test

// This file runs real processes of two versions of fleet in one fleet: the one
// of this tree and one of a fixed commit before it. It needs no lab: they are on
// loopback.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fleet/node/api/client"
	"fleet/node/document"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/ssm"
)

// previousFile names the commit of the version before: the last release's, or
// while there is none, one that was chosen.
const previousFile = "../upgrade/previous"

// Limits of waiting, for machines with other work.
const (
	patience = 3 * time.Minute
	poll     = 100 * time.Millisecond
)

// previous builds the version before.
func previous(t *testing.T, root, to string) {
	t.Helper()
	b, err := os.ReadFile(previousFile)
	check(t, err)
	var commit string
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			commit = line
		}
	}
	if err := exec.Command("git", "-C", root, "cat-file", "-e", commit+"^{commit}").Run(); err != nil {
		t.Skipf("the commit %s of the version before is not in this repository: git fetch --unshallow", commit)
	}
	src := t.TempDir()
	archive := exec.Command("git", "-C", root, "archive", "--format=tar", commit)
	tar, err := archive.Output()
	check(t, err)
	unpack := exec.Command("tar", "-x", "-C", src)
	unpack.Stdin = bytes.NewReader(tar)
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("unpack: %v\n%s", err, out)
	}
	build(t, src, to, "previous")
	t.Logf("the version before is %s", commit)
}

func build(t *testing.T, src, to, version string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version="+version, "-o", to, ".")
	cmd.Dir, cmd.Env = src, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", version, err, out)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a fleet of processes on loopback.
type world struct {
	t        *testing.T
	dir      string
	binaries map[string]string // by version
	hosts    []*host
	cred     identity.Credential
}

type host struct {
	w       *world
	name    string
	addr    string
	version string
	cmd     *exec.Cmd
	ended   chan struct{}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	return l.Addr().String()
}

// fleet runs the command line of a version.
func (w *world) fleet(version string, args ...string) ([]byte, error) {
	cmd := exec.Command(w.binaries[version], args...)
	cmd.Env = append(os.Environ(), "FLEET_CREDENTIAL="+filepath.Join(w.dir, "credential"), "HOME="+w.dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("fleet %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return out, err
}

func (w *world) mustFleet(version string, args ...string) []byte {
	w.t.Helper()
	out, err := w.fleet(version, args...)
	check(w.t, err)
	return out
}

func (w *world) await(what string, f func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(poll) {
		if time.Now().After(deadline) {
			w.t.Fatalf("waited %s for %s\n%s", patience, what, w.logs())
		}
	}
}

func (h *host) data() string { return filepath.Join(h.w.dir, h.name) }
func (h *host) log() string  { return filepath.Join(h.w.dir, h.name+".log") }

// start runs the host with a version.
func (h *host) start(version string) {
	h.w.t.Helper()
	log, err := os.OpenFile(h.log(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	check(h.w.t, err)
	defer log.Close()
	cmd := exec.Command(h.w.binaries[version], "agent", "--data-dir", h.data(), "--listen", h.addr, "--advertise", h.addr)
	cmd.Stdout, cmd.Stderr = log, log
	check(h.w.t, cmd.Start())
	ended := make(chan struct{})
	h.cmd, h.version, h.ended = cmd, version, ended
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(ended)
	}()
}

// stop ends the host in order.
func (h *host) stop() {
	h.w.t.Helper()
	_ = h.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-h.ended:
	case <-time.After(patience):
		_ = h.cmd.Process.Kill()
		<-h.ended
		h.w.t.Fatalf("%s did not stop\n%s", h.name, h.w.logs())
	}
}

func (h *host) ready() bool {
	out, err := exec.Command(h.w.binaries[h.version], "status", "-o", "json", "--socket", filepath.Join(h.data(), "fleet.sock")).Output()
	return err == nil && bytes.Contains(out, []byte(`"QuorumReachable": true`))
}

// logs is the end of each log.
func (w *world) logs() string {
	var all strings.Builder
	for _, h := range w.hosts {
		b, _ := os.ReadFile(h.log())
		fmt.Fprintf(&all, "--- %s (%s)\n%s\n", h.name, h.version, b[max(0, len(b)-2000):])
	}
	return all.String()
}

// newWorld is a fleet of the version before: three voters and one host more.
func newWorld(t *testing.T, binaries map[string]string) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "fleetup") // short: the path of a socket has 107 bytes
	check(t, err)
	w := &world{t: t, dir: dir, binaries: binaries}
	t.Cleanup(func() {
		for _, h := range w.hosts {
			if h.cmd != nil {
				_ = h.cmd.Process.Kill()
				<-h.ended
			}
		}
		if t.Failed() {
			t.Logf("kept: %s", dir)
		} else {
			_ = os.RemoveAll(dir)
		}
	})
	for n := range 4 {
		w.hosts = append(w.hosts, &host{w: w, name: "h" + strconv.Itoa(n+1), addr: freeAddress(t)})
	}
	first := w.hosts[0]
	credential, key, token := filepath.Join(dir, "credential"), filepath.Join(dir, "root.key"), filepath.Join(dir, "token")
	w.mustFleet("previous", "init", "--name", "mixed", "--enroll-only", "--data-dir", first.data(), "--node-name", first.name,
		"--advertise", first.addr, "--root-key", key, "--credential", credential, "--operator", "tester")
	first.start("previous")
	w.await("h1 to lead", first.ready)
	w.mustFleet("previous", "activation", "create", "--limit", "3", "--token-file", token)
	for _, h := range w.hosts[1:] {
		w.mustFleet("previous", "join", "--enroll-only", "--data-dir", h.data(), "--node-name", h.name, "--advertise", h.addr, "--token-file", token)
		h.start("previous")
		w.await(h.name+" to hear from the quorum", h.ready)
	}
	w.mustFleet("previous", "quorum", "add", "h2", "h3", "--root-key", key, "--yes")
	w.cred, err = identity.LoadCredential(credential)
	check(t, err)
	return w
}

// load makes changes and commands until stop is closed, and remembers what was
// acknowledged.
type load struct {
	w    *world
	stop chan struct{}
	wg   sync.WaitGroup

	mu       sync.Mutex // guards what follows
	labels   int        // the highest that was acknowledged
	commands []string   // acknowledged
	failed   []error    // refused although the fleet had a quorum all the time
}

// maxFailed ends the load: what is wrong is known by then.
const maxFailed = 10

func (w *world) begin(node fleet.NodeID) *load {
	l := &load{w: w, stop: make(chan struct{})}
	each := func(f func(ctx context.Context, api *client.Client, n int) error) {
		l.wg.Go(func() {
			var api *client.Client
			for n := 1; ; n++ {
				select {
				case <-l.stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				err := error(nil)
				if api == nil {
					api, err = client.Open(ctx, w.cred, client.Options{})
				}
				if err == nil {
					err = f(ctx, api, n)
				}
				cancel()
				if err != nil {
					l.mu.Lock()
					l.failed = append(l.failed, err)
					enough := len(l.failed) >= maxFailed
					l.mu.Unlock()
					if enough {
						return
					}
				}
			}
		})
	}
	each(func(ctx context.Context, api *client.Client, n int) error {
		err := api.Call(ctx, "AddTagsToResource", ssm.AddTagsToResourceRequest{
			ResourceType: "ManagedInstance", ResourceId: string(node), Tags: []ssm.Tag{{Key: "n", Value: strconv.Itoa(n)}}}, nil)
		if err == nil {
			l.mu.Lock()
			l.labels = n
			l.mu.Unlock()
		}
		return err
	})
	script, _, _ := document.Builtin("AWS-RunShellScript")
	each(func(ctx context.Context, api *client.Client, _ int) error {
		var sent ssm.SendCommandResult
		err := api.Call(ctx, "SendCommand", ssm.SendCommandRequest{
			DocumentName: "AWS-RunShellScript", Parameters: map[string][]string{
				"commands": {fmt.Sprintf("echo $FLEET_COMMAND_ID $FLEET_NODE_ID >>%s; echo done", filepath.Join(w.dir, "witness"))}},
			Targets: []ssm.Target{{Key: "InstanceIds", Values: []string{"*"}}}, TimeoutSeconds: 300, MaxConcurrency: "100%", MaxErrors: "100%",
			DocumentHash: fleet.Sum(script).String(), DocumentHashType: "Sha256",
		}, &sent)
		if err != nil {
			return err
		}
		l.mu.Lock()
		l.commands = append(l.commands, sent.Command.CommandId)
		l.mu.Unlock()
		ctx, cancel := context.WithTimeout(ctx, 50*time.Second)
		defer cancel()
		err = api.Watch(ctx, fleet.WatchCommandRequest{CommandId: fleet.CommandID(sent.Command.CommandId)}, func(fleet.WatchEvent) error { return nil })
		if errors.Is(err, context.DeadlineExceeded) {
			return nil // it is looked for at the end
		}
		return err
	})
	return l
}

// judge ends the load and looks for everything that was acknowledged.
func (l *load) judge(node fleet.NodeID) {
	t := l.w.t
	t.Helper()
	close(l.stop)
	l.wg.Wait()
	for _, err := range l.failed {
		t.Errorf("refused during an upgrade: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	api, err := client.Open(ctx, l.w.cred, client.Options{})
	check(t, err)
	defer api.Close()
	var nodes fleet.DescribeNodesResult
	check(t, api.Call(ctx, "DescribeNodes", fleet.DescribeNodesRequest{Nodes: []string{string(node)}}, &nodes))
	if got, _ := strconv.Atoi(nodes.Nodes[0].Labels["n"]); got < l.labels {
		t.Errorf("label %d was acknowledged, the fleet has %d", l.labels, got)
	}
	witness := map[string]int{}
	b, err := os.ReadFile(filepath.Join(l.w.dir, "witness"))
	check(t, err)
	for line := range strings.Lines(string(b)) {
		witness[strings.TrimSpace(line)]++
	}
	states := map[string]int{}
	for _, id := range l.commands {
		// Every target comes to one final state.
		err := api.Watch(ctx, fleet.WatchCommandRequest{CommandId: fleet.CommandID(id)}, func(ev fleet.WatchEvent) error {
			i := ev.Invocation
			if i == nil || !i.Final {
				return nil
			}
			states[i.StatusDetails]++
			runs := witness[id+" "+string(i.InstanceId)]
			switch i.StatusDetails {
			case "Success":
				if runs != 1 {
					t.Errorf("%s on %s succeeded and ran %d times", id, i.Name, runs)
				}
			case "Interrupted":
				if runs > 1 {
					t.Errorf("%s on %s ran %d times", id, i.Name, runs)
				}
			default:
				t.Errorf("%s on %s: %s: %s", id, i.Name, i.StatusDetails, i.Reason)
			}
			return nil
		})
		if err != nil {
			t.Errorf("command %s was acknowledged: %v", id, err)
		}
	}
	for _, h := range l.w.hosts {
		b, err := os.ReadFile(h.log())
		check(t, err)
		for _, bad := range []string{"panic:", "fatal error:", "part ended"} {
			if i := bytes.Index(b, []byte(bad)); i >= 0 {
				t.Errorf("%s: %s", h.name, b[i:min(len(b), i+2000)])
			}
		}
	}
	t.Logf("acknowledged: %d labels, %d commands on four hosts: %v; refused: %d", l.labels, len(l.commands), states, len(l.failed))
}

// TestMixedVersions exchanges the programs of four hosts, three of them voters,
// in random orders, one after the other, to this tree's and back to the version
// before, while changes and commands go on: all that was acknowledged is there,
// every command ends on every host, and nobody panics. ORDERS is how many times,
// SEED which orders.
func TestMixedVersions(t *testing.T) {
	root, err := filepath.Abs("../..")
	check(t, err)
	dir := t.TempDir()
	binaries := map[string]string{"previous": filepath.Join(dir, "previous"), "this": filepath.Join(dir, "this")}
	previous(t, root, binaries["previous"])
	build(t, root, binaries["this"], "this")
	orders, seed := number(t, "ORDERS", 2), number(t, "SEED", 1)
	w := newWorld(t, binaries)
	var nodes fleet.DescribeNodesResult
	check(t, json.Unmarshal(w.mustFleet("previous", "node", "ls", "-o", "json"), &nodes))
	node := nodes.Nodes[slices.IndexFunc(nodes.Nodes, func(n fleet.NodeView) bool { return n.Name == "h4" })].InstanceId
	l := w.begin(node)
	r := rand.New(rand.NewPCG(uint64(seed), 0))
	for range orders {
		for _, version := range []string{"this", "previous"} {
			order := r.Perm(len(w.hosts))
			for i, at := range order {
				h := w.hosts[at]
				h.stop()
				h.start(version)
				w.await(h.name+" to hear from the quorum as "+version, h.ready)
				if i != 1 {
					continue
				}
				// Half of them: either command line speaks to either half.
				for _, cli := range []string{"previous", "this"} {
					w.mustFleet(cli, "node", "ls")
					w.mustFleet(cli, "run", "--node", h.name, "--yes", "--", "true")
				}
			}
			t.Logf("%s: in the order %v", version, order)
		}
	}
	l.judge(node)
}

func number(t *testing.T, name string, absent int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return absent
	}
	n, err := strconv.Atoi(text)
	check(t, err)
	return n
}
