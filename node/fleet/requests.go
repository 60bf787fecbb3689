package fleet

import "math"

// The operations that SSM does not have, in SSM's style: a request and a
// result each, json tags as they travel. (SSM's own are in node/ssm.)

// Instant is a time in requests and answers: seconds since the Unix epoch as a
// JSON number, 0 for none.
type Instant float64

// InstantOf converts nanoseconds since the Unix epoch.
func InstantOf(nanos int64) Instant { return Instant(float64(nanos/1000) / 1e6) }

// Nanos converts back, to the microsecond.
func (i Instant) Nanos() int64 { return int64(math.Round(float64(i)*1e6)) * 1000 }

// What a host is to the quorum, as people read it.
const (
	RoleNameVoter    = "voter"
	RoleNameEligible = "eligible" // holds a quorum certificate, does not vote
	RoleNameAgent    = "agent"
)

// How a host seems, from its heartbeats.
const (
	PingOnline         = "Online"
	PingConnectionLost = "ConnectionLost" // it was heard of, not lately
	PingUnknown        = "Unknown"        // not heard of since the voters that answered started
)

// Warning is a thing that is wrong, or will be, with what to do about it.
type Warning struct {
	Code    string `json:"Code"`    // one word, stable
	Message string `json:"Message"` // for a person
	Remedy  string `json:"Remedy"`  // a command to type, or what to change
}

// WarnCloned is the code of the warning that several hosts say they are one
// node.
const WarnCloned = "ClonedIdentity"

// WarnUnstable is the code of the warning that a host starts again and again.
const WarnUnstable = "Unstable"

// UnstableStarts is how many starts in ten minutes are too many.
const UnstableStarts = 5

// ClonedRemedy is what to do about it.
const ClonedRemedy = "on the copy: stop the agent, remove its data directory, then fleet join with a new activation; it runs nothing until then"

// WarnQuorumStore is the code of the warning that a host of the quorum does not
// vote because its store was refused.
const WarnQuorumStore = "QuorumStoreRefused"

// LabelFilter keeps the nodes whose label has one of the values; any value
// when there are none.
type LabelFilter struct {
	Key    string   `json:"Key"`
	Values []string `json:"Values,omitempty"`
}

// DescribeNodesRequest asks for a page of nodes, by ID. Filters are joined by
// AND.
type DescribeNodesRequest struct {
	Nodes      []string      `json:"Nodes,omitempty"`  // IDs or names; one that matches nothing is an error
	Labels     []LabelFilter `json:"Labels,omitempty"` // at most 20
	PingStatus []string      `json:"PingStatus,omitempty"`
	MaxResults int           `json:"MaxResults,omitempty"` // 1 to 1000, default 1000
	NextToken  string        `json:"NextToken,omitempty"`

	// Removed asks for the hosts that were removed from the fleet, or left it,
	// in place of those that are in it. It excludes PingStatus.
	Removed bool `json:"Removed,omitempty"`

	// Brief leaves out what was said lately (role, leader, ping, version,
	// warnings), for which the voters would be asked. It excludes PingStatus.
	Brief bool `json:"Brief,omitempty"`
}

// DescribeNodesResult is a page of nodes.
type DescribeNodesResult struct {
	Nodes     []NodeView `json:"Nodes"`
	NextToken string     `json:"NextToken,omitempty"`
}

// NodeView is one host: what was decided about it and what was said lately.
type NodeView struct {
	InstanceId   NodeID            `json:"InstanceId"`
	Name         string            `json:"Name"`
	PublicKey    []byte            `json:"PublicKey"` // agent key; the ID is derived from it
	Address      string            `json:"Address"`
	Labels       map[string]string `json:"Labels,omitempty"`
	Role         string            `json:"Role,omitempty"` // absent when Brief
	Leader       bool              `json:"Leader,omitempty"`
	PingStatus   string            `json:"PingStatus,omitempty"`
	LastPing     Instant           `json:"LastPing,omitempty"`
	AgentVersion string            `json:"AgentVersion,omitempty"`
	AgentDigest  string            `json:"AgentDigest,omitempty"` // SHA-256 of its program, in hex
	ActivationId ActivationID      `json:"ActivationId,omitempty"`
	Replaces     NodeID            `json:"Replaces,omitempty"` // whose place it took when it enrolled
	Enrolled     Instant           `json:"Enrolled"`
	Warnings     []string          `json:"Warnings,omitempty"`
	Removed      *RemovedView      `json:"Removed,omitempty"` // of a host that is of the fleet no more

	// Reach is how the quorum calls the host, one of the words Reach...; absent
	// while nothing is known, and when Brief. ReachVia is the quorum host with
	// ReachVia.
	Reach    string `json:"Reach,omitempty"`
	ReachVia NodeID `json:"ReachVia,omitempty"`
}

// RenameNodeRequest gives a node another name; several nodes may have one.
type RenameNodeRequest struct {
	InstanceId string `json:"InstanceId"`
	Name       string `json:"Name"`
}

// RenameNodeResult has no members.
type RenameNodeResult struct{}

// RemovedView is the end of a host in the fleet.
type RemovedView struct {
	At       Instant      `json:"At"`
	Operator OperatorName `json:"Operator,omitempty"` // who removed it; empty when it left by itself

	// ReplacedBy is the host that took its place, with an activation of
	// Operator's; absent when none did.
	ReplacedBy NodeID `json:"ReplacedBy,omitempty"`
}

// How the quorum calls a host.
const (
	ReachDirect      = "direct"        // the leader can dial it
	ReachReverse     = "outbound-only" // only over the connection that it keeps to the leader
	ReachRelayed     = "via"           // only through another quorum host to which it keeps one
	ReachUnreachable = "unreachable"   // neither
)

// GetCallerIdentityRequest has no members.
type GetCallerIdentityRequest struct{}

// GetCallerIdentityResult is who asks, as the fleet has it.
type GetCallerIdentityResult struct {
	FleetId   ID           `json:"FleetId"`
	FleetName string       `json:"FleetName"`
	Operator  OperatorName `json:"Operator"`
	KeyId     string       `json:"KeyId"` // of the key that proved the connection
	Keys      int          `json:"Keys"`  // that the operator has
	May       []string     `json:"May"`   // operations that change something; "*" is all
	Created   Instant      `json:"Created"`
}

// DescribeQuorumRequest has no members.
type DescribeQuorumRequest struct{}

// DescribeQuorumResult is who decides, and how well.
type DescribeQuorumResult struct {
	Leader       NodeID         `json:"Leader,omitempty"` // none while there is no leader
	Threshold    int            `json:"Threshold"`        // signatures that a ticket needs
	TrustVersion uint32         `json:"TrustVersion"`
	TrustEpoch   uint32         `json:"TrustEpoch"`
	Members      []QuorumMember `json:"Members"`
}

// QuorumMember is one voter or eligible host.
type QuorumMember struct {
	InstanceId   NodeID `json:"InstanceId"`
	Name         string `json:"Name"`
	Address      string `json:"Address"`
	Role         string `json:"Role"`
	Leader       bool   `json:"Leader,omitempty"`
	Reachable    bool   `json:"Reachable"`
	AppliedIndex uint64 `json:"AppliedIndex"`
	Fingerprint  string `json:"Fingerprint,omitempty"` // of its quorum key

	CertificateExpires Instant `json:"CertificateExpires,omitempty"` // absent while it does not answer
}

// GetStatusRequest has no members.
type GetStatusRequest struct{}

// GetStatusResult is the fleet on one screen.
type GetStatusResult struct {
	FleetId      ID             `json:"FleetId"`
	Name         string         `json:"Name"`
	Time         Instant        `json:"Time"` // of the host that answered
	Answered     NodeID         `json:"Answered"`
	Version      string         `json:"Version"` // of the host that answered
	Leader       NodeID         `json:"Leader,omitempty"`
	LeaderName   string         `json:"LeaderName,omitempty"`
	Voters       int            `json:"Voters"`
	Reachable    int            `json:"Reachable"` // of the voters
	Threshold    int            `json:"Threshold"`
	TrustVersion uint32         `json:"TrustVersion"`
	Nodes        int            `json:"Nodes"`
	PingStatus   map[string]int `json:"PingStatus"` // nodes by state
	OpenCommands int            `json:"OpenCommands"`
	FeatureLevel uint32         `json:"FeatureLevel"` // decided: what every host of the quorum knows
	Warnings     []Warning      `json:"Warnings,omitempty"`
}

// WatchCommandRequest asks for the course of one command as server-sent
// events, from its present state on, until it ended.
type WatchCommandRequest struct {
	CommandId CommandID `json:"CommandId"`

	// Output is whether events of final states carry output.
	Output bool `json:"Output,omitempty"`
}

// MaxEventOutput is how much of one stream a WatchEvent carries, in bytes.
const MaxEventOutput = 48 << 10

// WatchEvent is one event of WatchCommand: exactly one member is set.
type WatchEvent struct {
	Invocation *InvocationEvent `json:"Invocation,omitempty"` // a target changed
	Command    *CommandEvent    `json:"Command,omitempty"`    // the counters changed; Ended in the last event
}

// InvocationEvent is the new state of one target.
type InvocationEvent struct {
	InstanceId    NodeID     `json:"InstanceId"`
	Name          string     `json:"Name"`
	Status        string     `json:"Status"`
	StatusDetails string     `json:"StatusDetails"`
	ResponseCode  int        `json:"ResponseCode"`
	Reason        string     `json:"Reason,omitempty"`
	Started       Instant    `json:"Started,omitempty"`
	Ended         Instant    `json:"Ended,omitempty"`
	Final         bool       `json:"Final,omitempty"`
	Stdout        OutputText `json:"Stdout"`
	Stderr        OutputText `json:"Stderr"`
	OutputError   string     `json:"OutputError,omitempty"` // why the output is not here
}

// OutputText is the beginning of what one stream of one host wrote.
type OutputText struct {
	Text      string `json:"Text,omitempty"`  // when it is UTF-8
	Bytes     []byte `json:"Bytes,omitempty"` // when it is not
	Total     uint64 `json:"Total,omitempty"` // bytes written
	Kept      uint64 `json:"Kept,omitempty"`  // of them, what GetCommandOutput gives
	Truncated bool   `json:"Truncated,omitempty"`
}

// CommandEvent counts the targets of a command.
type CommandEvent struct {
	CommandId             CommandID `json:"CommandId"`
	Status                string    `json:"Status"`
	StatusDetails         string    `json:"StatusDetails"`
	TargetCount           int       `json:"TargetCount"`
	CompletedCount        int       `json:"CompletedCount"`
	SuccessCount          int       `json:"SuccessCount"`
	ErrorCount            int       `json:"ErrorCount"`
	DeliveryTimedOutCount int       `json:"DeliveryTimedOutCount"`
	InProgressCount       int       `json:"InProgressCount"`
	StagedCount           int       `json:"StagedCount,omitempty"`     // have it and wait for their turn
	ReleasedCount         int       `json:"ReleasedCount,omitempty"`   // their turn came, and they were not heard since
	TerminatedCount       int       `json:"TerminatedCount,omitempty"` // never began: too many others had failed
	MaxConcurrency        string    `json:"MaxConcurrency,omitempty"`  // of a command with limits
	MaxErrors             string    `json:"MaxErrors,omitempty"`
	CancellingCount       int       `json:"CancellingCount,omitempty"`
	Ended                 bool      `json:"Ended,omitempty"`

	// GivenUp is when a host that was not reached is given up: it may not start
	// the command then, by any clock that a host may have.
	GivenUp Instant `json:"GivenUp,omitempty"`
}

// Streams of GetCommandOutput.
const (
	StreamStdout = "stdout"
	StreamStderr = "stderr"
)

// GetCommandOutputRequest asks for the bytes of one stream of one step of one
// node, all that were kept. The answer is not JSON.
type GetCommandOutputRequest struct {
	CommandId  CommandID `json:"CommandId"`
	InstanceId NodeID    `json:"InstanceId"`
	StepName   string    `json:"StepName,omitempty"` // needed when there are several
	Stream     string    `json:"Stream,omitempty"`   // default stdout
}

// CreateBackupRequest asks for the whole decided state, as a voter's snapshot.
// The answer is not JSON.
type CreateBackupRequest struct{}

// PutTargetRequest saves a choice of nodes under a name, or replaces it.
type PutTargetRequest struct {
	Name        TargetName `json:"Name"`
	Description string     `json:"Description,omitempty"`
	NodeSet     string     `json:"NodeSet,omitempty"`
	Targets     []Target   `json:"Targets,omitempty"` // tag:KEY or tag-key
}

// DeleteTargetRequest forgets a saved target.
type DeleteTargetRequest struct {
	Name TargetName `json:"Name"`
}

// DeleteTargetResult has no members.
type DeleteTargetResult struct{}

// DescribeTargetsRequest asks for a page of saved targets, by name.
type DescribeTargetsRequest struct {
	Names      []string `json:"Names,omitempty"`      // one that there is not is an error
	MaxResults int      `json:"MaxResults,omitempty"` // 1 to 100
	NextToken  string   `json:"NextToken,omitempty"`
}

// DescribeTargetsResult is a page of saved targets.
type DescribeTargetsResult struct {
	Targets   []TargetView `json:"Targets"`
	NextToken string       `json:"NextToken,omitempty"`
}

// TargetView is one saved target. It says what was asked for, not whom that
// means: see DescribeNodes.
type TargetView struct {
	Name        TargetName   `json:"Name"`
	Description string       `json:"Description,omitempty"`
	NodeSet     string       `json:"NodeSet,omitempty"`
	Targets     []Target     `json:"Targets,omitempty"`
	Operator    OperatorName `json:"Operator"`
	Modified    Instant      `json:"Modified"`
}

// ViewOf is a saved target as it is shown.
func ViewOf(t *SavedTarget) TargetView {
	return TargetView{
		Name: t.Name, Description: t.Description, NodeSet: t.NodeSet, Targets: t.Selectors, Operator: t.Operator,
		Modified: InstantOf(t.Modified),
	}
}

// GetTrustRequest has no members.
type GetTrustRequest struct{}

// GetTrustResult is what the root key must see before it signs the next version.
type GetTrustResult struct {
	Trust           []byte   `json:"Trust"` // trust.json as signed
	RootCertificate []byte   `json:"RootCertificate"`
	Eligible        []NodeID `json:"Eligible"`
}

// GetCandidateRequest asks a host for its request to become a voter; with
// NewIssuer, a voter for its request to issue with a new key.
type GetCandidateRequest struct {
	InstanceId NodeID `json:"InstanceId"`
	NewIssuer  bool   `json:"NewIssuer,omitempty"`
}

// GetCandidateResult is the request, signed by the host.
type GetCandidateResult struct {
	Candidate []byte `json:"Candidate"`
}

// NewVoter is one candidate with what the root key signed for it.
type NewVoter struct {
	InstanceId        NodeID `json:"InstanceId"`
	QuorumCertificate []byte `json:"QuorumCertificate"`
	IssuerCertificate []byte `json:"IssuerCertificate"`
}

// ChangeQuorumRequest is what the root key signed to change who decides:
// certificates for hosts, and the next trust.json. Hosts that it names and that
// do not vote yet become voters, voters that it does not name vote no more.
type ChangeQuorumRequest struct {
	Candidates []NewVoter `json:"Candidates,omitempty"`
	Trust      []byte     `json:"Trust,omitempty"`  // absent: it stays as it is, and candidates that do not vote are eligible
	Remove     []NodeID   `json:"Remove,omitempty"` // eligible hosts that follow the log no more
	Force      bool       `json:"Force,omitempty"`  // also when fewer than a majority of those who are to vote answer
}

// ChangeQuorumResult says who votes now.
type ChangeQuorumResult struct {
	Voters       []NodeID `json:"Voters"`
	Eligible     []NodeID `json:"Eligible,omitempty"`
	TrustVersion uint32   `json:"TrustVersion"`
}

// LocalStatus is what one host says of itself to whoever may open its socket.
type LocalStatus struct {
	Version         string    `json:"Version"`
	FleetId         ID        `json:"FleetId"`
	FleetName       string    `json:"FleetName"`
	InstanceId      NodeID    `json:"InstanceId"`
	Name            string    `json:"Name"`
	Role            string    `json:"Role"`
	DataDir         string    `json:"DataDir"`
	Address         string    `json:"Address"`         // where others reach it
	Reach           string    `json:"Reach,omitempty"` // ReachDirect or ReachReverse, as the leader says; absent while it does not
	Leader          NodeID    `json:"Leader,omitempty"`
	QuorumReachable bool      `json:"QuorumReachable"`
	HeartbeatAge    float64   `json:"HeartbeatAge"` // seconds since a voter answered one; negative for never
	RingAlive       int       `json:"RingAlive"`    // members that gossip believes alive, itself included
	OpenInvocations int       `json:"OpenInvocations"`
	Disk            DiskState `json:"Disk"`
	Containment     string    `json:"Containment"` // how the processes of commands are held together, and what limits them
	Warnings        []Warning `json:"Warnings,omitempty"`

	// Candidate is the fingerprint of the keys that this host offers to the
	// quorum: compare it with what "fleet quorum add" shows. Empty on a voter.
	Candidate string `json:"Candidate,omitempty"`
}

// LocalNodes is a host's own copy of the fleet's list, with its age.
type LocalNodes struct {
	AsOf  Instant     `json:"AsOf"` // when a voter last confirmed it; 0 for never
	Nodes []LocalNode `json:"Nodes"`
}

// LocalNode is one host in it.
type LocalNode struct {
	InstanceId NodeID            `json:"InstanceId"`
	Name       string            `json:"Name"`
	Labels     map[string]string `json:"Labels,omitempty"`
	Address    string            `json:"Address,omitempty"`
	Role       string            `json:"Role,omitempty"`
	Gossip     string            `json:"Gossip,omitempty"` // alive, suspect, dead or "" for not in the ring: a hint
}

// DescribeProgramRequest asks whether a program, named by its SHA-256 in hex, is
// on the quorum host that answers.
type DescribeProgramRequest struct {
	Digest string `json:"Digest"`
}

// DescribeProgramResult says it.
type DescribeProgramResult struct {
	Digest string `json:"Digest"`
	Here   bool   `json:"Here"`
}

// PutProgramResult says on how many voters a program is that was sent as the
// body of PutProgram.
type PutProgramResult struct {
	Digest string `json:"Digest"`
	Copies int    `json:"Copies"`
}
