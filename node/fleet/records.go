package fleet

import "fmt"

// Node is the decided row of one enrolled host.
type Node struct {
	ID   NodeID    `msgpack:"i"`
	Name string    `msgpack:"n"` // as the host gave it at enrolment; not unique
	Key  PublicKey `msgpack:"k"` // agent key; ID is derived from it

	// Address is "host:port" where the host's one port answers. The host signs
	// changes of it; AddressEpoch (Unix seconds) orders them.
	Address      string `msgpack:"a"`
	AddressEpoch uint32 `msgpack:"ae"`

	// Labels were set by operators (or came with the activation); only they
	// select a host. Nil when there are none.
	Labels map[string]string `msgpack:"l,omitempty"`

	Activation ActivationID `msgpack:"x,omitempty"`  // empty for the first host
	Replaces   NodeID       `msgpack:"rp,omitempty"` // whose place it took when it enrolled; empty for most
	Enrolled   int64        `msgpack:"e"`            // stamp
	Index      uint64       `msgpack:"ix"`           // log index of the last change
}

// Removal is the decided row of a host that is of the fleet no more. It stays
// for ever, so that the host's key and ID never count again.
type Removal struct {
	Node     Node         `msgpack:"n"`           // its row as it was at the end
	At       int64        `msgpack:"t"`           // stamp
	Operator OperatorName `msgpack:"o,omitempty"` // who asked for it; empty when the host itself left

	// ReplacedBy is the host that enrolled in its place, with an activation of
	// Operator's; empty for a host whose place nobody took.
	ReplacedBy NodeID `msgpack:"rb,omitempty"`

	Index uint64 `msgpack:"ix"` // log index of the removal
}

// Operator is the decided row of a person or program that may sign requests.
type Operator struct {
	Name OperatorName `msgpack:"n"`
	Keys []PublicKey  `msgpack:"k"`

	// May names the entry kinds that the operator's signature is accepted for,
	// by operation name ("SendCommand"); the single word "*" is all of them.
	May []string `msgpack:"m"`

	Created int64 `msgpack:"c"`
}

// Activation is the decided row of a permission to enrol hosts.
type Activation struct {
	ID          ActivationID      `msgpack:"i"`
	Key         PublicKey         `msgpack:"k"` // its seed is the code, which never travels
	Limit       uint32            `msgpack:"l"` // hosts that may enrol with it, 1 to 1000
	Used        uint32            `msgpack:"u"` // hosts that did
	Expires     int64             `msgpack:"e"`
	Labels      map[string]string `msgpack:"t,omitempty"` // given to each host
	DefaultName string            `msgpack:"d,omitempty"` // for hosts that give no name
	Description string            `msgpack:"s,omitempty"`
	Operator    OperatorName      `msgpack:"o"`
	Created     int64             `msgpack:"c"`
	Replaces    NodeID            `msgpack:"r,omitempty"` // whose place the host takes that enrols with it; empty: none's
}

// Target is one selector of a command, as SSM's: Key is "InstanceIds" (or
// "*" among its values for all), "tag:K" or "tag-key". Selectors are joined by
// AND, the values of one by OR.
type Target struct {
	Key    string   `msgpack:"k" json:"Key"`
	Values []string `msgpack:"v" json:"Values"`
}

// SavedTarget is a choice of nodes under a name: those of the node set, those
// that the selectors select, or those that are in both.
type SavedTarget struct {
	Name        TargetName   `msgpack:"n"`
	Description string       `msgpack:"d,omitempty"`
	NodeSet     string       `msgpack:"s,omitempty"` // as node/nodeset reads it
	Selectors   []Target     `msgpack:"t,omitempty"` // labels
	Operator    OperatorName `msgpack:"o"`
	Modified    int64        `msgpack:"m"` // stamp
}

// VoterMark is how far a voter's log had come: it had stored the entry Index
// while it was in Term. Zeros say nothing.
type VoterMark struct {
	Node  NodeID `msgpack:"n"`
	Term  uint64 `msgpack:"t"`
	Index uint64 `msgpack:"i"`
}

// Mint is the newest right to issue a ticket for a command.
type Mint struct {
	N         uint32 `msgpack:"n"` // 1, 2, ...
	NotBefore int64  `msgpack:"b"` // stamp of the mint
}

// Command is the decided row of one command. Its targets' rows are kept beside
// it in shards (see Invocation).
type Command struct {
	ID       CommandID    `msgpack:"i"`
	Attempt  uint32       `msgpack:"a"` // 1; a deliberate retry is a new attempt
	Operator OperatorName `msgpack:"o"`
	Request  Digest       `msgpack:"q"` // of the signed request

	DocumentName    string `msgpack:"dn"`
	DocumentVersion string `msgpack:"dv"`
	Document        Digest `msgpack:"dd"` // of its content

	Parameters       []byte `msgpack:"p"` // canonical msgpack of map[string][]string
	ParametersDigest Digest `msgpack:"pd"`
	RunAs            string `msgpack:"u,omitempty"` // "" is root (SYSTEM)
	Comment          string `msgpack:"s,omitempty"`

	Selectors []Target `msgpack:"ts,omitempty"` // as asked; empty when IDs were named
	Targets   []NodeID `msgpack:"t"`            // resolved, ascending; the index of a target is its place here

	Created          int64  `msgpack:"c"`  // stamp
	DeliverySeconds  uint32 `msgpack:"ds"` // how long a host may be without it before it may not start it
	ExecutionSeconds uint32 `msgpack:"es"` // the longest that its steps may take together
	NotAfter         int64  `msgpack:"na"` // start by: Created + DeliverySeconds, and more when hosts wait for their turn
	Expires          int64  `msgpack:"e"`  // NotAfter + ExecutionSeconds + ExpiryGrace

	// MaxConcurrency and MaxErrors are a number or "N%" of the targets: see Limits.
	MaxConcurrency string `msgpack:"mc"`
	MaxErrors      string `msgpack:"me"`

	Mint   Mint     `msgpack:"m"`
	Counts []uint32 `msgpack:"n"`            // of targets, by InvocationState
	Silent uint32   `msgpack:"sl,omitempty"` // of targets that had their turn and ended without their host's word
	Ended  int64    `msgpack:"z"`            // stamp; 0 while open
	Index  uint64   `msgpack:"ix"`
}

// Open reports whether a target has not reached its final state.
func (c *Command) Open() bool { return c.Ended == 0 }

// Count is how many targets are in one of some states.
func (c *Command) Count(states ...InvocationState) (n int) {
	for _, s := range states {
		if int(s) < len(c.Counts) {
			n += int(c.Counts[s])
		}
	}
	return n
}

// Unfinished is how many targets are not in a final state.
func (c *Command) Unfinished() int {
	return c.Count(Pending, InProgress, CancelPending, CancelInProgress, Staged, Released)
}

// Cancelled reports whether every target that has not ended is cancelled: no
// host may start it any more.
func (c *Command) Cancelled() bool {
	return c.Count(Pending, InProgress, Staged, Released) == 0 && c.Count(CancelPending, CancelInProgress) > 0
}

// Invocation is one command on one node: the row of one target.
type Invocation struct {
	Index      uint32          `msgpack:"i"` // in Command.Targets
	State      InvocationState `msgpack:"s"`
	Code       int32           `msgpack:"c"`           // exit code; -1 before a step ran
	Started    int64           `msgpack:"b,omitempty"` // by the host's clock
	Ended      int64           `msgpack:"e,omitempty"` // by the host's clock
	Detail     Digest          `msgpack:"d"`           // of the detail blob (node/runcmd); zero when there is none
	DetailSize uint32          `msgpack:"z,omitempty"`
	Reason     string          `msgpack:"r,omitempty"` // for a person, at most 256 bytes
	Signature  []byte          `msgpack:"g,omitempty"` // the host's, over its result; empty when the quorum set the state
	Decided    uint64          `msgpack:"x,omitempty"` // log index of the final state
	Released   int64           `msgpack:"l,omitempty"` // stamp of its release; 0 while a staged command waits there, and in others
}

// ShardSize is how many invocation rows travel and are stored together.
const ShardSize = 256

// InvocationState is the one state of one target. Each is a pair of SSM's
// Status and StatusDetails.
type InvocationState uint8

// States of an invocation. The numbers are stored and sent: append only.
const (
	Pending           InvocationState = 0 // not known to have reached the host
	InProgress        InvocationState = 1 // the host accepted it; of a staged command: began it
	Success           InvocationState = 2
	Failed            InvocationState = 3
	ExecutionTimedOut InvocationState = 4
	DeliveryTimedOut  InvocationState = 5 // it may no longer start there, or was never heard of again
	Cancelled         InvocationState = 6
	Undeliverable     InvocationState = 7 // the host refused it before start; not an error of the command
	Interrupted       InvocationState = 8 // the host died between start and end; it is not run again
	Terminated        InvocationState = 9 // never released: the limit of errors was passed
	InvalidPlatform   InvocationState = 10

	// An operator cancelled it and the end is not known yet. What was known
	// before stays known: it decides how long the host may still be at it.
	CancelPending    InvocationState = 11 // while it was Pending or Staged
	CancelInProgress InvocationState = 12 // while it was InProgress or Released

	// Of a staged command, between Pending and InProgress.
	Staged   InvocationState = 13 // the host has it, and waits for its turn
	Released InvocationState = 14 // its turn has come: it may begin, and is not known to have
)

var states = map[InvocationState]struct{ status, details string }{
	Pending:           {"Pending", "Pending"},
	InProgress:        {"InProgress", "InProgress"},
	Success:           {"Success", "Success"},
	Failed:            {"Failed", "Failed"},
	ExecutionTimedOut: {"TimedOut", "ExecutionTimedOut"},
	DeliveryTimedOut:  {"TimedOut", "DeliveryTimedOut"},
	Cancelled:         {"Cancelled", "Cancelled"},
	Undeliverable:     {"Failed", "Undeliverable"},
	Interrupted:       {"Failed", "Interrupted"},
	Terminated:        {"Failed", "Terminated"},
	InvalidPlatform:   {"Failed", "InvalidPlatform"},
	CancelPending:     {"Cancelling", "Cancelling"},
	CancelInProgress:  {"Cancelling", "Cancelling"},
	Staged:            {"Pending", "Staged"},
	Released:          {"InProgress", "Released"},
}

// Status is SSM's CommandInvocationStatus.
func (s InvocationState) Status() string { return states[s].status }

// Details is SSM's StatusDetails; "Interrupted", "Staged" and "Released" are
// ours.
func (s InvocationState) Details() string { return states[s].details }

func (s InvocationState) String() string {
	if known, ok := states[s]; ok {
		return known.details
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Valid reports whether s is one of the states above.
func (s InvocationState) Valid() bool { _, ok := states[s]; return ok }

// Final reports whether a row in this state never changes again.
func (s InvocationState) Final() bool {
	switch s {
	case Pending, InProgress, CancelPending, CancelInProgress, Staged, Released:
		return false
	}
	return true
}

// Holds reports whether the host may be at the command: such a target has a
// place of MaxConcurrency.
func (s InvocationState) Holds() bool {
	return s == Released || s == InProgress || s == CancelInProgress
}

// Cancelling reports whether it was cancelled and has not ended.
func (s InvocationState) Cancelling() bool { return s == CancelPending || s == CancelInProgress }

// Cancel is the state of a row when an operator cancels it: a final row stays
// what it is.
func (s InvocationState) Cancel() InvocationState {
	switch s {
	case Pending, Staged:
		return CancelPending
	case InProgress, Released:
		return CancelInProgress
	}
	return s
}

// IsError reports whether the state counts as an error of the command
// (SSM: Failed and ExecutionTimedOut; a command cut off by a crash failed too).
func (s InvocationState) IsError() bool {
	return s == Failed || s == ExecutionTimedOut || s == Interrupted
}
