package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"fleet/node/fleet"
)

const (
	// silence is how long a stream may say nothing: three missed heartbeats.
	silence      = 16 * time.Second
	maxEventLine = 1 << 20
)

const watchOperation = "WatchCommand"

// Names of server-sent events.
const (
	EventData  = "event" // a fleet.WatchEvent
	EventError = "error" // an ErrorBody; the stream ends
)

// Watch calls f with each event of a command until the command has ended, f
// fails or ctx is done. A stream that breaks is opened again, at another host;
// f sees each final state once. f runs on the caller's goroutine.
func (c *Client) Watch(ctx context.Context, req fleet.WatchCommandRequest, f func(fleet.WatchEvent) error) error {
	body, err := encode(req)
	if err != nil {
		return err
	}
	seen := map[fleet.NodeID]fleet.InvocationEvent{}
	once := func(e fleet.WatchEvent) error {
		if e.Invocation != nil {
			old, known := seen[e.Invocation.InstanceId]
			if known && (old.Final || old.StatusDetails == e.Invocation.StatusDetails) {
				return nil
			}
			seen[e.Invocation.InstanceId] = fleet.InvocationEvent{Final: e.Invocation.Final,
				StatusDetails: e.Invocation.StatusDetails}
		}
		return f(e)
	}
	backoff := firstBackoff
	lastGood := time.Now() // elapsed time, not the fleet's
	for {
		events, err := c.stream(ctx, body, once)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !again(err):
			return err
		}
		if events > 0 {
			lastGood, backoff = time.Now(), firstBackoff
		}
		if time.Since(lastGood) > c.opts.Timeout {
			return err
		}
		if after := fleet.RetryAfterOf(err); after > 0 {
			backoff = max(backoff, after)
		} else {
			c.avoid()
		}
		wait := time.NewTimer(backoff)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return context.Cause(ctx)
		}
		backoff = min(2*backoff, longestBackoff)
	}
}

// stream reads one stream to its end. A nil error means that the command
// ended; events counts what came.
func (c *Client) stream(ctx context.Context, body []byte, f func(fleet.WatchEvent) error) (events int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(silence, func() {
		cancel(fleet.Errorf(fleet.Unavailable, "the host said nothing for %s", silence))
	})
	defer quiet.Stop()

	res, err := c.post(ctx, request{operation: watchOperation, body: body})
	if err != nil {
		return 0, c.streamError(ctx, err)
	}
	defer res.Body.Close() //nolint:errcheck // nothing is written
	events, done, err := readEvents(res.Body, func() { quiet.Reset(silence) }, f)
	if done || err != nil {
		return events, err
	}
	return events, c.streamError(ctx, fleet.Errorf(fleet.Unavailable, "the stream ended early"))
}

// readEvents calls f with the events of a stream, and alive at each sign of
// life, until the command ended (done), the stream did, or there is an error
// that reading on would not mend.
func readEvents(r io.Reader, alive func(), f func(fleet.WatchEvent) error) (events int, done bool, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 16<<10), maxEventLine)
	var name string
	var data []byte
	for lines.Scan() {
		alive()
		line := lines.Bytes()
		if field, value, ok := bytes.Cut(line, []byte(": ")); ok {
			switch string(field) {
			case "event":
				name = string(value)
			case "data":
				data = bytes.Clone(value)
			}
			continue
		}
		if len(line) > 0 || data == nil {
			continue // a comment (heartbeat) or a blank line after one
		}
		if done, err = handleEvent(name, data, f); err != nil || done {
			return events, done, err
		}
		events++
		name, data = "", nil
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return events, false, fleet.Errorf(fleet.TooLarge, "an event is over %d bytes", maxEventLine)
	}
	return events, false, nil
}

// streamError prefers the reason for which the stream was cut.
func (c *Client) streamError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func handleEvent(name string, data []byte, f func(fleet.WatchEvent) error) (done bool, err error) {
	switch name {
	case EventError:
		var b ErrorBody
		if err := json.Unmarshal(data, &b); err != nil {
			return false, fleet.Errorf(fleet.Unavailable, "an event is damaged: %w", err)
		}
		return false, b.Err()
	case EventData:
		var e fleet.WatchEvent
		if err := json.Unmarshal(data, &e); err != nil {
			return false, fleet.Errorf(fleet.Unavailable, "an event is damaged: %w", err)
		}
		if err := f(e); err != nil {
			return false, err
		}
		return e.Command != nil && e.Command.Ended, nil
	}
	return false, nil // a later release may send more
}

// TotalHeader of GetCommandOutput is how many bytes the step wrote, of which
// fewer may be kept.
const TotalHeader = "Fleet-Total"

// Output is what was kept of one stream; Total is how many bytes were written.
type Output struct {
	io.ReadCloser
	Total uint64
}

// Output opens the bytes of one stream of one step on one node. The caller
// closes it.
func (c *Client) Output(ctx context.Context, req fleet.GetCommandOutputRequest) (*Output, error) {
	body, err := encode(req)
	if err != nil {
		return nil, err
	}
	res, err := c.post(ctx, request{operation: "GetCommandOutput", body: body, stale: c.opts.Stale})
	if err != nil {
		return nil, err
	}
	out := &Output{ReadCloser: res.Body}
	if text := res.Header.Get(TotalHeader); text != "" {
		if out.Total, err = strconv.ParseUint(text, 10, 64); err != nil {
			return nil, errors.Join(fmt.Errorf("answer of GetCommandOutput: %w", err), res.Body.Close())
		}
	}
	return out, nil
}
