// Package doctor finds out why a host does not do what it should: it looks at
// this host (name, port, data directory, clock, firewall) and, for each address
// of another, whether name, TCP, UDP in both directions, packet size and clock
// are in order.
//
// A finding says what was looked at, what was seen and what to type. The doctor
// changes nothing and needs no agent, no credential and no data directory: it
// is there for the host that could not join. What it can find out only from the
// other side (can this host be reached?) it asks of the host at the address,
// which answers strangers for that purpose (see node/enrol and node/transport,
// where the limits are).
package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"fleet/node/api/client"
	"fleet/node/config"
	"fleet/node/disk"
	"fleet/node/enrol"
	"fleet/node/fleet"
	"fleet/node/transport"
)

// State is how a check ended.
type State string

// States.
const (
	OK      State = "ok"
	Warning State = "warning" // it works, but not as it should
	Problem State = "problem" // it keeps fleet from working
	Skipped State = "skipped" // could not be looked at; the text says why
)

// Finding is one thing that was looked at.
type Finding struct {
	Check  string `json:"Check"`            // short: "port", "udp"
	Host   string `json:"Host,omitempty"`   // address of the other host; empty: this one
	State  State  `json:"State"`            //
	Text   string `json:"Text"`             // what was seen
	Remedy string `json:"Remedy,omitempty"` // what to do, when there is something to do
}

// Options says what to look at.
type Options struct {
	Config    *config.Config
	Addresses []string // "host:port" of other hosts
	Name      string   // this host's name, as it would enrol; "" when the system's does not serve

	// Running says that this host's agent answered on its socket: then the port
	// is its own. Containment is how it said that it holds its commands.
	Running     bool
	Containment string

	// Fleet is the fleet that the others should belong to; empty: any, but one.
	Fleet fleet.ID

	// Gone says why this host is of its fleet no more; empty while it is.
	Gone string

	Getenv func(string) string
	Now    func() time.Time
	Dial   transport.DialFunc // nil: the system's
}

// probeTime bounds what is asked of one other host.
const probeTime = 25 * time.Second

// Examine looks at everything and gives what it found, this host first, then
// the others in the order of their addresses.
func Examine(ctx context.Context, o Options) []Finding {
	if o.Now == nil {
		o.Now = time.Now
	}
	e := &examination{Options: o}
	defer e.close()
	e.name()
	if e.Gone != "" {
		e.add("fleet", Problem, e.Gone+": this host runs nothing any more",
			"fleet join --token-file FILE makes it a new node, with a new activation")
	}
	e.dataDir()
	e.port()
	e.system()
	found := make([][]Finding, len(o.Addresses))
	var wg sync.WaitGroup
	for i, addr := range o.Addresses {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, probeTime)
			defer cancel()
			r := &remote{e: e, addr: addr}
			r.examine(ctx)
			found[i] = r.found
		})
	}
	wg.Wait()
	for _, f := range found {
		e.found = append(e.found, f...)
	}
	return e.found
}

// examination is one run.
type examination struct {
	Options
	found []Finding

	// held is the port, opened so that others can try it; nil while the agent or
	// another program has it.
	held     net.Listener
	packet   net.PacketConn
	packetMu sync.Mutex // one at a time asks over packet
}

func (e *examination) add(check string, state State, text, remedy string) {
	e.found = append(e.found, Finding{Check: check, State: state, Text: text, Remedy: remedy})
}

func (e *examination) close() {
	if e.held != nil {
		// Opened to be tried, and nothing waits in them.
		_ = e.held.Close()
		_ = e.packet.Close()
	}
}

func (e *examination) name() {
	if e.Name == "" {
		e.add("name", Problem, "the host name of this system does not serve as a node's name",
			"give one: --node-name NAME, FLEET_NAME, or name: in "+config.DefaultFile)
		return
	}
	e.add("name", OK, e.Name, "")
}

// dataDir looks at the place of keys, journal and replicated state. What is too
// little room is the agent's to say (node/disk).
func (e *examination) dataDir() {
	dir := e.Config.DataDir
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		e.add("data", Problem, dir+" is not a directory", "name another: --data-dir DIR")
		return
	}
	at := existing(dir)
	state, text, remedy := mounted(at)
	if state == Problem {
		e.add("data", state, text, remedy)
		return
	}
	account := disk.New(at, 0, e.Now)
	if err := account.Check(); err != nil {
		e.add("data", Problem, err.Error(), fleet.HintOf(err))
		return
	}
	if warnings := account.Warnings(); len(warnings) > 0 {
		e.add("data", Warning, warnings[0].Message, warnings[0].Remedy)
		return
	}
	if state != OK {
		e.add("data", state, text, remedy)
		return
	}
	e.add("data", OK, fmt.Sprintf("%s, %d MiB free", dir, account.State().Free>>20), "")
}

// existing is the nearest directory above a path that exists.
func existing(path string) string {
	for {
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			return path
		}
		up := filepath.Dir(path)
		if up == path {
			return path
		}
		path = up
	}
}

// listenPort is the number of the port.
func (e *examination) listenPort() uint16 {
	_, port, err := net.SplitHostPort(e.Config.Listen)
	if err != nil {
		return 0 // config has checked it
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}

// port finds out who has the port, and takes it for the time of the examination
// if nobody does.
func (e *examination) port() {
	port := e.listenPort()
	if e.Running {
		e.add("port", OK, fmt.Sprintf("%d is this host's agent's", port), "")
		return
	}
	l, p, err := transport.Listen(e.Config.Listen)
	switch {
	case err == nil:
		e.held, e.packet = l, p
		go accept(l)
		e.add("port", OK, fmt.Sprintf("%d is free, TCP and UDP", port), "")
	case fleet.KindOf(err) == fleet.Conflict:
		owner := portOwner(port)
		if owner == "" {
			owner = "another program (become root to see which)"
		}
		e.add("port", Problem, fmt.Sprintf("%d is taken by %s", port, owner),
			"stop it, or give fleet another port: --listen :PORT, and the same in the firewall")
	case errors.Is(err, os.ErrPermission):
		e.add("port", Problem, fmt.Sprintf("this user may not open port %d", port), "become root")
	default:
		e.add("port", Problem, err.Error(), "check listen: in "+config.DefaultFile)
	}
}

// accept lets others connect and says nothing. It ends with the listener.
func accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_ = conn.Close() // that it was opened is the answer
	}
}

// system looks at what the operating system may forbid.
func (e *examination) system() {
	e.clock()
	e.proxy()
	e.commands()
	e.found = append(e.found, platformFindings(e.Options)...)
}

// commands says how the commands of this host are held, as its agent found out.
func (e *examination) commands() {
	switch {
	case !e.Running:
		e.add("commands", Skipped, "how commands are held (control groups) is found out by the agent, which does not run", "")
	case strings.HasPrefix(e.Containment, "process group only"):
		e.add("commands", Warning, "held by a "+e.Containment, "without control groups what a command starts can escape its end; see docs/commands.md")
	default:
		e.add("commands", OK, "held by "+e.Containment, "")
	}
}

// proxy: fleet speaks to its hosts directly, which people behind a proxy do not
// expect.
func (e *examination) proxy() {
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"} {
		if e.Getenv != nil && e.Getenv(name) != "" {
			e.add("proxy", OK, name+" is set; fleet does not use it: hosts are dialled directly", "")
			return
		}
	}
	e.add("proxy", OK, "none is set", "")
}

// remote examines the way to one other host and back.
type remote struct {
	e     *examination
	addr  string
	found []Finding
}

func (r *remote) add(check string, state State, text, remedy string) {
	r.found = append(r.found, Finding{Check: check, Host: r.addr, State: state, Text: text, Remedy: remedy})
}

func (r *remote) examine(ctx context.Context) {
	host, port, err := net.SplitHostPort(r.addr)
	if err != nil {
		r.add("address", Problem, fmt.Sprintf("%q is not HOST:PORT", r.addr), "")
		return
	}
	addresses, err := client.Resolve(ctx, r.addr)
	if err != nil {
		r.add("names", Problem, fmt.Sprintf("%s has no address: %v", host, err), "check the name, or use the IP address")
		return
	}
	ips := make([]string, len(addresses))
	for i, a := range addresses {
		ips[i] = netip.MustParseAddrPort(a).Addr().String() // Resolve made it
	}
	if net.ParseIP(host) == nil {
		r.add("names", OK, host+" is "+strings.Join(ips, ", "), "")
	}
	if r.e.held != nil && port == strconv.Itoa(int(r.e.listenPort())) && isOwn(ips[0]) {
		r.add("address", Problem, "this is this host itself, and no agent runs here", "name another host that is enrolled")
		return
	}
	tries := r.e.Running || r.e.held != nil
	answer, ip, err := r.ask(ctx, ips, port, tries)
	if err != nil {
		r.unreachable(err, port)
	} else {
		r.answered(answer, port, tries)
	}
	r.udp(ctx, net.JoinHostPort(ip, port), err == nil)
}

// ask asks the first address of the host that answers. Others that do not are
// found by whoever dials the name, who waits for them first.
func (r *remote) ask(ctx context.Context, ips []string, port string, tries bool) (answer *enrol.ProbeResult, ip string, err error) {
	probe := enrol.ProbeOptions{Now: r.e.Now, Dial: r.e.Dial}
	if tries {
		probe.CallBack = r.e.listenPort()
	}
	var silent []string
	for _, ip = range ips[:min(len(ips), maxAddresses)] {
		probe.Address = net.JoinHostPort(ip, port)
		if answer, err = enrol.Probe(ctx, probe); err == nil {
			break
		}
		silent = append(silent, ip)
	}
	if err == nil && len(silent) > 0 {
		r.add("names", Warning, strings.Join(silent, ", ")+" of this name did not answer, "+ip+" did",
			"take the address that does not answer out of the name, or use the other one")
	}
	return answer, ip, err
}

// maxAddresses of one name are tried.
const maxAddresses = 4

// isOwn reports whether an IP address is one of this host.
func isOwn(ip string) bool {
	own, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	want := net.ParseIP(ip)
	for _, a := range own {
		if n, ok := a.(*net.IPNet); ok && n.IP.Equal(want) {
			return true
		}
	}
	return want.IsLoopback()
}

// unreachable says why nobody of a fleet answered on TCP.
func (r *remote) unreachable(err error, port string) {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		r.add("tcp", Problem, "the host is there, but nothing listens on port "+port,
			"start fleet there (systemctl status fleet), or check the port; a firewall that rejects looks the same")
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		r.add("tcp", Problem, "there is no way to it from here: "+reason(err), "check the routes and the address")
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded):
		r.add("tcp", Problem, "no answer: the host is down, or a firewall drops what comes to port "+port,
			"on that host: "+firewallRule(port))
	case fleet.KindOf(err) == fleet.Expired:
		r.add("tcp", OK, "port "+port+" is open", "")
		r.add("clock", Problem, reason(err), "set the clock of this host: chronyc makestep, or timedatectl set-ntp true")
	default:
		r.add("tcp", Problem, "port "+port+" is open, but it is not a host of a fleet: "+reason(err),
			"check the address; a proxy or load balancer that ends TLS cannot stand between hosts of a fleet")
	}
}

// reason is the innermost text of an error of ours.
func reason(err error) string {
	var e *fleet.Error
	if errors.As(err, &e) && e.Message != "" {
		return e.Message
	}
	return err.Error()
}

func (r *remote) answered(a *enrol.ProbeResult, port string, tried bool) {
	if r.e.Fleet != "" && a.Fleet != r.e.Fleet {
		r.add("fleet", Problem, fmt.Sprintf("it is a host of another fleet (%s, root fingerprint %s)", a.Fleet, a.Root.Fingerprint()),
			"check the address, or the token")
	} else {
		r.add("tcp", OK, fmt.Sprintf("%s of fleet %s answers in %s, as %s", a.Node, a.Fleet[:8], a.Took.Round(time.Millisecond), a.Role), "")
	}
	if a.Offset.Abs() > enrol.ClockWarning {
		r.add("clock", Problem, enrol.ClockText(a.Offset), "set it: chronyc makestep, or timedatectl set-ntp true")
	} else {
		r.add("clock", OK, fmt.Sprintf("%s from that host's", a.Offset.Abs().Round(time.Millisecond)), "")
	}
	own := strconv.Itoa(int(r.e.listenPort()))
	from, _, _ := net.SplitHostPort(a.Observed) // "" is shown as it is
	switch {
	case !tried:
		r.add("way back", Skipped, "not tried: port "+own+" of this host is taken or may not be opened", "")
	case a.CallBack == nil:
		r.add("way back", OK, fmt.Sprintf("that host reaches this one at %s, TCP", net.JoinHostPort(from, own)), "")
	case fleet.KindOf(a.CallBack) == fleet.Throttled:
		r.add("way back", Skipped, "that host did not try (it tries few at once)", "run this again in a moment")
	default:
		r.add("way back", Warning, fmt.Sprintf("that host does not reach this one at %s, TCP: %s", net.JoinHostPort(from, own), reason(a.CallBack)),
			"on this host: "+firewallRule(own)+"; if nothing may come in here, fleet uses the connections that this host opens")
	}
}

// udp tries packets to a host and back, unasked ones, and large ones.
func (r *remote) udp(ctx context.Context, addr string, answers bool) {
	to, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		r.add("udp", Skipped, err.Error(), "")
		return
	}
	_, port, _ := net.SplitHostPort(addr) // it was joined above
	own := strconv.Itoa(int(r.e.listenPort()))
	conn := r.e.packet
	if conn == nil {
		l, p, err := transport.Listen("[::]:0")
		if err != nil {
			r.add("udp", Skipped, err.Error(), "")
			return
		}
		defer l.Close() //nolint:errcheck // opened for its packets
		defer p.Close() //nolint:errcheck // read and written only here
		conn = p
	} else {
		r.e.packetMu.Lock()
		defer r.e.packetMu.Unlock()
	}
	const small, large = 64, transport.GossipPacket
	took, err := transport.ProbeUDP(ctx, conn, to, small, false)
	if err != nil {
		if answers {
			r.add("udp", Warning, "packets to port "+port+" are not answered: a firewall drops them, or that host is not in the ring",
				"on that host: "+firewallRule(port)+"; fleet node ls shows whether others reach it")
		} else {
			r.add("udp", Problem, "packets to port "+port+" are not answered: a firewall drops them, or no agent reads them there",
				"on that host: "+firewallRule(port))
		}
		return
	}
	r.add("udp", OK, fmt.Sprintf("packets to port %s are answered in %s", port, took.Round(100*time.Microsecond)), "")
	if r.e.packet != nil {
		if _, err := transport.ProbeUDP(ctx, conn, to, small, true); err != nil {
			r.add("udp in", Warning, "packets that this host did not ask for do not arrive at its port "+own,
				"on this host: "+firewallRule(own)+"; without them the others learn late that this host is there")
		} else {
			r.add("udp in", OK, "packets that this host did not ask for arrive at its port "+own, "")
		}
	} else {
		r.add("udp in", Skipped, "not tried: port "+own+" is in use; fleet status shows whether the ring sees this host", "")
	}
	if _, err := transport.ProbeUDP(ctx, conn, to, large, false); err != nil {
		r.add("mtu", Warning, fmt.Sprintf("packets of %d bytes do not come through, small ones do", large),
			"raise the MTU of the way (VPN, tunnel), or let ICMP \"fragmentation needed\" pass")
	} else {
		r.add("mtu", OK, fmt.Sprintf("packets of %d bytes come through", large), "")
	}
}
