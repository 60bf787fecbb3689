//go:build idle

package devfleet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"fleet/node"
	"fleet/node/api/client"
	"fleet/node/fleet"
)

// TestIdle measures what one host costs while nothing happens: an agent, then
// the same host as a voter, in a ring of ringSize with production timing; and
// beside it the floor, a process that runs nothing but memberlist, and one that
// runs nothing but memberlist and Raft on bbolt. The measured process has a
// network namespace of its own, so that every byte it sends is counted, with
// its headers; all others run in one process in another namespace.
//
//	make bench-idle            (root; iproute2; about seven minutes)
//
// It asserts nothing: figures of a machine are no test.
func TestIdle(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("makes network namespaces: needs root")
	}
	program := os.Getenv("FLEET")
	if program == "" {
		t.Fatal("FLEET names the program to measure; see make bench-idle")
	}
	n := newIdleNet(t)
	var rows []idleRow
	for _, floor := range []string{"memberlist", "memberlist+raft"} {
		others := n.self(ringNamespace, "members", ringAddress)
		one := n.self(oneNamespace, floor, oneAddress)
		rows = append(rows, n.measure(floor+" alone", one.process.Pid, one.dir))
		one.end()
		others.end()
	}
	ring := n.self(ringNamespace, "ring", ringAddress)
	dir := filepath.Join(t.TempDir(), "one")
	token := filepath.Join(ring.dir, "token")
	agent := n.program(oneNamespace, program, "join", "--token-file", token, "--foreground", "--node-name", "one",
		"--listen", oneAddress+":7790", "--data-dir", dir, "--log-level", "warn")
	cred := filepath.Join(ring.dir, "credential")
	n.until(func() bool { return n.ringAlive(program, filepath.Join(dir, "fleet.sock")) >= ringSize })
	rows = append(rows, n.measure("agent", agent.process.Pid, dir))
	n.run(ringNamespace, program, "quorum", "add", "one", "node02", "--root-key", filepath.Join(ring.dir, "root.key"),
		"--credential", cred, "--yes")
	rows = append(rows, n.measure("voter", agent.process.Pid, dir))
	var starts []string
	for _, args := range [][]string{{"version"}, {"status", "--socket", filepath.Join(dir, "fleet.sock")}, {"node", "ls", "--credential", cred}} {
		starts = append(starts, n.startTime(program, args))
	}
	agent.end()
	ring.end()

	if info, err := os.Stat(program); err == nil {
		fmt.Printf("\nprogram %s: %.1f MiB\n", filepath.Base(program), float64(info.Size())/(1<<20))
	}
	fmt.Printf("\nidle, ring of %d, %s\n\n| | RSS | CPU s/min | sent B/s | received B/s | packets/s | threads | open files | disk |\n|---|---|---|---|---|---|---|---|---|\n",
		ringSize, idleFor)
	for _, r := range rows {
		fmt.Println(r)
	}
	fmt.Printf("\n| command line | median | slowest | /bin/true, median |\n|---|---|---|---|\n%s", strings.Join(starts, ""))
}

const (
	ringSize = 100
	settle   = 30 * time.Second
	idleFor  = time.Minute

	ringNamespace, oneNamespace = "ring", "one"
	ringAddress, oneAddress     = "10.231.0.1", "10.231.0.2"
)

// TestMain runs the helpers of TestIdle in processes of their own.
func TestMain(m *testing.M) {
	role, dir := os.Getenv("FLEET_IDLE_ROLE"), os.Getenv("FLEET_IDLE_DIR")
	var err error
	switch role {
	case "":
		os.Exit(m.Run())
	case "ring":
		err = idleRing(dir, ringSize-1)
	case "members":
		err = bareMembers(ringAddress, ringSize-1)
	case "memberlist":
		err = bareMembers(oneAddress, 1)
	case "memberlist+raft":
		if err = bareRaft(dir); err == nil {
			err = bareMembers(oneAddress, 1)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, role+":", err)
		os.Exit(1)
	}
}

// parked says that a helper is ready and waits for the end of its input.
func parked() error {
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// idleRing runs all hosts but one, and leaves a token for that one.
func idleRing(dir string, nodes int) error {
	ctx := context.Background()
	f, err := Start(ctx, Options{
		Dir: filepath.Join(dir, "f"), Nodes: nodes, Quorum: 1, Address: netip.MustParseAddr(ringAddress), Timing: &node.Timing{},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	c, err := client.Open(ctx, f.Credential(), client.Options{})
	if err != nil {
		return err
	}
	token, err := f.token(ctx, c, 1)
	if err != nil {
		return err
	}
	text := token.Encode()
	c.Close()
	err = errors.Join(os.WriteFile(filepath.Join(dir, "token"), []byte(text), 0o600),
		os.Link(filepath.Join(dir, "f", "credential"), filepath.Join(dir, "credential")),
		os.Link(f.RootKeyFile(), filepath.Join(dir, "root.key")))
	if err != nil {
		return err
	}
	return errors.Join(parked(), f.Stop(ctx))
}

// bareMembers runs members of a ring of memberlist with its LAN defaults.
func bareMembers(addr string, n int) error {
	for i := range n {
		cfg := memberlist.DefaultLANConfig()
		cfg.Name, cfg.BindAddr, cfg.BindPort = fmt.Sprintf("%s-%d", addr, i), addr, 8000+i
		cfg.AdvertiseAddr, cfg.AdvertisePort = addr, cfg.BindPort
		cfg.SecretKey = bytes.Repeat([]byte{7}, 32)
		cfg.Logger = log.New(io.Discard, "", 0)
		m, err := memberlist.Create(cfg)
		if err != nil {
			return err
		}
		if addr == oneAddress || i > 0 {
			if _, err := m.Join([]string{net.JoinHostPort(ringAddress, "8000")}); err != nil {
				return err
			}
		}
	}
	return parked()
}

// nothing is a state machine without state.
type nothing struct{ raft.FSM }

func (nothing) Apply(*raft.Log) any { return nil }

// bareRaft runs one voter of one on bbolt.
func bareRaft(dir string) error {
	store, err := raftboltdb.NewBoltStore(filepath.Join(dir, "raft.db"))
	if err != nil {
		return err
	}
	transport, err := raft.NewTCPTransport(oneAddress+":7999", nil, 2, time.Second, io.Discard)
	if err != nil {
		return err
	}
	cfg := raft.DefaultConfig()
	cfg.LocalID, cfg.LogOutput = "one", io.Discard
	snapshots := raft.NewInmemSnapshotStore()
	r, err := raft.NewRaft(cfg, nothing{}, store, store, snapshots, transport)
	if err != nil {
		return err
	}
	return r.BootstrapCluster(raft.Configuration{Servers: []raft.Server{{ID: "one", Address: transport.LocalAddr()}}}).Error()
}

// idleNet is two network namespaces and the cable between them.
type idleNet struct {
	t      *testing.T
	prefix string
}

func newIdleNet(t *testing.T) *idleNet {
	n := &idleNet{t: t, prefix: fmt.Sprintf("fleetidle%d", os.Getpid())}
	for _, name := range []string{ringNamespace, oneNamespace} {
		n.ip("netns", "add", n.prefix+name)
		t.Cleanup(func() { n.ip("netns", "del", n.prefix+name) })
		n.ip("-n", n.prefix+name, "link", "set", "lo", "up")
	}
	n.ip("-n", n.prefix+ringNamespace, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", n.prefix+oneNamespace)
	for name, addr := range map[string]string{ringNamespace: ringAddress, oneNamespace: oneAddress} {
		n.ip("-n", n.prefix+name, "addr", "add", addr+"/24", "dev", "eth0")
		n.ip("-n", n.prefix+name, "link", "set", "eth0", "up")
	}
	return n
}

func (n *idleNet) ip(args ...string) []byte {
	n.t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// helper is a process in a namespace.
type helper struct {
	t       *testing.T
	process *os.Process
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	dir     string
}

// self runs this test binary as a helper and waits until it is ready.
func (n *idleNet) self(namespace, role, _ string) *helper {
	n.t.Helper()
	h := &helper{t: n.t, dir: n.t.TempDir()}
	h.cmd = exec.Command("ip", "netns", "exec", n.prefix+namespace, os.Args[0])
	h.cmd.Env = append(os.Environ(), "FLEET_IDLE_ROLE="+role, "FLEET_IDLE_DIR="+h.dir)
	h.cmd.Stderr = os.Stderr
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	h.start(n.t)
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		n.t.Fatalf("%s: %v", role, err)
	}
	return h
}

// program runs the program to be measured.
func (n *idleNet) program(namespace, program string, args ...string) *helper {
	n.t.Helper()
	h := &helper{t: n.t}
	h.cmd = exec.Command("ip", append([]string{"netns", "exec", n.prefix + namespace, program}, args...)...)
	h.cmd.Stderr = os.Stderr
	h.start(n.t)
	return h
}

func (h *helper) start(t *testing.T) {
	t.Helper()
	var err error
	if h.stdin, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h.process = h.cmd.Process // "ip netns exec" becomes the program
	t.Cleanup(func() { _ = h.process.Kill() })
}

func (h *helper) end() {
	_ = h.stdin.Close()
	_ = h.process.Signal(os.Interrupt)
	_ = h.cmd.Wait() // how it ends does not matter here
}

func (n *idleNet) run(namespace, program string, args ...string) {
	n.t.Helper()
	out, err := exec.Command("ip", append([]string{"netns", "exec", n.prefix + namespace, program}, args...)...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
}

func (n *idleNet) until(reached func() bool) {
	n.t.Helper()
	deadline := time.Now().Add(5 * time.Minute)
	for !reached() {
		if time.Now().After(deadline) {
			n.t.Fatal("not reached in five minutes")
		}
		time.Sleep(time.Second)
	}
}

func (n *idleNet) ringAlive(program, socket string) int {
	out, err := exec.Command(program, "status", "--socket", socket, "-o", "json").Output()
	var s struct{ Host *fleet.LocalStatus }
	if len(out) == 0 || json.Unmarshal(out, &s) != nil || s.Host == nil {
		_ = err // the agent is starting
		return 0
	}
	return s.Host.RingAlive
}

// startTime runs a command line again and again, and /bin/true beside it: what
// the way into the namespace and a process cost by themselves.
func (n *idleNet) startTime(program string, args []string) string {
	n.t.Helper()
	const rounds = 40
	var took, floor []time.Duration
	for range rounds {
		began := time.Now()
		n.run(oneNamespace, program, args...)
		took = append(took, time.Since(began))
		began = time.Now()
		n.run(oneNamespace, "/bin/true")
		floor = append(floor, time.Since(began))
	}
	slices.Sort(took)
	slices.Sort(floor)
	name := strings.TrimSuffix(strings.Join(args[:min(2, len(args))], " "), " --socket")
	return fmt.Sprintf("| fleet %s | %s | %s | %s |\n", name, took[rounds/2].Round(100*time.Microsecond),
		took[rounds-1].Round(100*time.Microsecond), floor[rounds/2].Round(100*time.Microsecond))
}

// idleRow is what one process took.
type idleRow struct {
	name                string
	rss                 int // KiB
	cpu                 float64
	sent, received, pkt float64
	threads, files      int
	disk                int64
}

func (r idleRow) String() string {
	return fmt.Sprintf("| %s | %.1f MiB | %.2f | %.0f | %.0f | %.1f | %d | %d | %.1f MiB |", r.name, float64(r.rss)/1024, r.cpu, r.sent, r.received,
		r.pkt, r.threads, r.files, float64(r.disk)/(1<<20))
}

// measure lets a process settle and looks what it takes in idleFor.
func (n *idleNet) measure(name string, pid int, dir string) idleRow {
	n.t.Helper()
	time.Sleep(settle)
	before, cpu := n.counters(), cpuSeconds(n.t, pid)
	time.Sleep(idleFor)
	after := n.counters()
	s := idleFor.Seconds()
	row := idleRow{
		name: name, cpu: (cpuSeconds(n.t, pid) - cpu) * 60 / s,
		sent: float64(after[0]-before[0]) / s, received: float64(after[1]-before[1]) / s, pkt: float64(after[2]-before[2]) / s,
		rss: statusField(n.t, pid, "VmRSS:"), threads: statusField(n.t, pid, "Threads:"),
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		n.t.Fatal(err)
	}
	row.files = len(files)
	_ = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				row.disk += info.Size()
			}
		}
		return nil
	})
	fmt.Println(row)
	return row
}

// counters are bytes sent and received and packets both ways, of the one host.
func (n *idleNet) counters() [3]uint64 {
	n.t.Helper()
	var links []struct {
		Stats struct {
			RX, TX struct{ Bytes, Packets uint64 }
		} `json:"stats64"`
	}
	if err := json.Unmarshal(n.ip("-n", n.prefix+oneNamespace, "-s", "-j", "link", "show", "eth0"), &links); err != nil || len(links) != 1 {
		n.t.Fatalf("counters of eth0: %v", err)
	}
	s := links[0].Stats
	return [3]uint64{s.TX.Bytes, s.RX.Bytes, s.TX.Packets + s.RX.Packets}
}

func cpuSeconds(t *testing.T, pid int) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest) // from the third on
	ticks := 0
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return float64(ticks) / 100
}

func statusField(t *testing.T, pid int, field string) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s in the status of %d", field, pid)
	return 0
}
