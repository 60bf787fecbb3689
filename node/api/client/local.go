package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"time"

	"fleet/node/fleet"
)

const localTimeout = 5 * time.Second

// Local speaks to the agent of this host over its socket; it needs no
// credential. Anyone whom the socket lets in can read; what looks into the
// agent, changes how it logs or takes the host out of the fleet is for root.
type Local struct {
	socket string
	http   *http.Client // bounded by localTimeout
	long   *http.Client // bounded by the context alone
}

// OpenLocal names the socket; nothing is dialled yet.
func OpenLocal(socket string) *Local {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}
	return &Local{
		socket: socket, http: &http.Client{Timeout: localTimeout, Transport: transport}, long: &http.Client{Transport: transport},
	}
}

// SetLogLevel changes what the agent logs.
func (l *Local) SetLogLevel(ctx context.Context, req fleet.SetLogLevelRequest) (*fleet.LogLevels, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	var levels fleet.LogLevels
	return &levels, l.do(ctx, http.MethodPost, PathPrefix+"SetLogLevel", body, &levels)
}

// LogLevels are those that count now.
func (l *Local) LogLevels(ctx context.Context) (*fleet.LogLevels, error) {
	var levels fleet.LogLevels
	return &levels, l.get(ctx, "LogLevels", &levels)
}

// RuntimeFacts are figures of the agent's process.
func (l *Local) RuntimeFacts(ctx context.Context) (*fleet.RuntimeFacts, error) {
	var f fleet.RuntimeFacts
	return &f, l.get(ctx, "RuntimeFacts", &f)
}

// Leave takes this host out of its fleet; it waits for the quorum as long as
// ctx does.
func (l *Local) Leave(ctx context.Context, req fleet.LeaveRequest) (*fleet.LeaveResult, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	var result fleet.LeaveResult
	return &result, l.doWith(ctx, l.long, http.MethodPost, PathPrefix+"Leave", body, &result)
}

// maxProfile bounds what is read of a profile.
const maxProfile = 256 << 20

// Profile writes a profile of the agent to w, as net/http/pprof makes them;
// query is such as "seconds=10" or "debug=2".
func (l *Local) Profile(ctx context.Context, name, query string, w io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+LocalHost+"/debug/pprof/"+url.PathEscape(name)+"?"+query, nil)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	res, err := l.long.Do(req)
	if err != nil {
		return l.dialError(err)
	}
	defer res.Body.Close() //nolint:errcheck // nothing is written
	if res.StatusCode != http.StatusOK {
		b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
		if err != nil {
			return fmt.Errorf("read answer of %s: %w", l.socket, err)
		}
		return ParseError(res.StatusCode, b)
	}
	if _, err := io.Copy(w, io.LimitReader(res.Body, maxProfile)); err != nil {
		return fmt.Errorf("read profile of %s: %w", l.socket, err)
	}
	return nil
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
	return l.do(ctx, http.MethodGet, PathPrefix+operation, nil, into)
}

func (l *Local) do(ctx context.Context, method, path string, body []byte, into any) error {
	return l.doWith(ctx, l.http, method, path, body, into)
}

func (l *Local) doWith(ctx context.Context, with *http.Client, method, path string, body []byte, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+LocalHost+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	res, err := with.Do(req)
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
			WithHint("start it: fleet agent --service, or fleet agent in this terminal; or name its socket: --socket PATH")
	case errors.Is(err, fs.ErrPermission):
		return fleet.Errorf(fleet.Denied, "the agent's socket %s may not be opened by this user", l.socket).
			WithHint("become root or a member of the group fleet")
	}
	return fleet.Errorf(fleet.Unavailable, "the agent at %s: %w", l.socket, unwrapURL(err))
}
