package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strconv"
	"time"

	"fleet/node/fleet"
	"fleet/node/wire"
)

// Debug is what the local socket serves to root and to the user that the agent
// runs as: what looks into the process or changes how it logs. Nothing of it
// is served anywhere else.
type Debug interface {
	SetLogLevel(fleet.SetLogLevelRequest) (fleet.LogLevels, error)
	LogLevels() (fleet.LogLevels, error)
	RuntimeFacts() fleet.RuntimeFacts
}

// debugTime bounds one debug answer: a profile is taken for a time.
const debugTime = 5 * time.Minute

const maxDebugRequest = 4 << 10

// debugRoutes is the whole of that door.
var debugRoutes = map[string]func(Debug, http.ResponseWriter, *http.Request) error{
	"POST " + pathOf("SetLogLevel"): func(d Debug, w http.ResponseWriter, r *http.Request) error {
		var req fleet.SetLogLevelRequest
		b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxDebugRequest))
		if err != nil {
			return fleet.Errorf(fleet.TooLarge, "read request: %w", err)
		}
		if err := wire.StrictJSON(b, &req); err != nil {
			return fleet.Errorf(fleet.Invalid, "request: %w", err)
		}
		levels, err := d.SetLogLevel(req)
		if err != nil {
			return err
		}
		return answerJSON(w, levels)
	},
	"GET " + pathOf("LogLevels"): func(d Debug, w http.ResponseWriter, _ *http.Request) error {
		levels, err := d.LogLevels()
		if err != nil {
			return err
		}
		return answerJSON(w, levels)
	},
	"GET " + pathOf("RuntimeFacts"): func(d Debug, w http.ResponseWriter, _ *http.Request) error {
		return answerJSON(w, d.RuntimeFacts())
	},
	"GET /debug/pprof/{name}": func(_ Debug, w http.ResponseWriter, r *http.Request) error {
		switch name := r.PathValue("name"); name {
		case "profile":
			pprof.Profile(w, r)
		case "trace":
			pprof.Trace(w, r)
		case "heap", "allocs", "goroutine", "block", "mutex", "threadcreate":
			pprof.Handler(name).ServeHTTP(w, r)
		default: // cmdline among them: the command line is nobody's business
			return fleet.Errorf(fleet.NotFound, "there is no profile %.40q", name).
				WithHint("profile, trace, heap, allocs, goroutine, block, mutex or threadcreate")
		}
		return nil
	},
}

func answerJSON(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b))) // whole, though the connection may be cut after it
	_, _ = w.Write(b)                                      // the client may be gone; there is nobody else to tell
	return nil
}

// leavingTime bounds the answer to a farewell: commands are ended and reported
// first, and the quorum may be electing a leader.
const leavingTime = 2 * time.Minute

// serveLeave adds the way out of the fleet to the local door, for who owns the
// host. The agent stops after the answer, so that is sent before.
func serveLeave(mux *http.ServeMux, l Local) {
	mux.HandleFunc("POST "+pathOf("Leave"), func(w http.ResponseWriter, r *http.Request) {
		done, err := leave(l, w, r)
		if err != nil {
			writeError(w, err)
		}
		_ = http.NewResponseController(w).Flush() // the client may be gone; the host has left all the same
		if done != nil {
			done()
		}
	})
}

// leave answers a request to leave. done is not nil once the host has left,
// whatever became of the answer: then the agent must stop.
func leave(l Local, w http.ResponseWriter, r *http.Request) (done func(), err error) {
	if err := onlyOwner(r.Context()); err != nil {
		return nil, err
	}
	var req fleet.LeaveRequest
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxDebugRequest))
	if err != nil {
		return nil, fleet.Errorf(fleet.TooLarge, "read request: %w", err)
	}
	if err := wire.StrictJSON(b, &req); err != nil {
		return nil, fleet.Errorf(fleet.Invalid, "request: %w", err)
	}
	if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(leavingTime)); err != nil {
		return nil, err
	}
	// Who asked and hung up has asked all the same: half a farewell is none.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), leavingTime)
	defer cancel()
	result, done, err := l.Leave(ctx, req)
	if err != nil {
		return nil, err
	}
	return done, answerJSON(w, result)
}

// serveDebug adds the debug routes to the local door.
func serveDebug(mux *http.ServeMux, d Debug) {
	for pattern, serve := range debugRoutes {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := onlyOwner(r.Context()); err != nil {
				writeError(w, err)
				return
			}
			deadline := time.Now().Add(debugTime)
			if err := http.NewResponseController(w).SetWriteDeadline(deadline); err != nil {
				writeError(w, err)
				return
			}
			if err := serve(d, w, r); err != nil {
				writeError(w, err)
			}
		})
	}
}

type localConnKey struct{}

// withConn keeps the connection, for who is at its other end.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, localConnKey{}, c)
}

// onlyOwner refuses all but root and the agent's own user, by the kernel's
// word: the group of the socket may read the status, not the memory.
func onlyOwner(ctx context.Context) error {
	conn, _ := ctx.Value(localConnKey{}).(net.Conn)
	if limited, ok := conn.(*provedConn); ok {
		conn = limited.Conn
	}
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		return fleet.Errorf(fleet.Denied, "this is served on the local socket only")
	}
	uid, err := peerUID(unix)
	if err != nil {
		return fleet.Errorf(fleet.Denied, "who asks is not known: %w", err)
	}
	if uid != 0 && uid != os.Geteuid() {
		return fleet.Errorf(fleet.Denied, "this is for root only, user ID %d asked", uid).WithHint("become root: sudo fleet ...")
	}
	if err := peerIsOfThisHost(unix); err != nil {
		return fleet.Errorf(fleet.Denied, "this is for root of the host itself: %w", err).
			WithHint("ask on the host, not in a container on it")
	}
	return nil
}
