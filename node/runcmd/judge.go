package runcmd

import (
	"fmt"
	"time"

	"fleet/node/fleet"
	"fleet/node/journal"
	"fleet/node/ticket"
)

// Skew is how far before a ticket's NotBefore it may be accepted by fleet time,
// which is the latest of the voters' words. There is none after NotAfter: the
// quorum counts on nothing being started later than that.
const Skew = 60 * time.Second

// State is what a host has done about a command. The numbers cross the wire
// (rpc.DeliverState).
type State uint8

// States.
const (
	Accepted State = 1 // it is in the journal, and its result will be reported
	Done     State = 2 // it has a result
	Refused  State = 3 // it is not run: by Result if that is set, else by Reason alone
	NotReady State = 4 // it cannot be decided now: deliver it again
	Staged   State = 5 // it is in the journal, and begins when its turn comes
	NotHere  State = 6 // its turn has come, and this host does not have it
)

// ruling is what to do with a ticket that is genuine and names this host.
type ruling struct {
	state  State
	result fleet.InvocationState // of a signed answer, when state is Refused
	reason string
	// forget says that the answer need not be kept: the same comes again.
	forget bool
}

// judge decides by the journal's word and the time of the fleet whether a
// command that the journal does not hold may run.
func judge(t *ticket.Ticket, now time.Time, known bool, admits error) ruling {
	if rule, settled := judgeAdmission(known, admits); settled {
		return rule
	}
	switch {
	case now.Before(time.Unix(0, t.NotBefore).Add(-Skew)):
		reason := fmt.Sprintf("the ticket counts from %s on, it is %s", stamp(t.NotBefore), stamp(now.UnixNano()))
		return ruling{state: NotReady, reason: reason}
	case now.UnixNano() > t.NotAfter:
		return ruling{state: Refused, result: fleet.DeliveryTimedOut, reason: lateReason(t, now)}
	}
	return ruling{state: Accepted}
}

// judgeAdmission comes before all else that may be said of a command that the
// journal does not hold: one that may have run, or run out of time, under a
// journal that was lost is nothing that this host can sign for, and without the
// time of the fleet nothing can be decided.
func judgeAdmission(known bool, admits error) (_ ruling, settled bool) {
	switch {
	case fleet.KindOf(admits) == fleet.Unavailable:
		return ruling{state: NotReady, reason: admits.Error()}, true
	case admits != nil:
		return ruling{state: Refused, result: fleet.Undeliverable, reason: admits.Error(), forget: true}, true
	case !known:
		return ruling{state: NotReady, reason: "this host has not heard the time from enough voters in the last minutes"}, true
	}
	return ruling{}, false
}

func lateReason(t *ticket.Ticket, now time.Time) string { return tooLate(t.NotAfter, now) }

func tooLate(by int64, now time.Time) string {
	return fmt.Sprintf("it was to start by %s, it is %s", stamp(by), stamp(now.UnixNano()))
}

func stamp(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339) }

// course is what to do next with an accepted command that has no result.
type course uint8

const (
	courseWait      course = iota // for the time of the fleet, or for NotBefore
	courseRun                     // it may start now
	courseLate                    // it may not start any more: DeliveryTimedOut
	courseInterrupt               // a crash cut it off: Interrupted
	courseCancelled               // it was cancelled: whatever it was doing, it does no more
)

// steer decides it: when its turn comes, after a restart too. What was started
// is never started again, unless its document says that this does no harm; and
// no command is started when it is too late for it.
func steer(e *journal.Entry, t *ticket.Ticket, idempotent bool, now time.Time, known bool) course {
	started := e.Starts > 0
	startBy := t.NotAfter
	if t.Staged() {
		startBy = min(e.StartBy, startBy) // later its place may be another host's
	}
	switch {
	case e.Cancel != nil:
		return courseCancelled
	case started && !idempotent:
		return courseInterrupt
	case !known, now.Before(time.Unix(0, t.NotBefore).Add(-Skew)):
		return courseWait
	case inTime(now, startBy):
		return courseRun
	case started:
		return courseInterrupt
	}
	return courseLate
}
