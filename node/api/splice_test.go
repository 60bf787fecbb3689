package api

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"fleet/node/api/client"
	"fleet/node/fleet"
)

// localSocket serves a local socket whose splices are made by f.
func localSocket(t *testing.T, f func(context.Context) (net.Conn, error)) (socket *client.Local, stop func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fleet.sock")
	l, err := ListenLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ServeLocal(ctx, l, fakeLocal{f}, discard()) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return client.OpenLocal(path), stop
}

// echo is a quorum host that says back what it hears; it tells when it is left.
func echo(left chan<- struct{}) func(context.Context) (net.Conn, error) {
	return func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			_, _ = io.Copy(theirs, theirs)
			_ = theirs.Close()
			left <- struct{}{}
		}()
		return ours, nil
	}
}

func TestSplice(t *testing.T) {
	left := make(chan struct{}, 2*maxSplices)
	socket, stop := localSocket(t, echo(left))
	say := func(c net.Conn) {
		t.Helper()
		said := []byte("\x16\x03\x01\x00any bytes\r\n\r\n\x00")
		if _, err := c.Write(said); err != nil {
			t.Fatal(err)
		}
		heard := make([]byte, len(said))
		if _, err := io.ReadFull(c, heard); err != nil || string(heard) != string(said) {
			t.Errorf("heard %q, %v; want %q", heard, err, said)
		}
	}
	first, err := socket.Splice(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	say(first)
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	<-left // the quorum host sees that the operator has gone

	var all []net.Conn
	for len(all) < maxSplices {
		c, err := socket.Splice(t.Context())
		if fleet.KindOf(err) == fleet.Throttled && len(all) == maxSplices-1 {
			continue // the first one's place is not free yet
		}
		if err != nil {
			t.Fatalf("splice %d: %v", len(all)+1, err)
		}
		all = append(all, c)
	}
	if _, err := socket.Splice(t.Context()); fleet.KindOf(err) != fleet.Throttled {
		t.Errorf("one splice too many: %v, want throttled", err)
	}
	if _, err := socket.Status(t.Context()); err != nil {
		t.Errorf("status beside the splices: %v", err)
	}
	for _, c := range all {
		say(c)
	}
	stop() // ends them all, and returns
	for _, c := range all {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a splice outlives its agent")
		}
		_ = c.Close()
	}
}

func TestSpliceWithoutQuorum(t *testing.T) {
	socket, _ := localSocket(t, func(context.Context) (net.Conn, error) {
		return nil, fleet.Errorf(fleet.NoQuorum, "this host reaches no quorum host").WithHint("look")
	})
	_, err := socket.Splice(t.Context())
	if fleet.KindOf(err) != fleet.NoQuorum || !strings.Contains(err.Error(), "reaches no quorum host") || fleet.HintOf(err) != "look" {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	block := make(chan struct{})
	t.Cleanup(func() { close(block) })
	silent, _ := localSocket(t, func(ctx context.Context) (net.Conn, error) {
		select {
		case <-ctx.Done():
		case <-block:
		}
		return nil, fleet.Errorf(fleet.NoQuorum, "too late")
	})
	if c, err := silent.Splice(ctx); err == nil {
		_ = c.Close()
		t.Error("an agent that does not answer was waited for")
	}
}
