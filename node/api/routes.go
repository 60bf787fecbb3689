package api

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"time"

	"fleet/node/api/client"
	"fleet/node/authz"
	"fleet/node/fleet"
	"fleet/node/identity"
	"fleet/node/wire"
	"fleet/raftfsm/state"
)

// routes is the table of operations; permissions and classes stand in authz.
var routes = []route{
	{"CreateActivation", mutateTime, mutate},
	{"DeleteActivation", mutateTime, mutate},
	{"AddTagsToResource", mutateTime, mutate},
	{"RemoveTagsFromResource", mutateTime, mutate},
	{"DeregisterManagedInstance", mutateTime, mutate},
	{"RenameNode", mutateTime, mutate},
	{"SendCommand", mutateTime, mutate},
	{"CancelCommand", mutateTime, mutate},
	{"PutTarget", mutateTime, mutate},
	{"DeleteTarget", mutateTime, mutate},
	{"ChangeQuorum", membershipTime, mutate},
	{"CreateOperator", mutateTime, mutate},
	{"DeleteOperator", mutateTime, mutate},
	{"RotateGossipKey", mutateTime, mutate},

	{"GetCallerIdentity", readTime, read(getCallerIdentity)},
	{"DescribeInstanceInformation", readTime, read(describeInstanceInformation)},
	{"DescribeNodes", readTime, read(describeNodes)},
	{"ListTagsForResource", readTime, read(listTagsForResource)},
	{"DescribeActivations", readTime, read(describeActivations)},
	{"DescribeOperators", readTime, read(describeOperators)},
	{"DescribeTargets", readTime, read(describeTargets)},
	{"ListCommands", readTime, read(listCommands)},
	{"ListCommandInvocations", readTime, read(listCommandInvocations)},
	{"GetCommandInvocation", readTime, read(getCommandInvocation)},
	{"DescribeQuorum", readTime, read(describeQuorum)},
	{"DescribeGossipKey", readTime, read(describeGossipKey)},
	{"GetStatus", readTime, read(getStatus)},
	{"GetTrust", readTime, read(getTrust)},
	{"GetCandidate", readTime, read(getCandidate)},

	{"DescribeProgram", readTime, describeProgram},
	{"PutProgram", upload, putProgram},

	{"WatchCommand", stream, watchCommand},
	{"GetCommandOutput", stream, getCommandOutput},
	{"CreateBackup", stream, createBackup},
}

// Times of a route that bounds itself: one that answers a stream, and one that
// takes one.
const (
	stream time.Duration = 0
	upload time.Duration = -1
)

type route struct {
	name  string
	time  time.Duration // for the whole work
	serve func(ctx context.Context, c *call) error
}

// call is one request.
type call struct {
	*Server
	op     authz.Operation
	req    *http.Request // of an upload: its body is the handler's to read
	caller caller
	stale  bool
	body   []byte
	header http.Header
	w      *trackedWriter
	rc     *http.ResponseController
}

func pathOf(operation string) string { return client.PathPrefix + operation }

func (s *Server) notFound(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		writeError(w, fleet.Errorf(fleet.Invalid, "operations are asked for with POST, not %.16q", r.Method))
		return
	}
	writeError(w, fleet.Errorf(fleet.NotFound, "there is no operation at %.80q", r.URL.Path))
}

// wrap is what all operations share: authorisation, limits, times, the log and
// the form of errors.
func (s *Server) wrap(op authz.Operation, r route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		began := time.Now()
		who, _ := req.Context().Value(callerKey{}).(caller)
		tracked := &trackedWriter{ResponseWriter: w}
		c := &call{
			Server: s, op: op, req: req, caller: who, header: req.Header, w: tracked, rc: http.NewResponseController(w),
			stale: req.Header.Get(client.ConsistencyHeader) == client.ConsistencyStale,
		}
		err := c.run(req, r)
		dur := time.Since(began)
		if err != nil && fleet.KindOf(err) == fleet.Other && req.Context().Err() == nil {
			s.cfg.Logger.Error("operation failed", "operation", op.Name, "operator", who.operator, "dur", dur, "err", err)
		} else {
			s.cfg.Logger.Debug("operation", "operation", op.Name, "operator", who.operator, "dur", dur, "err", err)
		}
		switch {
		case err == nil:
		case !tracked.began:
			writeError(tracked, err)
		default:
			// Half an answer went out: only a broken connection says that it
			// is not a whole one.
			panic(http.ErrAbortHandler)
		}
	})
}

// run is one operation between the wrapper and its handler; a panic of the
// handler becomes an error of this request.
func (c *call) run(req *http.Request, r route) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	if err := c.authorize(req.Context(), c.caller, c.op); err != nil {
		return err
	}
	if err := c.refuseOver(c.caller); err != nil {
		return err
	}
	if r.time == upload {
		return r.serve(req.Context(), c)
	}
	if c.body, err = io.ReadAll(http.MaxBytesReader(c.w.ResponseWriter, req.Body, maxBody)); err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return fleet.Errorf(fleet.TooLarge, "the request is over %d bytes", maxBody)
		}
		return fleet.Errorf(fleet.Invalid, "the request ended early")
	}
	// The server's timeout for reading would end a long operation: net/http
	// reads on to notice a client that leaves.
	if err := c.rc.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("clear read deadline: %w", err)
	}
	ctx := req.Context()
	if r.time != stream {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, r.time)
		defer cancel()
		if err := c.rc.SetWriteDeadline(time.Now().Add(r.time + writeTimeout)); err != nil {
			return fmt.Errorf("set write deadline: %w", err)
		}
	}
	return r.serve(ctx, c)
}

// trackedWriter knows whether an answer has begun.
type trackedWriter struct {
	http.ResponseWriter
	began bool
}

func (t *trackedWriter) WriteHeader(status int) {
	t.began = true
	t.ResponseWriter.WriteHeader(status)
}

func (t *trackedWriter) Write(b []byte) (int, error) {
	t.began = true
	return t.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController find the connection.
func (t *trackedWriter) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// mutate passes a signed request on, exactly as it came.
func mutate(ctx context.Context, c *call) error {
	proof, err := base64.RawURLEncoding.DecodeString(c.header.Get(client.ProofHeader))
	if err != nil || len(proof) == 0 || len(proof) > identity.MaxProof {
		return fleet.Errorf(fleet.Unauthenticated, "%s needs a proof in the header %s", c.op.Name, client.ProofHeader)
	}
	p, err := identity.ParseProof(proof)
	if err != nil {
		return err
	}
	if p.Operator != c.caller.operator {
		return fleet.Errorf(fleet.Unauthenticated, "the request is signed by %q on a connection of %q",
			p.Operator, c.caller.operator)
	}
	answer, err := c.cfg.Control.Mutate(ctx, c.op.Name, c.body, proof)
	if err != nil {
		return err
	}
	return c.write(answer)
}

// read makes a handler of a function from a state and a request to a result.
func read[Req, Resp any](f func(context.Context, *call, *state.Store, *Req) (*Resp, error)) func(context.Context, *call) error {
	return func(ctx context.Context, c *call) error {
		req, err := decode[Req](c.body)
		if err != nil {
			return err
		}
		store, err := c.cfg.Control.Read(ctx, c.stale)
		if err != nil {
			return err
		}
		resp, err := f(ctx, c, store.Snapshot(), req)
		if err != nil {
			return err
		}
		b, err := json.Marshal(resp)
		if err != nil {
			return fmt.Errorf("encode answer: %w", err)
		}
		return c.write(b)
	}
}

func decode[Req any](body []byte) (*Req, error) {
	req := new(Req)
	if err := wire.StrictJSON(body, req); err != nil {
		return nil, fleet.CodeErrorf(fleet.Invalid, "ValidationException", "the request cannot be read: %v", err)
	}
	return req, nil
}

func (c *call) write(answer []byte) error {
	c.w.Header().Set("Content-Type", "application/json")
	if _, err := c.w.Write(answer); err != nil {
		return fleet.Errorf(fleet.Unavailable, "write answer: %w", err)
	}
	return nil
}
