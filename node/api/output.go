package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"fleet/node/api/client"
	"fleet/node/fleet"
	"fleet/node/runcmd"
	"fleet/node/ssm"
)

// Marks that SSM puts into output that was cut.
const (
	cutMark       = "--output truncated--"
	errorRule     = "\n----------ERROR-------\n"
	cutMarkStdout = "\n---Output truncated---"
	cutMarkStderr = "\n---Error truncated----"
)

// outputWrite is how long a client may take for one part of the output.
const outputWrite = 30 * time.Second

// findStep finds the step that a request means; without a name there must be
// one only.
func findStep(d *runcmd.Detail, name string) (*runcmd.StepDetail, error) {
	if name == "" && len(d.Steps) == 1 {
		return &d.Steps[0], nil
	}
	var names []string
	for i := range d.Steps {
		if d.Steps[i].Name == name {
			return &d.Steps[i], nil
		}
		names = append(names, d.Steps[i].Name)
	}
	return nil, fleet.CodeErrorf(fleet.Invalid, ssm.InvalidPluginName, "name one of the steps: %s", strings.Join(names, ", "))
}

// open gives what was kept of one stream.
func (c *call) open(ctx context.Context, host fleet.NodeID, s *runcmd.StreamDetail) (io.ReadCloser, error) {
	if s.Blob.IsZero() {
		return io.NopCloser(strings.NewReader(string(s.Inline))), nil
	}
	return c.cfg.Control.Blob(ctx, host, s.Blob)
}

// head reads at most limit bytes of a stream.
func (c *call) head(ctx context.Context, host fleet.NodeID, s *runcmd.StreamDetail, limit int) ([]byte, error) {
	r, err := c.open(ctx, host, s)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, int64(limit)))
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("read output: %w", err)
	}
	return b, nil
}

// streamText is the first limit characters of a stream as text, and whether
// there is more.
func (c *call) streamText(ctx context.Context, host fleet.NodeID, s *runcmd.StreamDetail,
	limit int) (text string, more bool, err error) {
	b, err := c.head(ctx, host, s, limit*utf8.UTFMax)
	if err != nil {
		return "", false, err
	}
	text, cut := firstRunes(strings.ToValidUTF8(string(b), string(utf8.RuneError)), limit)
	return text, cut || uint64(len(b)) < s.Total, nil
}

// cutText is streamText with SSM's mark, mark included in the limit.
func (c *call) cutText(ctx context.Context, host fleet.NodeID, s *runcmd.StreamDetail, limit int) (string, error) {
	text, more, err := c.streamText(ctx, host, s, limit)
	if err != nil || !more {
		return text, err
	}
	text, _ = firstRunes(text, limit-len(cutMark))
	return text + cutMark, nil
}

func firstRunes(s string, n int) (string, bool) {
	for i := range s {
		if n == 0 {
			return s[:i], true
		}
		n--
	}
	return s, false
}

// joinOutput is SSM's text of both streams of a step, at most MaxPluginOutput
// characters: when both are too long each gets half, when one is short the
// other gets the rest.
func joinOutput(stdout, stderr string) string {
	if stderr == "" {
		return cutTo(stdout, ssm.MaxPluginOutput, cutMarkStdout)
	}
	room := ssm.MaxPluginOutput - len(errorRule)
	out, errs := utf8.RuneCountInString(stdout), utf8.RuneCountInString(stderr)
	outRoom := room / 2
	switch {
	case out+errs <= room:
		outRoom = out
	case out <= room/2:
		outRoom = out
	case errs <= room/2:
		outRoom = room - errs
	}
	return cutTo(stdout, outRoom, cutMarkStdout) + errorRule + cutTo(stderr, room-outRoom, cutMarkStderr)
}

// cutTo is s in at most limit characters, with the mark at the end when some
// are missing.
func cutTo(s string, limit int, mark string) string {
	if whole, cut := firstRunes(s, limit); !cut {
		return whole
	}
	s, _ = firstRunes(s, max(0, limit-len(mark)))
	return s + mark
}

func outputError(err error) string {
	return "the output cannot be read now: " + public(err).Message
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// getCommandOutput streams the bytes of one stream of one step.
func getCommandOutput(ctx context.Context, c *call) error {
	req, err := decode[fleet.GetCommandOutputRequest](c.body)
	if err != nil {
		return err
	}
	store, err := c.cfg.Control.Read(ctx, c.stale)
	if err != nil {
		return err
	}
	r, err := findInvocation(store.Snapshot(), string(req.CommandId), string(req.InstanceId))
	if err != nil {
		return err
	}
	detail, err := c.cfg.Control.Detail(ctx, r.cmd, r.inv)
	if err != nil {
		return err
	}
	if detail == nil {
		return fleet.Errorf(fleet.NotFound, "there is no output: the command is %s on this node", r.inv.State.Details())
	}
	step, err := findStep(detail, req.StepName)
	if err != nil {
		return err
	}
	var s *runcmd.StreamDetail
	switch req.Stream {
	case "", fleet.StreamStdout:
		s = &step.Stdout
	case fleet.StreamStderr:
		s = &step.Stderr
	default:
		return fleet.Errorf(fleet.Invalid, "the stream is %s or %s, not %.40q", fleet.StreamStdout, fleet.StreamStderr, req.Stream)
	}
	src, err := c.open(ctx, r.node(), s)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/octet-stream")
	c.w.Header().Set(client.TotalHeader, strconv.FormatUint(s.Total, 10))
	c.w.Header().Set(client.DigestHeader, s.Digest.String())
	return errors.Join(c.copy(src), src.Close())
}

// copy sends a stream part by part; a client that does not take a part in time
// is cut off.
func (c *call) copy(src io.Reader) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := (patient{c}).Write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read output: %w", err)
		}
	}
}

// patient writes part by part to a client that must take each in time.
type patient struct{ *call }

func (p patient) Write(b []byte) (int, error) {
	if err := p.rc.SetWriteDeadline(time.Now().Add(outputWrite)); err != nil {
		return 0, fmt.Errorf("set write deadline: %w", err)
	}
	n, err := p.w.Write(b)
	if err != nil {
		return n, fleet.Errorf(fleet.Unavailable, "write output: %w", err)
	}
	return n, nil
}
