package rpc

import (
	"time"

	"fleet/node/fleet"
)

// Method is one row of the table of what peers may ask of each other.
type Method struct {
	Name  string
	Roles []fleet.Role // of the caller's certificate; any other is refused

	// MaxRequest and MaxResponse limit the bytes of the frame's body; of a
	// stream they limit what follows the head (request) or all (response).
	MaxRequest, MaxResponse int

	// InFlightPerPeer is how many calls of this method one peer may have
	// running here; one more is answered Throttled.
	InFlightPerPeer int

	// Timeout limits the call from its first byte to its last, on both sides.
	Timeout time.Duration

	// Stream says that raw bytes follow the request's frame and are the answer.
	Stream bool
}

// Names of the methods.
const (
	MethodHeartbeat     = "Heartbeat"
	MethodReport        = "Report"
	MethodPutBlob       = "PutBlob"
	MethodRenew         = "Renew"
	MethodChangeAddress = "ChangeAddress"
	MethodLeave         = "Leave"

	MethodListed       = "Listed"
	MethodFetchProgram = "FetchProgram"
	MethodTrust        = "Trust"

	MethodCarry         = "Carry"
	MethodDeliver       = "Deliver"
	MethodCancel        = "Cancel"
	MethodRelease       = "Release"
	MethodQueryCommand  = "QueryCommand"
	MethodGetBlob       = "GetBlob"
	MethodCandidate     = "Candidate"
	MethodInstallQuorum = "InstallQuorum"

	MethodForward       = "Forward"
	MethodForwardReport = "ForwardReport"
	MethodCoSign        = "CoSign"
	MethodReadIndex     = "ReadIndex"
	MethodPresence      = "Presence"
	MethodApplied       = "Applied"
	MethodVouch         = "Vouch"
	MethodStateHash     = "StateHash"
	MethodRelay         = "Relay"
)

// maxHead limits the head of a stream.
const maxHead = 1 << 10

// maxRelayed limits the request that one quorum host passes on for another.
const maxRelayed = 512 << 10

// MaxBlob is the largest blob that one call carries.
const MaxBlob = 64 << 20

var (
	fromAgents = []fleet.Role{fleet.RoleAgent}
	fromQuorum = []fleet.Role{fleet.RoleQuorum}
	fromHosts  = []fleet.Role{fleet.RoleAgent, fleet.RoleQuorum}
)

// Methods is the table: the whole surface between hosts, on one screen.
var Methods = []Method{
	// name, who may call, request and answer at most, calls of one peer, timeout, stream

	// What a host says of itself to quorum hosts, with its agent identity.
	{MethodHeartbeat, fromAgents, 4 << 10, 4 << 20, 2, 10 * time.Second, false},
	{MethodReport, fromAgents, 80 << 10, 1 << 10, 8, 30 * time.Second, false},
	{MethodPutBlob, fromAgents, MaxBlob, 0, 4, 10 * time.Minute, true},
	{MethodRenew, fromAgents, 1 << 10, 16 << 10, 1, 30 * time.Second, false},
	{MethodChangeAddress, fromAgents, 2 << 10, 1 << 10, 1, 30 * time.Second, false},
	{MethodLeave, fromAgents, 2 << 10, 1 << 10, 1, 30 * time.Second, false},

	// What any host asks of any other.
	{MethodListed, fromAgents, 1 << 10, 68 << 10, 2, 5 * time.Second, false},
	{MethodFetchProgram, fromAgents, 0, MaxBlob, 1, 10 * time.Minute, true},

	// What any host brings to any other: an order that k voters signed, which the
	// host verifies before it serves anybody (carry.go, node/relay).
	{MethodCarry, fromHosts, 16 << 20, 64 << 20, 32, time.Hour, true},

	// What any two hosts tell each other: the root key's signature makes it true.
	{MethodTrust, fromHosts, 66 << 10, 66 << 10, 2, 5 * time.Second, false},

	// What quorum hosts ask of any host.
	{MethodDeliver, fromQuorum, 512 << 10, 80 << 10, 16, 15 * time.Second, false},
	{MethodCancel, fromQuorum, 80 << 10, 80 << 10, 16, 15 * time.Second, false},
	{MethodRelease, fromQuorum, 80 << 10, 80 << 10, 16, 15 * time.Second, false},
	{MethodQueryCommand, fromQuorum, 1 << 10, 80 << 10, 16, 15 * time.Second, false},
	{MethodGetBlob, fromQuorum, 0, MaxBlob, 8, 10 * time.Minute, true},
	{MethodCandidate, fromQuorum, 1 << 10, 4 << 10, 2, 30 * time.Second, false},
	{MethodInstallQuorum, fromQuorum, 96 << 10, 1 << 10, 1, 60 * time.Second, false},

	// What quorum hosts ask of each other.
	{MethodForward, fromQuorum, 1<<20 + 8<<10, 1 << 20, 100, 30 * time.Second, false},
	{MethodForwardReport, fromQuorum, 80 << 10, 1 << 10, 100, 30 * time.Second, false},
	{MethodCoSign, fromQuorum, 1 << 10, 1 << 10, 100, 10 * time.Second, false},
	{MethodReadIndex, fromQuorum, 1 << 10, 1 << 10, 100, 10 * time.Second, false},
	{MethodPresence, fromQuorum, 1 << 10, 16 << 20, 4, 15 * time.Second, false},
	{MethodApplied, fromQuorum, 1 << 10, 1 << 10, 16, 10 * time.Second, false},
	{MethodVouch, fromQuorum, 1 << 10, 1 << 10, 4, 10 * time.Second, false},
	{MethodStateHash, fromQuorum, 1 << 10, 1 << 10, 2, 30 * time.Second, false},
	{MethodRelay, fromQuorum, maxRelayed + 1<<10, 96 << 10, 100, 60 * time.Second, false},
}

// byName indexes a table; it panics on a name that stands twice or a limit
// that is missing, which are mistakes of ours.
func byName(methods []Method) map[string]Method {
	m := make(map[string]Method, len(methods))
	for _, row := range methods {
		if _, twice := m[row.Name]; twice {
			panic("rpc: method " + row.Name + " stands twice in the table")
		}
		if row.Name == "" || len(row.Roles) == 0 || row.InFlightPerPeer <= 0 || row.Timeout <= 0 ||
			(!row.Stream && (row.MaxRequest <= 0 || row.MaxResponse <= 0)) {
			panic("rpc: method " + row.Name + " has no role, limit or timeout")
		}
		m[row.Name] = row
	}
	return m
}
