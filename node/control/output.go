package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"fleet/node/fleet"
	"fleet/node/rpc"
	"fleet/node/runcmd"
	"fleet/node/ssm"
	"fleet/node/stagger"
	"fleet/node/wire"
)

// CommandView is a command's row in SSM's shape.
func CommandView(c *fleet.Command) ssm.Command {
	status, details := CommandStatus(c)
	v := ssm.Command{
		CommandId: string(c.ID), DocumentName: c.DocumentName, DocumentVersion: c.DocumentVersion, Comment: c.Comment,
		RequestedDateTime: ssm.TimeOf(c.Created), ExpiresAfter: ssm.TimeOf(c.Expires), Status: status, StatusDetails: details,
		MaxConcurrency: c.MaxConcurrency, MaxErrors: c.MaxErrors, TargetCount: len(c.Targets), TimeoutSeconds: int(c.DeliverySeconds),
		Operator: string(c.Operator), RunAs: c.RunAs,
	}
	var params wire.StringMap
	if err := wire.Unmarshal(c.Parameters, &params); err == nil && len(params) > 0 {
		v.Parameters = params
	}
	for _, t := range c.Selectors {
		v.Targets = append(v.Targets, ssm.Target(t))
	}
	if len(c.Selectors) == 0 {
		for _, id := range c.Targets {
			v.InstanceIds = append(v.InstanceIds, string(id))
		}
	}
	for s, n := range c.Counts {
		st := fleet.InvocationState(s)
		if st.Final() {
			v.CompletedCount += int(n)
		}
		if st.IsError() {
			v.ErrorCount += int(n)
		}
		if st == fleet.DeliveryTimedOut {
			v.DeliveryTimedOutCount += int(n)
		}
	}
	return v
}

// CommandStatus is SSM's Status and StatusDetails of a whole command, from the
// states of its targets (semantics of SSM's user guide, "command status").
func CommandStatus(c *fleet.Command) (status, details string) {
	count, total := c.Count, len(c.Targets)
	switch {
	case c.Cancelled():
		return "Cancelling", "Cancelling"
	case c.Open() && count(fleet.Pending, fleet.Staged) == total:
		return "Pending", "Pending"
	case c.Open():
		return "InProgress", "InProgress"
	case total == 0:
		return "Failed", "NoInstancesInTag"
	}
	// The limit is passed, not reached: with 0 none may be so.
	_, limit := c.Limits()
	refused := count(fleet.Undeliverable, fleet.InvalidPlatform)
	switch success := count(fleet.Success); {
	case success == total, success > 0 && success+refused == total:
		return "Success", "Success"
	case refused == total:
		return "Failed", "Undeliverable"
	case count(fleet.Cancelled) > 0 && count(fleet.Cancelled)+success+refused == total:
		return "Cancelled", "Cancelled" // before it was completed; nothing else went wrong
	case count(fleet.Failed, fleet.Interrupted) > limit:
		return "Failed", "Failed"
	case count(fleet.ExecutionTimedOut) == total, count(fleet.ExecutionTimedOut) > limit:
		return "TimedOut", "ExecutionTimedOut"
	case c.Failures() > limit, count(fleet.Failed, fleet.Interrupted, fleet.Terminated)+refused == total:
		return "Failed", "Failed"
	case count(fleet.DeliveryTimedOut) == total, count(fleet.DeliveryTimedOut) > limit:
		return "TimedOut", "DeliveryTimedOut"
	default:
		return "Failed", "Incomplete"
	}
}

// Detail finds the details of a final invocation: on this host, on another of
// the quorum, or on the host that ran it. Nil when the invocation has none.
func (c *Control) Detail(ctx context.Context, cmd *fleet.Command, inv *fleet.Invocation) (*runcmd.Detail, error) {
	if inv.Detail.IsZero() {
		return nil, nil
	}
	if int(inv.Index) >= len(cmd.Targets) {
		return nil, fmt.Errorf("invocation %d of a command with %d targets", inv.Index, len(cmd.Targets))
	}
	r, err := c.Blob(ctx, cmd.Targets[inv.Index], inv.Detail)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, 1<<20))
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("read details: %w", err)
	}
	return runcmd.ParseDetail(b)
}

// Blob finds content by its digest: on this host, on another of the quorum, or
// on the host that made it. What was fetched stays here as long as there is room.
func (c *Control) Blob(ctx context.Context, host fleet.NodeID, d fleet.Digest) (io.ReadCloser, error) {
	if r, err := c.cfg.Blobs.Get(d); err == nil {
		return r, nil
	}
	servers, err := c.cfg.Quorum.Servers()
	if err != nil {
		return nil, err
	}
	var targets []rpc.Target
	for _, s := range servers {
		if s.ID != c.cfg.Self {
			targets = append(targets, voter(s.ID))
		}
	}
	targets = append(targets, rpc.Target{Node: host, Role: fleet.RoleAgent})
	// One of them may be cut off: whoever waits for it has no time left for those
	// who have the blob.
	_, failures := stagger.First(ctx, len(targets), fetchPatience, func(ctx context.Context, i int, answering func()) (struct{}, error) {
		err := c.fetch(ctx, targets[i], d, answering)
		if err != nil {
			err = fmt.Errorf("%s: %w", targets[i].Node, err)
		}
		return struct{}{}, err
	})
	if r, err := c.cfg.Blobs.Get(d); err == nil {
		return r, nil
	}
	return nil, fleet.Errorf(fleet.Unavailable, "the output is on no host that answers: %w", errors.Join(failures...))
}

// fetch brings a blob here, if what came is what was asked for.
func (c *Control) fetch(ctx context.Context, from rpc.Target, d fleet.Digest, answering func()) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	r, err := rpc.CallStream(ctx, c.cfg.RPC, from, rpc.MethodGetBlob, rpc.BlobHead{Digest: d}, nil)
	if err != nil {
		return err
	}
	answering()
	w, err := c.cfg.Blobs.Create(rpc.MaxBlob)
	if err != nil {
		return errors.Join(err, r.Close())
	}
	_, err = io.Copy(w, r)
	if err = errors.Join(err, r.Close()); err == nil && w.Digest() != d {
		err = fleet.Errorf(fleet.Corrupt, "the blob that came is %s", w.Digest())
	}
	if err != nil {
		return errors.Join(err, w.Abort())
	}
	_, err = w.Commit()
	return err
}

// fetchTimeout bounds the fetching of one blob from one host.
const fetchTimeout = 30 * time.Second

// fetchPatience is how long one host is waited for before the next is asked too.
const fetchPatience = time.Second
