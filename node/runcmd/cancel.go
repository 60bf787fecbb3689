package runcmd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"fleet/node/fleet"
	"fleet/node/journal"
	"fleet/node/ticket"
)

// maxUnmet bounds what a host remembers of commands that were cancelled before
// they came, by the voter that signed the Cancel: whoever stole one voter's key
// could make up as many as he likes, and shall not take the places of the others.
// There are at most five voters.
const maxUnmet = 2000

// errCancelled is the cause when the context of a command ends because the
// command was cancelled.
var errCancelled = errors.New("the command was cancelled")

func cancelledOutcome(leftover string) Outcome {
	o := Outcome{State: fleet.Cancelled, Code: -1, Reason: "cancelled before it started"}
	if leftover != "" {
		o.Reason = "cancelled; " + leftover
	}
	return o
}

// Cancellation is a Cancel as it reaches the host.
type Cancellation struct {
	Cancel []byte     // ticket.SignedCancel
	Index  uint32     // of this host among the targets
	Path   [][32]byte // shows that the command's targets hold this host there
}

// Cancel ends a command, or keeps it from ever beginning here. It returns when
// that is on disk: Accepted says that the command is being ended and that its
// result follows, Done gives the result that it has. A Cancel without a voter's
// signature, or that does not name this host, is Refused and changes nothing.
// The error says that the journal failed.
func (r *Runner) Cancel(ctx context.Context, c Cancellation) (Answer, error) {
	signed, err := ticket.ParseSignedCancel(c.Cancel)
	if err == nil {
		err = r.genuineCancel(signed, c)
	}
	if err != nil {
		r.cfg.Logger.Warn("cancel refused", "err", err)
		return refusal(err.Error()), nil
	}
	r.deliveries.Lock()
	defer r.deliveries.Unlock()
	k := journal.Key{Command: signed.Command, Attempt: signed.Attempt}
	e, ok := r.cfg.Journal.Lookup(k)
	switch {
	case !ok:
		return r.cancelUnmet(signed, c)
	case e.Finished == nil && e.Cancel == nil:
		if err := r.cfg.Journal.Cancel(k, c.Cancel); err != nil {
			if e, ok := r.cfg.Journal.Lookup(k); !ok || e.Finished == nil {
				return r.notWritten(err)
			}
			break // it ended in this moment, and that counts
		}
		r.cfg.Logger.Info("command cancelled", "command", k.Command)
	}
	if !r.stop(k) {
		r.finishWaiting(ctx, k, cancelledOutcome(""))
	}
	a, _ := r.Query(k.Command, k.Attempt)
	return a, nil
}

// genuineCancel checks that a voter ordered this of this host.
func (r *Runner) genuineCancel(s *ticket.SignedCancel, c Cancellation) error {
	if err := s.Verify(r.cfg.Trust()); err != nil {
		return err
	}
	switch {
	case s.Fleet != r.cfg.Fleet:
		return fleet.Errorf(fleet.Denied, "the cancel is of another fleet")
	case !ticket.VerifyPath(s.Root, s.Targets, c.Index, r.cfg.Self, c.Path) || !s.Covers(c.Index):
		return fleet.Errorf(fleet.Denied, "the cancel does not name this host")
	}
	return nil
}

// stop ends what runs of a command; false when no worker has it.
func (r *Runner) stop(k journal.Key) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	stop, ok := r.running[k]
	if ok {
		stop(errCancelled)
	}
	return ok
}

// cancelOf is the signed Cancel of a command that has not finished; nil if it
// is not cancelled.
func (r *Runner) cancelOf(k journal.Key) []byte {
	e, _ := r.cfg.Journal.Lookup(k)
	return e.Cancel
}

// cancelUnmet remembers that a command which never came here was cancelled, and
// signs that it did not run and will not. That is not reported: whoever cancels
// asks until he has it, and results of commands that do not exist, which one
// stolen voter's key could ask for, must not take the places of real ones.
func (r *Runner) cancelUnmet(s *ticket.SignedCancel, c Cancellation) (Answer, error) {
	by := r.signerOf(s)
	now, known := r.cfg.Clock.FleetTime()
	rule := judgeCancel(s, now, known, r.cfg.Journal.Admits(s.Created, s.Expires), r.cfg.Journal.Unmet(by))
	if rule.state != Refused {
		return Answer{State: rule.state, Reason: cut(rule.reason, maxReason)}, nil
	}
	k := journal.Key{Command: s.Command, Attempt: s.Attempt}
	at := r.cfg.Now()
	result := r.sign(k, c.Index, Outcome{State: rule.result, Code: -1, Reason: rule.reason}, nil, 0, at)
	r.cfg.Logger.Info("command cancelled before it came", "command", k.Command, "state", rule.result.Details())
	if rule.forget {
		return Answer{State: Refused, Result: result, Reason: cut(rule.reason, maxReason)}, nil
	}
	accepted := journal.Accepted{Index: c.Index, Created: s.Created, Expires: s.Expires, At: at.UnixNano(), By: by}
	if err := r.cfg.Journal.Refuse(k, accepted, journal.Finished{Result: result, At: at.UnixNano()}); err != nil {
		return r.notWritten(err)
	}
	return Answer{State: Done, Result: result}, nil
}

// signerOf is the voter that signed a Cancel; it was verified before.
func (r *Runner) signerOf(s *ticket.SignedCancel) fleet.NodeID {
	voter, _ := r.cfg.Trust().Voter(s.Signature.Key())
	return voter.Node
}

// judgeCancel decides what to say of a command that the journal does not hold:
// Refused with a result, or NotReady.
func judgeCancel(s *ticket.SignedCancel, now time.Time, known bool, admits error, unmet int) ruling {
	if rule, settled := judgeAdmission(known, admits); settled {
		return rule
	}
	switch {
	case now.Before(time.Unix(0, s.Created).Add(-Skew)):
		reason := fmt.Sprintf("the command is of %s, it is %s", stamp(s.Created), stamp(now.UnixNano()))
		return ruling{state: NotReady, reason: reason}
	case now.UnixNano() > s.Expires:
		// A delivery would be refused for its time: nothing need be remembered.
		return ruling{state: Refused, result: fleet.Cancelled, reason: "cancelled before it came", forget: true}
	case unmet >= maxUnmet:
		return ruling{state: NotReady, reason: fmt.Sprintf("this host remembers %d commands that the voter cancelled before they came", unmet)}
	}
	return ruling{state: Refused, result: fleet.Cancelled, reason: "cancelled before it came"}
}
