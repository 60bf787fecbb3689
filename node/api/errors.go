package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"fleet/node/api/client"
	"fleet/node/fleet"
)

// statuses is the one place where a kind becomes an HTTP status.
var statuses = map[fleet.Kind]int{
	fleet.Other:           http.StatusInternalServerError,
	fleet.Invalid:         http.StatusBadRequest,
	fleet.NotFound:        http.StatusNotFound,
	fleet.Conflict:        http.StatusConflict,
	fleet.Denied:          http.StatusForbidden,
	fleet.Unauthenticated: http.StatusUnauthorized,
	fleet.NoQuorum:        http.StatusServiceUnavailable,
	fleet.NotLeader:       http.StatusServiceUnavailable,
	fleet.Unavailable:     http.StatusServiceUnavailable,
	fleet.Expired:         http.StatusUnauthorized,
	fleet.Throttled:       http.StatusTooManyRequests,
	fleet.TooLarge:        http.StatusRequestEntityTooLarge,
	fleet.Corrupt:         http.StatusInternalServerError,
	fleet.Unknown:         http.StatusGatewayTimeout,
}

// public is what of an error the caller may see. An error without a kind is
// ours: its text is for the log.
func public(err error) *fleet.Error {
	var e *fleet.Error
	if errors.As(err, &e) {
		return &fleet.Error{Kind: e.Kind, Code: e.Code, Message: e.Message, Hint: fleet.HintOf(err), RetryAfter: e.RetryAfter}
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return fleet.Errorf(fleet.Unavailable, "the host did not finish in time")
	}
	return fleet.Errorf(fleet.Other, "internal error; the host's log has more")
}

// writeError answers with an error.
func writeError(w http.ResponseWriter, err error) {
	e := public(err)
	status, ok := statuses[e.Kind]
	if !ok {
		status = http.StatusInternalServerError
	}
	b, encodeErr := json.Marshal(client.BodyOf(e))
	if encodeErr != nil {
		b = []byte(`{"__type":"Internal","message":"internal error"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((e.RetryAfter+time.Second-1)/time.Second)))
	}
	w.WriteHeader(status)
	_, _ = w.Write(b) // the client may be gone; there is nobody to tell
}
