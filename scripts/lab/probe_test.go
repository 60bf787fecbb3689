//go:build lab && linux

package lab_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"fleet/scripts/lab"
)

// The probe is this test binary again, on a host: it sends and receives what
// the tests of cables and firewalls need, so that they ask for no other tool.
//
//	probe listen               prints each datagram that arrives, and serves TCP
//	probe say TEXT ADDRESS...  sends each a datagram
//	probe connect ADDRESS      succeeds when a TCP connection stands within 2 s
//	probe send ADDRESS BYTES   over TCP, and prints how long it took
const probePath = "/usr/local/bin/probe"

const probePort = "9999"

func TestMain(m *testing.M) {
	if os.Args[0] == probePath || os.Args[0] == "probe" {
		if err := probe(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "probe:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func probe(args []string) error {
	switch args[0] {
	case "listen":
		return probeListen()
	case "say":
		for _, to := range args[2:] {
			c, err := net.Dial("udp", net.JoinHostPort(to, probePort))
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(c, "%s>%s", args[1], to); err != nil {
				return err
			}
			c.Close()
		}
		return nil
	case "connect":
		c, err := net.DialTimeout("tcp", net.JoinHostPort(args[1], probePort), 2*time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	case "send":
		return probeSend(args[1], args[2])
	}
	return errors.New("no such verb")
}

// probeListen serves TCP too: it reads to the end and answers with the count.
func probeListen() error {
	packets, err := net.ListenPacket("udp", ":"+probePort)
	if err != nil {
		return err
	}
	streams, err := net.Listen("tcp", ":"+probePort)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := streams.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				n, _ := io.Copy(io.Discard, c) // a broken one is counted as far as it came
				fmt.Fprintln(c, n)
			}()
		}
	}()
	fmt.Println("ready")
	buf := make([]byte, 1500)
	for {
		n, _, err := packets.ReadFrom(buf)
		if err != nil {
			return err
		}
		fmt.Printf("got %s\n", buf[:n])
	}
}

func probeSend(to, count string) error {
	var n, got int64
	if _, err := fmt.Sscan(count, &n); err != nil {
		return err
	}
	c, err := net.DialTimeout("tcp", net.JoinHostPort(to, probePort), 10*time.Second)
	if err != nil {
		return err
	}
	start := time.Now()
	if _, err := io.CopyN(c, zeros{}, n); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	if _, err := fmt.Fscan(c, &got); err != nil || got != n {
		return fmt.Errorf("%d of %d arrived: %w", got, n, err)
	}
	fmt.Println(time.Since(start).Milliseconds())
	return nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// installProbe puts the probe on every host.
func installProbe(t *testing.T, l *lab.Lab) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range l.Hosts() {
		h.WriteFile(probePath, string(b))
		h.Run("chmod", "755", probePath).OK()
	}
}

// listen runs a probe on every host until the test ends or stop is called.
func listen(hosts []*lab.Host) (listeners map[*lab.Host]*lab.Proc, stop func()) {
	listeners = map[*lab.Host]*lab.Proc{}
	for _, h := range hosts {
		listeners[h] = h.Start(probePath, "listen")
	}
	for _, p := range listeners {
		p.WaitLog("ready")
	}
	return listeners, func() {
		for _, p := range listeners {
			p.Stop()
		}
	}
}

// pairs are the directions in which nothing arrives.
type pairs map[[2]*lab.Host]bool

// reach sends one datagram in each direction between all hosts, IPv4 and IPv6,
// and compares what arrives with what should. Datagrams, because the answer to
// a connection needs both directions.
func reach(t *testing.T, hosts []*lab.Host, cut pairs) {
	t.Helper()
	listeners, stop := listen(hosts)
	defer stop()
	for _, from := range hosts {
		args := []string{probePath, "say", from.Name()}
		for _, to := range hosts {
			if to != from {
				args = append(args, to.Addresses()...)
			}
		}
		from.Run(args...).OK()
	}
	for h, p := range listeners {
		for _, from := range hosts {
			for _, a := range h.Addresses() {
				if from != h && !cut[[2]*lab.Host{from, h}] {
					p.WaitLog("got " + from.Name() + ">" + a + "\n")
				}
			}
		}
	}
	// What was to arrive has arrived. A datagram that was not lost would have
	// come with it: cables are queues, and a later one is not overtaken.
	for h, p := range listeners {
		for _, from := range hosts {
			if cut[[2]*lab.Host{from, h}] && strings.Contains(p.Log(), "got "+from.Name()+">") {
				t.Errorf("%s is cut from %s, and this arrived:\n%s", from.Name(), h.Name(), p.Log())
			}
		}
	}
}
