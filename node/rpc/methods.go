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

	MethodDeliver       = "Deliver"
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
)

// maxHead limits the head of a stream.
const maxHead = 1 << 10

// MaxBlob is the largest blob that one call carries.
const MaxBlob = 64 << 20

var (
	fromAgents = []fleet.Role{fleet.RoleAgent}
	fromQuorum = []fleet.Role{fleet.RoleQuorum}
)

// Methods is the table: the whole surface between hosts, on one screen.
var Methods = []Method{
	// What a host says of itself to quorum hosts, with its agent identity.
	{Name: MethodHeartbeat, Roles: fromAgents, MaxRequest: 4 << 10, MaxResponse: 512 << 10, InFlightPerPeer: 2, Timeout: 10 * time.Second},
	{Name: MethodReport, Roles: fromAgents, MaxRequest: 80 << 10, MaxResponse: 1 << 10, InFlightPerPeer: 8, Timeout: 30 * time.Second},
	{Name: MethodPutBlob, Roles: fromAgents, MaxRequest: MaxBlob, MaxResponse: 0, InFlightPerPeer: 4, Timeout: 10 * time.Minute, Stream: true},
	{Name: MethodRenew, Roles: fromAgents, MaxRequest: 1 << 10, MaxResponse: 16 << 10, InFlightPerPeer: 1, Timeout: 30 * time.Second},
	{Name: MethodChangeAddress, Roles: fromAgents, MaxRequest: 2 << 10, MaxResponse: 1 << 10, InFlightPerPeer: 1, Timeout: 30 * time.Second},

	// What quorum hosts ask of any host.
	{Name: MethodDeliver, Roles: fromQuorum, MaxRequest: 512 << 10, MaxResponse: 80 << 10, InFlightPerPeer: 16, Timeout: 15 * time.Second},
	{Name: MethodQueryCommand, Roles: fromQuorum, MaxRequest: 1 << 10, MaxResponse: 80 << 10, InFlightPerPeer: 16, Timeout: 15 * time.Second},
	{Name: MethodGetBlob, Roles: fromQuorum, MaxRequest: 0, MaxResponse: MaxBlob, InFlightPerPeer: 8, Timeout: 10 * time.Minute, Stream: true},
	{Name: MethodCandidate, Roles: fromQuorum, MaxRequest: 1 << 10, MaxResponse: 4 << 10, InFlightPerPeer: 2, Timeout: 30 * time.Second},
	{Name: MethodInstallQuorum, Roles: fromQuorum, MaxRequest: 96 << 10, MaxResponse: 1 << 10, InFlightPerPeer: 1, Timeout: 60 * time.Second},

	// What quorum hosts ask of each other.
	{Name: MethodForward, Roles: fromQuorum, MaxRequest: 1<<20 + 8<<10, MaxResponse: 1 << 20, InFlightPerPeer: 100, Timeout: 30 * time.Second},
	{Name: MethodForwardReport, Roles: fromQuorum, MaxRequest: 80 << 10, MaxResponse: 1 << 10, InFlightPerPeer: 100, Timeout: 30 * time.Second},
	{Name: MethodCoSign, Roles: fromQuorum, MaxRequest: 1 << 10, MaxResponse: 1 << 10, InFlightPerPeer: 100, Timeout: 10 * time.Second},
	{Name: MethodReadIndex, Roles: fromQuorum, MaxRequest: 1 << 10, MaxResponse: 1 << 10, InFlightPerPeer: 100, Timeout: 10 * time.Second},
	{Name: MethodPresence, Roles: fromQuorum, MaxRequest: 1 << 10, MaxResponse: 16 << 20, InFlightPerPeer: 4, Timeout: 15 * time.Second},
	{Name: MethodApplied, Roles: fromQuorum, MaxRequest: 1 << 10, MaxResponse: 1 << 10, InFlightPerPeer: 16, Timeout: 10 * time.Second},
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
