package devfleet

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"fleet/node/api"
	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/identity"
)

// nowhere is an address at which nobody answers.
const nowhere = "127.0.0.1:1"

func (f *Fleet) agentOf(name string) *client.Local {
	return client.OpenLocal(filepath.Join(f.dataDir(index(name)), "fleet.sock"))
}

// TestThroughAnOrdinaryHost has an operator work on a host from which none of
// his addresses answers.
func TestThroughAnOrdinaryHost(t *testing.T) {
	f := startFleet(t, 4, 3)
	cred := f.Credential()
	cred.Addresses = []string{nowhere}
	open := func(agent *client.Local, opts client.Options) (*client.Client, error) {
		opts.Agent = agent
		return client.Open(t.Context(), cred, opts)
	}
	for _, name := range []string{"node04", "node01"} {
		c, err := open(f.agentOf(name), client.Options{})
		if err != nil {
			t.Fatalf("through %s: %v", name, err)
		}
		var made fleet.DescribeNodesResult
		if err := c.Call(t.Context(), "DescribeNodes", fleet.DescribeNodesRequest{}, &made); err != nil || len(made.Nodes) != 4 {
			t.Errorf("through %s: %d nodes, %v", name, len(made.Nodes), err)
		}
		if name == "node01" && c.Node() != f.Nodes()[0].ID() {
			t.Errorf("through a quorum host %s answered, want itself", c.Node())
		}
		if leader := f.Leader(); name == "node04" && leader != nil && c.Node() != leader.ID() {
			t.Logf("%s answered; %s leads", c.Node(), leader.ID()) // a leader that changed meanwhile
		}
		c.Close()
	}
	// Addresses that the operator names are meant: there is no other way then.
	if _, err := open(f.agentOf("node04"), client.Options{Addresses: []string{nowhere}}); fleet.KindOf(err) != fleet.NoQuorum ||
		strings.Contains(err.Error(), "agent") {
		t.Errorf("with an address of his own: %v, want no quorum without a word of the agent", err)
	}
	// Without an agent nothing is said of one.
	if _, err := open(client.OpenLocal("/none/fleet.sock"), client.Options{}); fleet.KindOf(err) != fleet.NoQuorum ||
		strings.Contains(err.Error(), "agent") {
		t.Errorf("without an agent: %v", err)
	}
	// From outside, the port of an ordinary host leads to the quorum too.
	outside, err := open(nil, client.Options{Addresses: []string{f.Nodes()[3].Address()}})
	if err != nil {
		t.Fatalf("through the port of an ordinary host: %v", err)
	}
	var quorum fleet.DescribeQuorumResult
	if err := outside.Call(t.Context(), "DescribeQuorum", fleet.DescribeQuorumRequest{}, &quorum); err != nil || len(quorum.Members) != 3 {
		t.Errorf("through the port of an ordinary host: %+v, %v", quorum, err)
	}
	if outside.Node() == f.Nodes()[3].ID() {
		t.Error("the ordinary host answered itself")
	}
	outside.Close()
	// An operator that the quorum does not know is told so by the quorum.
	stranger := cred
	if stranger.Key, err = identity.GenerateKey(); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Open(t.Context(), stranger, client.Options{Agent: f.agentOf("node04")}); fleet.KindOf(err) != fleet.Unauthenticated {
		t.Errorf("a stranger through the agent: %v, want unauthenticated", err)
	}

	// The voters go, the client hears it, and finds the others again.
	c, err := open(f.agentOf("node04"), client.Options{Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	gone := c.Node()
	for _, n := range f.Nodes() {
		if n.ID() == gone {
			if err := n.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.Call(t.Context(), "DescribeQuorum", fleet.DescribeQuorumRequest{}, nil); err != nil {
		t.Errorf("after the quorum host in use stopped: %v", err)
	}
	if c.Node() == gone {
		t.Error("the stopped host answered")
	}
}

// lyingAgent is an agent's socket that leads where it likes.
type lyingAgent struct {
	api.Local
	to func(ctx context.Context) (net.Conn, error)
}

func (l lyingAgent) Splice(ctx context.Context) (net.Conn, error) { return l.to(ctx) }
func direct(addr string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", addr) }
}

// TestAgentThatLies has the operator's host pass him on to others than quorum
// hosts: it gets nothing out of it, no proof either.
func TestAgentThatLies(t *testing.T) {
	f, other := startFleet(t, 2, 1), startFleet(t, 1, 1)
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Second}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(web) })
	t.Cleanup(func() { _ = server.Close(); serving.Wait() })
	cred := f.Credential()
	cred.Addresses = []string{nowhere}
	for name, tc := range map[string]struct {
		to   func(context.Context) (net.Conn, error)
		kind fleet.Kind
	}{
		"an ordinary host": {direct(f.Nodes()[1].Address()), fleet.Other}, // which passes him on

		"another fleet":         {direct(other.Nodes()[0].Address()), fleet.Unauthenticated},
		"something else":        {direct(web.Addr().String()), fleet.NoQuorum},
		"a refusal of its own":  {func(context.Context) (net.Conn, error) { return nil, fleet.Errorf(fleet.Denied, "no") }, fleet.NoQuorum},
		"the quorum, after all": {direct(f.Nodes()[0].Address()), fleet.Other},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			l, err := api.ListenLocal(path)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- api.ServeLocal(ctx, l, lyingAgent{to: tc.to}, slog.New(slog.DiscardHandler)) }()
			defer func() { cancel(); <-done }()
			c, err := client.Open(t.Context(), cred, client.Options{Agent: client.OpenLocal(path)})
			if err == nil {
				defer c.Close()
				err = c.Call(t.Context(), "DescribeQuorum", fleet.DescribeQuorumRequest{}, nil)
			}
			if got := fleet.KindOf(err); got != tc.kind || (err == nil) != (tc.kind == fleet.Other) {
				t.Errorf("got %v (%s), want %s", err, got, tc.kind)
			}
		})
	}
}
