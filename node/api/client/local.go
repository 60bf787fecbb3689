package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"fleet/node/fleet"
)

const localTimeout = 5 * time.Second

// Local speaks to the agent of this host over its socket; it needs no
// credential and can only read.
type Local struct {
	socket string
	http   *http.Client
}

// OpenLocal names the socket; nothing is dialled yet.
func OpenLocal(socket string) *Local {
	return &Local{socket: socket, http: &http.Client{Timeout: localTimeout, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}}
}

// there reports whether there is a socket, whether it answers or not.
func (l *Local) there() bool {
	_, err := os.Stat(l.socket)
	return !errors.Is(err, fs.ErrNotExist)
}

// Status is what the host says of itself.
func (l *Local) Status(ctx context.Context) (*fleet.LocalStatus, error) {
	var s fleet.LocalStatus
	return &s, l.get(ctx, "LocalStatus", &s)
}

// Nodes is the host's own copy of the fleet's list.
func (l *Local) Nodes(ctx context.Context) (*fleet.LocalNodes, error) {
	var n fleet.LocalNodes
	return &n, l.get(ctx, "LocalNodes", &n)
}

func (l *Local) get(ctx context.Context, operation string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+LocalHost+PathPrefix+operation, nil)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	res, err := l.http.Do(req)
	if err != nil {
		return l.dialError(err)
	}
	defer res.Body.Close() //nolint:errcheck // nothing is written
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read answer of %s: %w", l.socket, err)
	}
	if res.StatusCode != http.StatusOK {
		return ParseError(res.StatusCode, b)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("answer of %s: %w", l.socket, err)
	}
	return nil
}

// LocalHost is the only Host that the local socket answers to: a page in a
// browser that was made to talk to it would name another.
const LocalHost = "local.fleet"

func (l *Local) dialError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fleet.Errorf(fleet.Unavailable, "no agent runs on this host (no answer at %s)", l.socket).
			WithHint("start it: fleet agent, or name its socket: --socket PATH")
	case errors.Is(err, fs.ErrPermission):
		return fleet.Errorf(fleet.Denied, "the agent's socket %s may not be opened by this user", l.socket).
			WithHint("become root or a member of the group fleet")
	}
	return fleet.Errorf(fleet.Unavailable, "the agent at %s: %w", l.socket, unwrapURL(err))
}
