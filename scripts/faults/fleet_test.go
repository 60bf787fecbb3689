//go:build faults && unix

package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"fleet/node/api/client"
	"fleet/node/document"
	"fleet/node/failpoint"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/ssm"
)

// processes is a fleet of real processes on loopback addresses.
type processes struct {
	t       *testing.T
	dir     string
	bin     string
	port    int
	witness string // a file in which commands leave a line; fleet does not know it
	cred    identity.Credential
	hosts   []*host
}

// host is one of them; h1 and the next ones vote.
type host struct {
	f    *processes
	name string
	addr string
	id   fleet.NodeID
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	log  *os.File
}

// start makes a fleet of processes.
func start(t *testing.T, voters, agents int) *processes {
	t.Helper()
	f := &processes{t: t, dir: t.TempDir()}
	f.bin, f.witness = filepath.Join(f.dir, "fleet"), filepath.Join(f.dir, "witness")
	build := exec.Command("go", "build", "-tags", "failpoints", "-o", f.bin, "fleet")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.port = l.Addr().(*net.TCPAddr).Port
	l.Close()
	for i := range voters + agents {
		f.hosts = append(f.hosts, &host{f: f, name: fmt.Sprintf("h%d", i+1), addr: fmt.Sprintf("127.0.0.%d:%d", i+1, f.port)})
	}
	t.Cleanup(f.stop)
	h, credential, root := f.hosts, filepath.Join(f.dir, "credential"), filepath.Join(f.dir, "root.key")
	f.fleet("init", "--name", "faults", "--enroll-only", "--data-dir", h[0].data(), "--node-name", h[0].name, "--advertise", h[0].addr,
		"--root-key", root, "--credential", credential, "--operator", "tester")
	if f.cred, err = identity.LoadCredential(credential); err != nil {
		t.Fatal(err)
	}
	h[0].start()
	h[0].ready()
	token := filepath.Join(f.dir, "token")
	f.fleet("activation", "create", "--limit", "50", "--token-file", token)
	for _, x := range h[1:] {
		f.fleet("join", "--enroll-only", "--data-dir", x.data(), "--node-name", x.name, "--advertise", x.addr, "--token-file", token)
		x.start()
		x.ready()
	}
	if voters > 1 {
		args := []string{"quorum", "add", "--root-key", root, "--yes"}
		for _, x := range h[1:voters] {
			args = append(args, x.name)
		}
		f.fleet(args...)
	}
	for _, x := range h[:voters] {
		if x != h[0] {
			f.cred.Addresses = append(f.cred.Addresses, x.addr)
		}
	}
	var nodes fleet.DescribeNodesResult
	f.call("DescribeNodes", fleet.DescribeNodesRequest{Brief: true}, &nodes)
	for _, n := range nodes.Nodes {
		for _, x := range h {
			if x.name == n.Name {
				x.id = n.InstanceId
			}
		}
	}
	return f
}

// fleet runs the program, as an operator.
func (f *processes) fleet(args ...string) string {
	f.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(f.bin, args...)
	cmd.Env = append(os.Environ(), "FLEET_CREDENTIAL="+filepath.Join(f.dir, "credential"), "HOME="+f.dir)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		f.t.Fatalf("fleet %s: %v\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// client is an operator's client that knows the given hosts, or all voters.
func (f *processes) client(addresses ...string) *client.Client {
	f.t.Helper()
	var failure error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		c, err := client.Open(f.t.Context(), f.cred, client.Options{Addresses: addresses, Timeout: 10 * time.Second})
		if err == nil {
			return c
		}
		failure = err
	}
	f.t.Fatal(failure)
	return nil
}

// call asks until there is an answer, two minutes at most.
func (f *processes) call(operation string, req, resp any) {
	f.t.Helper()
	c := f.client()
	defer c.Close()
	ctx, cancel := context.WithTimeout(f.t.Context(), 2*time.Minute)
	defer cancel()
	if err := c.Call(ctx, operation, req, resp); err != nil {
		f.t.Fatalf("%s: %v", operation, err)
	}
}

// until waits for a condition.
func (f *processes) until(what string, limit time.Duration, holds func() bool) {
	f.t.Helper()
	for end := time.Now().Add(limit); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			f.t.Fatalf("not after %s: %s", limit, what)
		}
	}
}

// leader is the host that leads; it waits for one other than not.
func (f *processes) leader(not *host) (leader *host) {
	f.t.Helper()
	f.until("a leader", 2*time.Minute, func() bool {
		c := f.client()
		defer c.Close()
		var q fleet.DescribeQuorumResult
		if c.Call(f.t.Context(), "DescribeQuorum", fleet.DescribeQuorumRequest{}, &q) != nil {
			return false
		}
		for _, m := range q.Members {
			for _, h := range f.hosts {
				if m.Leader && m.InstanceId == h.id && h != not {
					leader = h
				}
			}
		}
		return leader != nil
	})
	return leader
}

// stop ends what runs, and shows the logs of a test that failed.
func (f *processes) stop() {
	for _, h := range f.hosts {
		if h.cmd == nil {
			continue
		}
		_ = h.cmd.Process.Signal(syscall.SIGCONT)
		_ = h.cmd.Process.Kill()
		<-h.done
		if f.t.Failed() {
			if b, err := os.ReadFile(h.log.Name()); err == nil {
				lines := strings.Split(strings.TrimSpace(string(b)), "\n")
				f.t.Logf("last lines of %s:\n%s", h.name, strings.Join(lines[max(0, len(lines)-15):], "\n"))
			}
		}
	}
}

func (h *host) data() string { return filepath.Join(h.f.dir, h.name) }

func (h *host) traps() string { return filepath.Join(h.f.dir, h.name+".traps") }

func (h *host) start() {
	t := h.f.t
	t.Helper()
	if err := os.MkdirAll(h.traps(), 0o700); err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(h.f.dir, h.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	h.log = log
	h.cmd = exec.Command(h.f.bin, "agent", "--data-dir", h.data(), "--listen", h.addr, "--advertise", h.addr)
	h.cmd.Env = append(os.Environ(), "FLEET_FAILPOINTS="+h.traps(), "HOME="+h.f.dir)
	h.cmd.Stdout, h.cmd.Stderr = log, log
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd, done := h.cmd, make(chan struct{})
	h.done = done
	go func() {
		_ = cmd.Wait() // it is killed
		_ = log.Close()
		close(done)
	}()
}

// ready waits until the host has heard from a voter since it was started.
func (h *host) ready() {
	h.f.t.Helper()
	h.f.until(h.name+" to hear from the quorum", 2*time.Minute, func() bool {
		cmd := exec.Command(h.f.bin, "status", "-o", "json")
		cmd.Env = append(os.Environ(), "FLEET_SOCKET="+filepath.Join(h.data(), "fleet.sock"), "HOME=/nonexistent")
		out, _ := cmd.Output() // says so in its output
		var s struct{ Host *fleet.LocalStatus }
		return json.Unmarshal(out, &s) == nil && s.Host != nil && s.Host.QuorumReachable
	})
}

func (h *host) pid() int { return h.cmd.Process.Pid }

// kill ends the process as kill -9 does.
func (h *host) kill() {
	_ = h.cmd.Process.Kill() // it may have ended
	<-h.done
}

// trap has a process killed when this host is at a point.
func (h *host) trap(p failpoint.Point, victim *host) {
	h.f.t.Helper()
	file := filepath.Join(h.traps(), string(p))
	_ = os.Remove(file + ".hit")
	if err := os.WriteFile(file+".new", []byte(strconv.Itoa(victim.pid())), 0o600); err != nil {
		h.f.t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		h.f.t.Fatal(err)
	}
}

// order sends a command to all hosts: it leaves a line with the witness and
// takes a moment.
func (f *processes) order(takes string) fleet.CommandID {
	f.t.Helper()
	content, _, _ := document.Builtin("AWS-RunShellScript")
	var sent ssm.SendCommandResult
	f.call("SendCommand", ssm.SendCommandRequest{
		DocumentName: "AWS-RunShellScript", DocumentHash: fleet.Sum(content).String(), DocumentHashType: "Sha256",
		Targets: []ssm.Target{{Key: "InstanceIds", Values: []string{"*"}}}, MaxConcurrency: "100%", MaxErrors: "100%", TimeoutSeconds: 60,
		Parameters: map[string][]string{"commands": {
			"echo $FLEET_COMMAND_ID $FLEET_NODE_ID >> " + f.witness, "sleep " + takes}, "executionTimeout": {"60"}},
	}, &sent)
	return fleet.CommandID(sent.Command.CommandId)
}

// ended waits for the end of a command and gives the state of each host.
func (f *processes) ended(id fleet.CommandID) map[fleet.NodeID]string {
	f.t.Helper()
	states := map[fleet.NodeID]string{}
	f.until("the end of "+string(id), 5*time.Minute, func() bool {
		var list ssm.ListCommandInvocationsResult
		f.call("ListCommandInvocations", ssm.ListCommandInvocationsRequest{CommandId: string(id)}, &list)
		for _, inv := range list.CommandInvocations {
			states[fleet.NodeID(inv.InstanceId)] = inv.StatusDetails
			switch inv.StatusDetails {
			case "Pending", "InProgress", "Cancelling", "":
				return false
			}
		}
		return len(list.CommandInvocations) > 0
	})
	return states
}

// runs is how often the witness saw a command on a host.
func (f *processes) runs(id fleet.CommandID, node fleet.NodeID) int {
	b, err := os.ReadFile(f.witness)
	if err != nil && !os.IsNotExist(err) {
		f.t.Fatal(err)
	}
	return strings.Count(string(b), string(id)+" "+string(node)+"\n")
}

// seedOf is the seed of a schedule: FLEET_SEED, or a new one.
func seedOf(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if v, err := strconv.ParseUint(os.Getenv("FLEET_SEED"), 10, 64); err == nil {
		seed = v
	}
	t.Logf("FLEET_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// number is a number from the environment.
func number(name string, otherwise int) int {
	if v, err := strconv.Atoi(os.Getenv(name)); err == nil && v > 0 {
		return v
	}
	return otherwise
}
