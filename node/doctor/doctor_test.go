package doctor_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fleet/node/config"
	"fleet/node/devfleet"
	"fleet/node/doctor"
)

// examine looks from a host whose port is free at the addresses.
func examine(t *testing.T, change func(*doctor.Options), addresses ...string) []doctor.Finding {
	t.Helper()
	cfg := config.Default()
	cfg.Listen, cfg.DataDir = freePort(t), t.TempDir()
	o := doctor.Options{Config: cfg, Name: "web01", Addresses: addresses, Getenv: func(string) string { return "" }, Now: time.Now}
	if change != nil {
		change(&o)
	}
	return doctor.Examine(t.Context(), o)
}

// freePort is an address of loopback whose port nobody has.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// want checks that a finding about a host (empty: this one) is there, and how.
func want(t *testing.T, found []doctor.Finding, host, check string, state doctor.State, text string) {
	t.Helper()
	for _, f := range found {
		if f.Host == host && f.Check == check {
			if f.State != state || !strings.Contains(f.Text, text) {
				t.Errorf("%s %s: %s %q, want %s with %q", host, check, f.State, f.Text, state, text)
			}
			if f.State == doctor.Problem && f.Remedy == "" && f.Check != "address" {
				t.Errorf("%s %s: a problem without a remedy: %s", host, check, f.Text)
			}
			return
		}
	}
	t.Errorf("%s %s was not looked at: %+v", host, check, found)
}

func TestHealthy(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a fleet")
	}
	f, err := devfleet.Start(t.Context(), devfleet.Options{Dir: filepath.Join(t.TempDir(), "f"), Nodes: 2, Quorum: 1, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Stop(context.Background()) })
	voter, ordinary := f.Nodes()[0].Address(), f.Nodes()[1].Address()
	found := examine(t, nil, voter, ordinary)
	want(t, found, "", "name", doctor.OK, "web01")
	want(t, found, "", "port", doctor.OK, "is free")
	for _, host := range []string{voter, ordinary} {
		want(t, found, host, "tcp", doctor.OK, "answers")
		want(t, found, host, "clock", doctor.OK, "")
		want(t, found, host, "way back", doctor.OK, "reaches this one")
		want(t, found, host, "udp", doctor.OK, "answered")
		want(t, found, host, "udp in", doctor.OK, "arrive")
		want(t, found, host, "mtu", doctor.OK, "come through")
	}

	// Another fleet than the one that is meant, and a clock two hours off.
	found = examine(t, func(o *doctor.Options) {
		o.Fleet = "00000000000000000000000000000000"
		o.Now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	}, voter)
	want(t, found, voter, "fleet", doctor.Problem, "another fleet")
	want(t, found, voter, "clock", doctor.Problem, "2h0m0s ahead")

	// A clock that is years off: the certificate itself is out of date.
	found = examine(t, func(o *doctor.Options) { o.Now = func() time.Time { return time.Now().AddDate(-10, 0, 0) } }, voter)
	want(t, found, voter, "clock", doctor.Problem, "")

	// A name whose first address does not answer.
	_, port, err := net.SplitHostPort(voter)
	if err != nil {
		t.Fatal(err)
	}
	silent, used := doctor.AskAny(t.Context(), []string{"127.0.0.9", "127.0.0.1"}, port)
	if used != "127.0.0.1" {
		t.Errorf("asked %q", used)
	}
	want(t, silent, net.JoinHostPort("name", port), "names", doctor.Warning, "127.0.0.9 of this name did not answer")

	// This host's agent runs: its port is not taken by a stranger, and not tried.
	found = examine(t, func(o *doctor.Options) { o.Running, o.Containment = true, "process group only: no cgroups" }, voter)
	want(t, found, "", "commands", doctor.Warning, "process group only")
	want(t, found, "", "port", doctor.OK, "agent")
	want(t, found, voter, "udp in", doctor.Skipped, "in use")
}

func TestProblems(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0") // a program that is no fleet
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	go func() {
		for {
			c, err := other.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	found := examine(t, func(o *doctor.Options) { o.Gone = "node mi-1 was removed" })
	want(t, found, "", "fleet", doctor.Problem, "node mi-1 was removed")
	closed := freePort(t)
	stranger := other.Addr().String()
	found = examine(t, func(o *doctor.Options) { o.Name = "" }, closed, stranger, "no.such.invalid:7790", "nonsense")
	want(t, found, "", "name", doctor.Problem, "host name")
	want(t, found, closed, "tcp", doctor.Problem, "nothing listens")
	want(t, found, closed, "udp", doctor.Problem, "not answered")
	want(t, found, stranger, "tcp", doctor.Problem, "not a host of a fleet")
	want(t, found, "no.such.invalid:7790", "names", doctor.Problem, "no.such.invalid")
	want(t, found, "nonsense", "address", doctor.Problem, "HOST:PORT")

	found = examine(t, func(o *doctor.Options) { o.Config.Listen = stranger })
	want(t, found, "", "port", doctor.Problem, "is taken by")
	if os.Geteuid() == 0 {
		want(t, found, "", "port", doctor.Problem, "doctor.test")
	}
}

// TestOwnAddress: who names this host itself is told so.
func TestOwnAddress(t *testing.T) {
	var own string
	found := examine(t, func(o *doctor.Options) { own = o.Config.Listen; o.Addresses = []string{own} })
	want(t, found, own, "address", doctor.Problem, "this host itself")
}
