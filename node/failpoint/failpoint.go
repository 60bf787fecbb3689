// Package failpoint names the steps in the life of a command, from the
// operator's request to the day when a host's journal forgets it, so that a
// test can end a host at exactly one of them and see that the promise holds.
//
// The parts of fleet say Reach where a step begins or has ended. In a program
// that users run nobody listens: the function is nil, and Reach does nothing.
// A test of whole nodes injects one; so does a program built with the tag
// "failpoints" (node/cli). A hook is a parameter and not a variable of a
// package because a test has many hosts in one process.
//
// That a point is missing cannot be seen from here: the table of tests over
// All fails for a point that is never reached.
package failpoint

import "fleet/node/fleet"

// Point is a place between two effects that outlive a process or leave it.
type Point string

// The points, in the order in which one command meets them. On the leader:
// propose to heard, received to decided. On a relay: relay and forward. On the
// host: the rest.
const (
	Propose   Point = "S1-propose"   // the request is checked and not in the log
	Committed Point = "S1-committed" // it is, and nobody was told

	Dispatch Point = "S2-dispatch" // there is a ticket, and it is about to be sent

	Relay   Point = "S3-relay"    // a relay has verified an order
	Relayed Point = "S3-relayed"  // and accepted it; nothing was passed on
	Forward Point = "S12-forward" // a result of another host is about to be passed on

	Arrived     Point = "S4-arrived"     // a delivery came, nothing of it was looked at
	Accept      Point = "S5-accept"      // verified; about to be journaled
	Accepted    Point = "S5-accepted"    // on disk
	Answer      Point = "S6-answer"      // about to tell the leader
	Heard       Point = "S6-heard"       // the leader has heard it, no row says so
	Start       Point = "S7-start"       // its turn has come; about to be journaled
	Started     Point = "S7-started"     // on disk
	Exec        Point = "S8-exec"        // about to start a process
	Runs        Point = "S8-runs"        // the process is there
	Exited      Point = "S9-exited"      // and has ended
	Finish      Point = "S10-finish"     // the result is signed; about to be journaled
	Finished    Point = "S10-finished"   // on disk
	Send        Point = "S11-send"       // about to be sent to a voter
	Received    Point = "S11-received"   // the leader has it
	Decide      Point = "S13-decide"     // its row is about to be put into the log
	Decided     Point = "S13-decided"    // it is there, and the host was not told
	Acknowledge Point = "S14-ack"        // the host was told; about to be journaled
	Known       Point = "S14-known"      // written, not synced: a second report does no harm
	Forget      Point = "S15-forget"     // about to be dropped from the journal
	Forgotten   Point = "S15-forgotten"  // the journal is a new file
	Cancel      Point = "cancel"         // a voter's Cancel is about to be journaled
	Cancelled   Point = "cancel-on-disk" // nothing of the command starts any more
)

// All are the points, in order.
var All = []Point{
	Propose, Committed, Dispatch, Relay, Relayed, Arrived, Accept, Accepted, Answer, Heard, Start, Started, Exec, Runs, Exited, Finish, Finished,
	Forward, Send, Received, Decide, Decided, Acknowledge, Known, Forget, Forgotten, Cancel, Cancelled,
}

// Hook is told that a host is at a point with a command; "" where the point is
// of no single one. It is called by whoever does the step, perhaps with locks
// held, so it must not call back into the host. It may not return: then the
// process ends there.
type Hook func(p Point, command fleet.CommandID)

// Reach calls the hook, if there is one.
func (h Hook) Reach(p Point, command fleet.CommandID) {
	if h != nil {
		h(p, command)
	}
}
