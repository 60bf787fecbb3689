package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"fleet/node/api/client"
	"fleet/node/fleet"
)

// Local is what the local socket serves: what this host knows, to whoever the
// file system lets in. It gives no right over the fleet.
type Local interface {
	LocalStatus() fleet.LocalStatus
	LocalNodes() fleet.LocalNodes
	Debug // for root only

	// Leave takes the host out of the fleet, for root only; done stops it.
	Leave(context.Context, fleet.LeaveRequest) (result *fleet.LeaveResult, done func(), err error)

	// Splice opens a connection to the port of a quorum host, which the host
	// has proved to be one. See splice.go.
	Splice(ctx context.Context) (net.Conn, error)
}

// localRoutes is the whole of the local door.
var localRoutes = []struct {
	name  string
	serve func(Local) any
}{
	{"LocalStatus", func(l Local) any { return l.LocalStatus() }},
	{"LocalNodes", func(l Local) any { return l.LocalNodes() }},
}

const maxLocalConns = 64

// ListenLocal opens the local socket at path: for root and, where there is
// one, the group fleet. A socket that a dead process left is replaced, one
// that answers is a Conflict.
func ListenLocal(path string) (net.Listener, error) {
	if err := makeSocketDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("local socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fleet.Errorf(fleet.Conflict, "the local socket %s: a file of another kind is there", path).
			WithHint("name another path: --socket PATH")
	default:
		if answers(path) {
			return nil, fleet.Errorf(fleet.Conflict, "the local socket %s answers: an agent runs already", path).
				WithHint("stop it, or give this one a data directory and a port of its own")
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("stale local socket: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("local socket: %w", err)
	}
	mode := fs.FileMode(0o600)
	if group, err := user.LookupGroup("fleet"); err == nil {
		if gid, err := strconv.Atoi(group.Gid); err == nil && os.Chown(path, -1, gid) == nil {
			mode = 0o660
		}
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(fmt.Errorf("local socket: %w", err), l.Close())
	}
	return l, nil
}

// makeSocketDir makes the directory of the local socket. One in which others
// may put a socket of theirs in the place of the agent's is refused.
func makeSocketDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("directory of the local socket: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("directory of the local socket: %w", err)
	}
	if runtime.GOOS != "windows" && info.Mode()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0 {
		return fleet.Errorf(fleet.Denied, "the directory of the local socket, %s, may be written by everybody", dir).
			WithHint("chmod o-w %s, or name another path: --socket PATH", dir)
	}
	return nil
}

// answers reports whether somebody serves the socket at path.
func answers(path string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// ServeLocal serves the local socket until ctx is done. It closes l.
func ServeLocal(ctx context.Context, l net.Listener, local Local, log *slog.Logger) error {
	mux := http.NewServeMux()
	splices := &splicer{ctx: ctx, dial: local.Splice, slots: make(chan struct{}, maxSplices), log: log}
	defer splices.open.Wait()
	mux.HandleFunc("POST "+pathOf(client.SpliceName), splices.serve)
	for _, r := range localRoutes {
		mux.HandleFunc("GET "+pathOf(r.name), func(w http.ResponseWriter, _ *http.Request) { writeLocal(w, r.serve(local)) })
		mux.HandleFunc("POST "+pathOf(r.name), func(w http.ResponseWriter, _ *http.Request) { writeLocal(w, r.serve(local)) })
	}
	serveDebug(mux, local)
	serveLeave(mux, local)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, fleet.Errorf(fleet.NotFound, "the local socket has no %.80q", r.URL.Path).
			WithHint("operations on the fleet need an operator's credential"))
	})
	server := &http.Server{
		Handler:           refuseBrowsers(mux),
		ReadHeaderTimeout: preambleTimeout,
		ReadTimeout:       preambleTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       preambleTimeout,
		MaxHeaderBytes:    4 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext:       withConn,
	}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		_ = server.Close() // nothing here is worth waiting for
	})
	err := server.Serve(&limitedListener{Listener: l, slots: make(chan struct{}, maxLocalConns)})
	if !stop() {
		<-closed
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve the local socket: %w", err)
}

// refuseBrowsers refuses what a page in a browser could be made to send.
func refuseBrowsers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != client.LocalHost || r.Header.Get("Origin") != "" || r.Header.Get("Referer") != "" {
			writeError(w, fleet.Errorf(fleet.Denied, "the local socket does not answer to web pages or other hosts' names"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func writeLocal(w http.ResponseWriter, v any) {
	if err := answerJSON(w, v); err != nil {
		writeError(w, err)
	}
}

// limitedListener closes connections beyond its slots.
type limitedListener struct {
	net.Listener
	slots chan struct{}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &provedConn{Conn: conn, release: sync.OnceFunc(func() { <-l.slots })}, nil
		default:
			_ = conn.Close() // it may try again
		}
	}
}
